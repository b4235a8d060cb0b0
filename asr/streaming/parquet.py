"""Parquet files as shards: their row groups, and rows of one.

In: a file with an audio and a text column. Out: units, and samples a few rows at a time, so that memory doesn't grow with a row group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from asr.streaming.shards import ON_HUB, Ref, Sample, Unit, opened, pauses, read_errors

ROWS_AT_ONCE = 32
FOOTERS_AT_ONCE = 8
REMOTE_BUFFER_BYTES = 4 << 20
"""Of each column, asked of the hub at once."""


@dataclass(frozen=True)
class ParquetFormat:
    """Which columns hold what; `id_column` None makes ids of shard and row."""

    audio_column: str
    text_column: str
    speaker_column: str | None = None
    id_column: str | None = None

    def samples(self, unit: Unit, start: Ref) -> Iterator[Sample]:
        """Yield the rows of a row group from a place on. Rows before it are passed over: Parquet has no way to a row in a group."""
        import pyarrow.parquet

        columns = [name for name in vars(self).values() if name is not None]
        row = 0
        with opened(unit.shard) as source:
            remote = {"buffer_size": REMOTE_BUFFER_BYTES} if unit.shard.startswith(ON_HUB) else {}
            file = pyarrow.parquet.ParquetFile(source, **remote)
            groups = [unit.group or 0]
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=list(dict.fromkeys(columns)), use_threads=False):
                last = row + batch.num_rows if unit.last is None else min(row + batch.num_rows, unit.last)
                for number in range(max(row, start.row, unit.first), last):
                    yield self._sample(unit, start.unit, number, batch, number - row)
                row += batch.num_rows
                if unit.last is not None and row >= unit.last:
                    return

    def _sample(self, unit: Unit, number: int, row: int, batch: Any, at: int) -> Sample:
        def cell(column: str | None) -> Any:
            return None if column is None else batch.column(column)[at].as_py()

        text, held, speaker, name = cell(self.text_column), cell(self.audio_column), cell(self.speaker_column), cell(self.id_column)
        audio = held.get("bytes") if isinstance(held, dict) else held
        problem = "" if isinstance(audio, bytes) else f"{unit.shard}, row {row}: column {self.audio_column!r} holds no audio bytes."
        ids = f"{stem(unit.shard)}-{unit.group or 0}-{row}" if name is None else str(name)
        whose = "" if speaker is None else str(speaker)
        ref, after = Ref(number, row), Ref(number, row + 1)
        return Sample(ref, after, ids, text or "", audio if isinstance(audio, bytes) else b"", whose, problem)


def stem(shard: str) -> str:
    """Return the name of a shard without folder and ending."""
    return shard.rpartition("/")[2].partition(".")[0]


class Footer(NamedTuple):
    """What the end of a file says: its Arrow schema, and the rows of each row group."""

    schema: Any
    row_groups: tuple[int, ...]


def footer(shard: str) -> Footer:
    """Return the facts in a file's footer; raises what reading raises."""
    import pyarrow.parquet

    with opened(shard) as source:
        file = pyarrow.parquet.ParquetFile(source)
        return Footer(file.schema_arrow, tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)))


def footers(shards: Sequence[str]) -> list[Footer | BaseException]:
    """Return each file's footer, or why it can't be read after several tries; some at a time, since each asks the hub a few times."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(_footer_or_error, shards))


def _footer_or_error(shard: str) -> Footer | BaseException:
    for pause_seconds in pauses():
        try:
            return footer(shard)
        except read_errors() as error:
            found = error
        time.sleep(pause_seconds if shard.startswith(ON_HUB) else 0)
    return found
