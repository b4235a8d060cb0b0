"""The shards of a corpus: what is read in one go, whatever holds it, and utterances of it by reference.

In: where Parquet files or tar archives lie. Out: samples one after the other from any place on, or by their references. A read that
fails is tried again, and goes on behind what it has given.
"""

from __future__ import annotations

import json
import logging
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from asr import hub
from asr.errors import DataError
from asr.files import written

log = logging.getLogger(__name__)

TRIES = 3
PAUSE_SECONDS = 0.5
"""Before the second try; each further pause is four times as long."""
ON_HUB = "hf://"


class Ref(NamedTuple):
    """Where one utterance lies: the number of its unit, its row there, and for an archive the byte at which it begins."""

    unit: int
    row: int
    offset: int = 0


@dataclass(frozen=True)
class Unit:
    """What is read in one go: a row group of a Parquet file, or a whole archive.

    `first` and `last` bound the rows that belong to the corpus, `last` excluded; None stands for all that there are.
    """

    shard: str
    group: int | None = None
    first: int = 0
    last: int | None = None

    @property
    def num_rows(self) -> int | None:
        return None if self.last is None else self.last - self.first


class Sample(NamedTuple):
    """One utterance as its shard has it. `after` is where reading goes on; `problem` says why there is no transcript or audio."""

    ref: Ref
    after: Ref
    id: str
    text: str
    audio: bytes
    speaker: str = ""
    problem: str = ""


class Format(Protocol):
    """How shards of one kind are read. It is a dataclass of plain values, so that a run's directory can hold it."""

    def samples(self, unit: Unit, start: Ref) -> Iterator[Sample]:
        """Yield the samples of a unit from a place on, in order; raises what reading raises."""


class ShardError(DataError):
    """A shard can't be read any further."""


@dataclass(frozen=True)
class Shards:
    """The units of one split, in order, and how they are read. `num_utterances` is their number where it is known, or about it."""

    format: Format
    units: tuple[Unit, ...]
    num_utterances: int | None = None

    def samples(self, start: Ref) -> Iterator[Sample]:
        """Yield the samples of one unit from a place on; raise ShardError that names shard and row once `TRIES` have failed there."""
        unit, left = self.units[start.unit], pauses()
        while True:
            try:
                for sample in self.format.samples(unit, start):
                    yield sample
                    start, left = sample.after, pauses()
                return
            except read_errors() as error:
                pause_seconds, *left = left
                if not left:
                    raise ShardError(f"{unit.shard}, row {start.row}: {why(error)} ({TRIES} tries); repair it or leave it out.") from error
                log.warning("%s, row %d: %s; tried again in %g s", unit.shard, start.row, why(error), pause_seconds)
            time.sleep(pause_seconds)

    def taken(self, refs: Iterable[Ref]) -> dict[Ref, Sample]:
        """Return the samples that references name, each unit read once; one that isn't there any more is left out."""
        wanted: dict[int, set[Ref]] = defaultdict(set)
        for ref in refs:
            wanted[ref.unit].add(ref)
        found = {}
        for rows in wanted.values():
            while rows:
                first = min(rows)
                for sample in self.samples(first):
                    if sample.ref in rows:
                        found[sample.ref] = sample
                        rows.discard(sample.ref)
                    if not rows or (sample.after.offset and min(rows).offset > sample.after.offset):
                        break  # an archive is gone on with at the next one's own place
                else:
                    rows.clear()
        return found

    def save(self, path: Path) -> None:
        content = {
            "format": {"kind": type(self.format).__name__, **asdict(self.format)},  # type: ignore[call-overload]
            "num_utterances": self.num_utterances,
            "units": [[unit.shard, unit.group, unit.first, unit.last] for unit in self.units],
        }
        with written(path) as aside:
            aside.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape")

    @classmethod
    def load(cls, path: Path, formats: Mapping[str, type]) -> Shards:
        """Read what `save` wrote; `formats` are the classes by their names."""
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        kind = formats[content["format"].pop("kind")]
        return cls(kind(**content["format"]), tuple(Unit(*unit) for unit in content["units"]), content["num_utterances"])

    def with_number(self, num_utterances: int) -> Shards:
        return replace(self, num_utterances=num_utterances)


def pauses() -> list[float]:
    """Return how long to wait after each of `TRIES` that failed, the last included."""
    return [PAUSE_SECONDS * 4**tried for tried in range(TRIES - 1)] + [0.0]


def opened(shard: str) -> AbstractContextManager[Any]:
    """Open a shard for reading at any place: a file of this disk, or one of the hub, which is read in pieces as they are asked for."""
    return hub.opened(shard) if shard.startswith(ON_HUB) else Path(shard).open("rb")


def size_of(shard: str) -> int:
    """Return a shard's bytes."""
    return hub.size_of(shard) if shard.startswith(ON_HUB) else Path(shard).stat().st_size


def read_errors() -> tuple[type[BaseException], ...]:
    """Return what reading shards raises: a connection that is gone, a file that is cut short or no such file at all."""
    import pyarrow

    return (OSError, EOFError, tarfile.TarError, pyarrow.ArrowException, *hub.failures())


def why(error: BaseException) -> str:
    """Return why a read failed, in one short line."""
    said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"can't be read ({said})"
