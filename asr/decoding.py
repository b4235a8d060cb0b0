"""How a CTC model's frames become text: the best token of each, or a beam search with an n-gram language model.

In: log probabilities of frames; a language model (ARPA, or KenLM's binary) and the words it may say. Out: a token a frame, with blanks.
The search is flashlight-text's, its language model KenLM: https://github.com/flashlight/text (extra `beam`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.config import bounded
from asr.ctc_words import word_delimiter_id
from asr.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Search = Callable[["NDArray[np.float32]"], "NDArray[np.int32]"]
"""Log probabilities [frames, tokens] to the token of each frame [frames], blanks and repeats as CTC has them."""

UNKNOWN = "<unk>"
NOT_WORDS = ("<s>", "</s>", UNKNOWN, "<UNK>")
NEVER = -1e4
"""A log probability that is finite, and 0 as a probability."""
STRETCH = 3000
"""Frames that a long recording is searched in at a time: a minute at 50 a second."""


@dataclass(kw_only=True)
class GreedyDecoder:
    """The best token of each frame."""

    searches = False

    def check_reachable(self) -> None:
        """Nothing is named that may be missing."""


@dataclass(kw_only=True)
class BeamDecoder:
    """A beam search whose score is the model's plus `lm_weight` times the language model's, and `word_score` for each word."""

    searches = True

    lm: str | None = None
    """An n-gram model: an ARPA file, or KenLM's binary of one, which loads at once."""
    lexicon: str | None = None
    """The words that can be said, one a line, each with its spelling after a tab where that isn't its letters; null takes the ARPA's."""
    lexicon_free: bool = False
    """The model is of tokens (characters with | between words), not of words: any word can be said."""
    lm_weight: float = bounded(1.0, at_least=0)
    """What a natural logarithm of the model's is worth of KenLM's, which are to the base of 10."""
    word_score: float = 0.0
    """Added for each word; above 0 makes more, shorter ones."""
    silence_score: float = 0.0
    """Added for each frame between words."""
    beam_size: int = bounded(50, at_least=1)
    """Hypotheses that are kept from frame to frame."""
    beam_size_token: int | None = bounded(None, at_least=1)
    """Best tokens of a frame that are looked at; null looks at all."""
    beam_threshold: float = bounded(25.0, above=0)
    """Hypotheses this much worse than the best are dropped."""

    def __post_init__(self) -> None:
        if self.lexicon_free and self.lexicon:
            raise ConfigError("can't be given together with lexicon_free=true, which lets any word be said; drop one.", key="lexicon")
        if self.lexicon_free and self.word_score:
            raise ConfigError("is for searches over words: leave it 0 with lexicon_free=true.", key="word_score")

    def check_reachable(self) -> None:
        """Raise ConfigError where the library, the language model or the lexicon is missing, or the former is cut short; loads nothing."""
        if self.lm is None:
            raise ConfigError("is missing: name an ARPA file or KenLM's binary of one, or choose decoder=greedy.", key="lm")
        for package in ("flashlight", "kenlm"):
            if find_spec(package) is None:
                raise ConfigError("a beam search needs flashlight-text and kenlm: pip install 'asr-gaudi[beam]'.")
        for key, name in (("lm", self.lm), ("lexicon", self.lexicon)):
            if name is not None and not Path(name).expanduser().is_file():
                raise ConfigError(f"there is no file {name!r}.", key=key)
        path = Path(self.lm).expanduser()
        if is_arpa(path) and not _last_line(path).startswith(b"\\end\\"):
            raise ConfigError(f"{self.lm} is cut short: it doesn't end in \\end\\; copy or make it again.", key="lm")
        if not is_arpa(path) and self.lexicon is None and not self.lexicon_free:
            raise ConfigError(
                "is missing: a binary doesn't tell its words. Name a list of words, or take the ARPA file, or lexicon_free=true.",
                key="lexicon",
            )

    def search(self, tokenizer: PreTrainedTokenizerBase) -> Search:
        """Return the search over a tokenizer's tokens; raise ConfigError for what doesn't go together."""
        self.check_reachable()
        return self._over_tokens(tokenizer) if self.lexicon_free else self._over_words(tokenizer)

    def _over_words(self, tokenizer: PreTrainedTokenizerBase) -> Search:
        from flashlight.lib.text import decoder as library
        from flashlight.lib.text.dictionary import Dictionary

        delimiter, blank = word_delimiter_id(tokenizer), int(tokenizer.pad_token_id)
        if delimiter is None:
            raise ConfigError(
                "is of words, but the model's tokenizer has no word delimiter that would tell words apart: take a language model of its "
                "tokens and lexicon_free=true.",
                key="lm",
            )
        spellings = {word: ids for word, spelled in self._lexicon() if (ids := _spelled(spelled, tokenizer)) is not None}
        if not spellings:
            raise ConfigError(
                "holds no word that the model's tokenizer can write; are its letters of the other case (text.case)?",
                key="lexicon" if self.lexicon else "lm",
            )
        words = Dictionary()
        for word in (*spellings, *([] if UNKNOWN in spellings else [UNKNOWN])):
            words.add_entry(word)
        language = self._language_model(words)
        trie = library.Trie(len(tokenizer), delimiter)
        beginning = language.start(False)
        for word, ids in spellings.items():
            number = words.get_index(word)
            # a word ends in the delimiter, so that the path of tokens is spelled with spaces
            trie.insert([*ids, delimiter], number, language.score(beginning, number)[1])
        trie.smear(library.SmearingMode.MAX)
        options = library.LexiconDecoderOptions(word_score=self.word_score, unk_score=-math.inf, **self._options(tokenizer))
        decoder = library.LexiconDecoder(options, trie, language, delimiter, blank, words.get_index(UNKNOWN), [], False)
        return _searching(decoder, len(tokenizer), ending=delimiter, blank=blank)

    def _over_tokens(self, tokenizer: PreTrainedTokenizerBase) -> Search:
        from flashlight.lib.text import decoder as library
        from flashlight.lib.text.dictionary import Dictionary

        blank, delimiter = int(tokenizer.pad_token_id), word_delimiter_id(tokenizer)
        tokens = Dictionary()
        for number in range(len(tokenizer)):
            tokens.add_entry(str(tokenizer.convert_ids_to_tokens(number)), number)
        path = Path(str(self.lm)).expanduser()
        if is_arpa(path) and not {str(name) for name in tokenizer.get_vocab()} & set(_unigrams(path)):
            raise ConfigError("is a model of none of the tokenizer's tokens; lexicon_free=true needs one of characters.", key="lm")
        options = library.LexiconFreeDecoderOptions(**self._options(tokenizer))
        silence = blank if delimiter is None else delimiter
        decoder = library.LexiconFreeDecoder(options, self._language_model(tokens), silence, blank, [])
        return _searching(decoder, len(tokenizer), ending=None, blank=blank)

    def _options(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what either search of the library is given."""
        from flashlight.lib.text import decoder as library

        return {
            "beam_size": self.beam_size,
            "beam_size_token": self.beam_size_token or len(tokenizer),
            "beam_threshold": self.beam_threshold,
            "lm_weight": self.lm_weight,
            "sil_score": self.silence_score,
            "log_add": False,
            "criterion_type": library.CriterionType.CTC,
        }

    def _language_model(self, entries: Any) -> Any:
        from flashlight.lib.text.decoder.kenlm import KenLM

        try:
            return KenLM(str(Path(str(self.lm)).expanduser()), entries)
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2]  # above it KenLM names its own source
            raise ConfigError(f"{self.lm} can't be read as an n-gram model: {reason}. Is it whole?", key="lm") from error

    def _lexicon(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each word with its spelling, a list of tokens."""
        if self.lexicon is None:
            yield from ((word, list(word)) for word in _unigrams(Path(str(self.lm)).expanduser()) if word not in NOT_WORDS)
            return
        try:
            lines = Path(self.lexicon).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.lexicon} can't be read as UTF-8 text ({error}).", key="lexicon") from error
        for line in lines:
            word, _, spelling = line.strip().partition("\t")
            if word.strip():
                yield word.strip(), spelling.split() or list(word.strip())


