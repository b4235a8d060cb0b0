"""Where utterances come from: one file a source.

In: a corpus on disk, made or downloaded. Out: rows of utterances a split, headers unread and audio undecoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.config import bounded
from asr.errors import ConfigError


@dataclass(frozen=True)
class Utterance:
    """One row: an audio file and its transcript. `seconds` is None until the header is read."""

    id: str
    audio: Path
    text: str
    speaker: str = ""
    seconds: float | None = None


@dataclass(kw_only=True)
class Source:
    """What every source has: two splits and what is kept of them. Subclasses yield the rows."""

    root: str | None = None
    """Folder of the corpus; null takes a folder under $ASR_CACHE or ~/.cache/asr where a source makes its own."""
    train_split: str = "train"
    eval_split: str = "test"
    min_duration_in_seconds: float = bounded(0.0, at_least=0)
    """Shorter utterances are left out, counted and listed."""
    max_duration_in_seconds: float | None = bounded(None, above=0)
    """Longer utterances are left out (never cut), counted and listed; null keeps all."""
    max_train_samples: int | None = bounded(None, at_least=1)
    """Takes the first utterances only."""
    max_eval_samples: int | None = bounded(None, at_least=1)

    def __post_init__(self) -> None:
        longest = self.max_duration_in_seconds
        if longest is not None and longest < self.min_duration_in_seconds:
            raise ConfigError(
                f"{longest:g} is below min_duration_in_seconds ({self.min_duration_in_seconds:g}).",
                key="max_duration_in_seconds",
            )

    @property
    def name(self) -> str:
        """The corpus' name in run.json."""
        return type(self).__name__

    def fingerprint(self) -> str:
        """Return a short hash of everything that decides which rows come out."""
        raise NotImplementedError

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Yield the rows of a split in a fixed order; raise DataError when it can't be read."""
        raise NotImplementedError
