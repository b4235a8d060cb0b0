"""Transcript normalisation: one set of rules for training and for scoring.

In: a transcript as the corpus has it. Out: the text that is learnt, and that hypotheses are scored against.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from asr.config import choice
from asr.errors import ConfigError

_CASES: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper, "keep": str}
_FORMS = ("NFC", "NFKC", "NFD", "NFKD", "none")


@dataclass(kw_only=True)
class TextRules:
    """Unicode form, removal of literal characters, case, single spaces. Applied twice, it changes nothing more."""

    case: str = choice("lower", *_CASES)
    """What the published script calls do_lower_case; `upper` suits tokenizers with capital letters only."""
    unicode_normalization: str = choice("NFC", *_FORMS)
    """The form of unicodedata.normalize; NFC joins a letter and its accent."""
    remove: Any = ""
    """Characters to remove, each taken literally (a hyphen is a hyphen, never a range): a string, or a list of strings.
    Spaces can't be among them: words would run together."""

    def __post_init__(self) -> None:
        removed = [self.remove] if isinstance(self.remove, str) else self.remove
        if not isinstance(removed, (list, tuple)) or not all(isinstance(r, str) for r in removed):
            raise ConfigError(f"{self.remove!r} is neither a string nor a list of strings.", key="remove")
        self._removed = str.maketrans("", "", self._formed("".join(removed).replace(" ", "")))

    def __call__(self, transcript: str) -> str:
        """Return the normalised transcript; may be empty.

        >>> TextRules(remove="-;!")("Well-known;  Caf\\u00e9!")
        'wellknown caf\\u00e9'
        """
        text = self._formed(transcript).translate(self._removed)
        text = self._formed(_CASES[self.case](text))  # some capitals of composed letters are decomposed
        return " ".join(text.translate(self._removed).split())

    def _formed(self, text: str) -> str:
        form = self.unicode_normalization
        if form not in _FORMS or form == "none":  # a wrong form is reported with its key by the range check
            return text
        return unicodedata.normalize(cast(Any, form), text)