def is_arpa(path: Path) -> bool:
    r"""Say whether a file is an ARPA file: one of text, with \data\ near its beginning."""
    with path.open("rb") as file:
        return b"\\data\\" in file.read(4096)


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        return file.read().rstrip().rpartition(b"\n")[2]


def _unigrams(path: Path) -> Iterator[str]:
    """Yield the words of an ARPA file, as its first section lists them."""
    inside = False
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("\\"):
                if inside:
                    return
                inside = line.startswith("\\1-grams:")
            elif inside and len(fields := line.split()) > 1:
                yield fields[1]


def _spelled(spelling: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return the token ids of a spelling; None for one that the tokenizer can't write."""
    known: Mapping[str, int] = tokenizer.get_vocab()
    ids = [known.get(token, -1) for token in spelling]
    return None if -1 in ids or not ids else ids


def _searching(decoder: Any, num_tokens: int, *, ending: int | None, blank: int) -> Search:
    """Return a decoder's search. A frame more that is `ending` for certain lets the last word end, as every other does, in a delimiter."""
    import numpy as np

    def search(log_probs: NDArray[np.float32]) -> NDArray[np.int32]:
        frames = len(log_probs)
        if not frames:
            return np.zeros(0, np.int32)
        last = np.full((1, num_tokens), NEVER, np.float32)
        last[0, blank if ending is None else ending] = 0.0
        emissions = np.ascontiguousarray(np.concatenate([np.maximum(log_probs[:, :num_tokens], NEVER), last]), dtype=np.float32)
        found = decoder.decode(emissions.ctypes.data, len(emissions), num_tokens)
        if not found:
            return np.full(frames, blank, np.int32)
        # the path begins with what stands for the beginning of the sentence, and ends with what stands for its end
        path = np.array(found[0].tokens[1 : frames + 1], np.int32)
        return np.where(path < 0, blank, path)

    return search


class Stretches:
    """A search over a recording of any length, in stretches that end in a pause; the language model begins anew in each."""

    def __init__(self, search: Search, blank: int) -> None:
        self._search, self._blank = search, blank
        self._kept: list[NDArray[np.float32]] = []
        self._found: list[NDArray[np.int32]] = []

    def add(self, log_probs: NDArray[np.float32]) -> None:
        """Take in the frames that follow."""
        import numpy as np

        if len(log_probs):
            self._kept.append(log_probs)
        if sum(map(len, self._kept)) >= STRETCH:
            together = np.concatenate(self._kept)
            at = self._pause(together)
            self._found.append(self._search(together[:at]))
            self._kept = [together[at:]]

    def _pause(self, log_probs: NDArray[np.float32]) -> int:
        """Return the middle of the longest run of blanks in the later half."""
        import numpy as np

        half = len(log_probs) // 2
        silent = (log_probs[half:].argmax(axis=1) == self._blank).astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], silent, [0]])))
        runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        begin, end = max(runs, key=lambda run: run[1] - run[0], default=(len(silent), len(silent)))
        return half + (begin + end) // 2

    def end(self) -> NDArray[np.int32]:
        """Return the token of every frame."""
        import numpy as np

        if self._kept:
            self._found.append(self._search(np.concatenate(self._kept)))
            self._kept = []
        return np.concatenate(self._found) if self._found else np.zeros(0, np.int32)
