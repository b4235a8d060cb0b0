"""Where utterances come from: one file a source.

In: a corpus on disk, made or downloaded. Out: rows of utterances a split, headers unread and audio undecoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asr.config import bounded, choice
from asr.errors import ConfigError, DataError

KEPT_APART = (
    "min_duration_in_seconds max_duration_in_seconds max_train_samples max_eval_samples on_bad num_workers train_split eval_split"
).split()
"""Keys of a source that decide what is kept of its rows, not which rows there are."""


@dataclass(frozen=True)
class Utterance:
    """One row: where its audio lies, and its transcript.

    `seconds` is None until the header is read. `start_seconds` marks a part of a longer file, which then needs
    `seconds` too. `row` and `column` name a cell of an Arrow file that holds the bytes of an audio file.
    """

    id: str
    audio: Path
    text: str
    speaker: str = ""
    seconds: float | None = None
    start_seconds: float | None = None
    row: int | None = None
    column: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as a line of a manifest: what isn't set is left out."""
        optional = {k: getattr(self, k) for k in ("start_seconds", "row", "column") if getattr(self, k) not in (None, "")}
        required = {"id": self.id, "audio": str(self.audio), "seconds": self.seconds, "text": self.text, "speaker": self.speaker}
        return required | optional

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Utterance:
        return cls(**{**line, "audio": Path(line["audio"])})


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
    on_bad: str = choice("drop", "drop", "fail")
    """drop leaves out utterances whose audio is missing, unreadable, cut short or NaN, lists and counts them; fail stops at the first."""
    num_workers: int | None = bounded(None, at_least=0)
    """Processes that read headers; 0 reads in this one, null takes as many as there are cores once it is worth their start."""

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

    def inputs(self) -> dict[str, Any]:
        """Return everything that decides which rows there are, as plain values: what caches are named by."""
        return {"source": f"{type(self).__module__}.{type(self).__qualname__}"} | {
            key: value for key, value in asdict(self).items() if key not in KEPT_APART
        }

    def fingerprint(self) -> str:
        """Return a short hash of `inputs`."""
        return hashlib.sha256(json.dumps(self.inputs(), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Yield the rows of a split in a fixed order.

        Raises ConfigError (with the key below `dataset`) for a root, split or column that isn't there, and DataError
        for content that can't be read, with file and line. Whether the audio is there is asked later, row by row.
        """
        raise NotImplementedError

    def corpus_folder(self) -> Path:
        """Return `root`, or raise a ConfigError when it is missing or no folder."""
        if not self.root:
            raise ConfigError("is missing; name the folder of the corpus.", key="root")
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {self.root!r}.", key="root")
        return folder


def inside(folder: Path, name: str, *, where: str) -> Path:
    """Return the path of an audio file that a corpus names, relative to `folder` unless it is absolute.

    Raises DataError for a relative name that leaves the folder through `..`; `where` says which file and line named it.
    """
    path = Path(name)
    if path.is_absolute():
        return path
    if ".." in path.parts:
        raise DataError(f"{where}: {name!r} leads out of the corpus' folder through '..'; give a path below {folder}, or an absolute one.")
    return folder / path
