"""Where utterances come from: one file a source.

In: a corpus on disk, made or downloaded. Out: rows of utterances a split, headers unread and audio undecoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from asr.config import bounded, choice
from asr.errors import ConfigError, DataError, did_you_mean

KEPT_APART = (
    "min_duration_in_seconds max_duration_in_seconds max_train_samples max_eval_samples on_bad max_bad_fraction num_workers "
    "train_split eval_split streaming shuffle_buffer_size sample_utterances"
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

    makes_root: ClassVar[bool] = False
    """Whether `root` is made by the source, and needn't be there."""
    can_stream: ClassVar[bool] = False
    """Whether it has its utterances in shards (asr.sources.sharded)."""

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
    max_bad_fraction: float = bounded(0.05, at_least=0, at_most=1)
    """With on_bad=drop, most of a split's utterances that may turn out undecodable when their batch comes; more end it (exit 3)."""
    num_workers: int | None = bounded(None, at_least=0)
    """Processes that read headers; 0 reads in this one, null takes as many as there are cores once it is worth their start."""
    streaming: bool = False
    """Trains on the corpus as it is read, shard by shard, without copying or listing it first: Parquet files and tar archives alone."""

    def __post_init__(self) -> None:
        if self.streaming and not self.can_stream:
            raise ConfigError(
                "only Parquet files (dataset=hub) and tar archives (dataset=webdataset) are streamed; this source's files are read where "
                "they lie anyway: leave it false.",
                key="streaming",
            )
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

    def check_reachable(self) -> None:
        """Raise ConfigError for a root or a split that isn't there, where finding out is quick; nothing has been written then."""
        if self.root and not self.makes_root and not Path(self.root).expanduser().exists():
            raise ConfigError(f"there is no folder {self.root!r}.", key="root")

    def corpus_folder(self) -> Path:
        """Return `root` as an absolute path, or raise a ConfigError when it is missing or no folder."""
        if not self.root:
            raise ConfigError("is missing; name the folder of the corpus.", key="root")
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {self.root!r}.", key="root")
        return folder.absolute()

    def split_names(self, split: str, there: Collection[str]) -> list[str]:
        """Return the names that a split such as "train+dev" joins, in order; raise a ConfigError for one that isn't `there`."""
        names = [name.strip() for name in split.split("+")]
        for name in names:
            if name not in there:
                raise self.no_such_split(split, name, there)
        return names

    def no_such_split(self, split: str, name: str, there: Collection[str]) -> ConfigError:
        """Return the error for `name`, a part of `split`, that isn't among the splits `there`."""
        listed = f"it has {', '.join(there)}." if there else "it has none."
        where = f" in {self.root}" if self.root else ""
        key = "train_split" if split == self.train_split else "eval_split"
        return ConfigError(f"there is no split {name!r}{where}; {listed}{did_you_mean(name, there)}", key=key)


def check_column(column: str, there: Collection[str], *, key: str, where: object) -> None:
    """Raise a ConfigError when `column`, the value of `key`, is not one of the columns of a table."""
    if column not in there:
        raise ConfigError(f"{where} has no column {column!r}; it has {', '.join(there)}.{did_you_mean(column, there)}", key=key)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, in order, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line) for every line of a UTF-8 text file that isn't blank; `where` is file and line number.

    Raises DataError for a file that can't be read and a line that isn't UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number} is not UTF-8 ({error.reason}); convert the file.") from error
                if text.strip():
                    yield f"{path}:{number}", text.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) for every line of a JSON Lines file; raise DataError for a line that holds no JSON object."""
    for where, line in lines_of(path):
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except UnicodeEncodeError as error:
            raise DataError(f"{where} holds half a surrogate pair (\\ud800 to \\udfff), which is no text; mend the line.") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({str(error)[:100]}); each line is one object.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}, not an object; each line is one object.")
        yield where, row


def text_in(row: Mapping[str, Any], field: str, *, where: str) -> str:
    """Return a field that must hold text; raise DataError that says where it is missing."""
    if field not in row:
        raise DataError(f"{where} has no {field!r}; it has {', '.join(row) or 'nothing'}.{did_you_mean(field, row)}")
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field!r} is {json.dumps(value)[:80]}, not text.")
    return value


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
