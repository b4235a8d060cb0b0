"""Whether two tables of utterances are the same data, wherever they lie: a short hash of each.

In: the rows of a split, or the shards of a stream. Out: sixteen digits that change with ids, transcripts, speakers, durations, their
order, the sizes of audio files, and the bytes of some of them. Reading all bytes would take as long as training a part of an epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import arrow
from asr.errors import DataError

if TYPE_CHECKING:
    from asr.sources import Utterance
    from asr.streaming.shards import Unit

READ_WHOLE = 32
"""Files, spread evenly over a split, whose bytes are read: audio that is made anew is seldom the same in all of them."""
MOST_BYTES = 1 << 20
"""Of each, from its beginning."""
DIGITS = 16


def of_rows(rows: Sequence[Utterance], sizes: Sequence[int | None]) -> str:
    """Return the hash of a split's rows; `sizes` are those of their files, None for one that has other rows too."""
    digest = hashlib.sha256()
    for row, size in zip(rows, sizes, strict=True):
        where = None if row.start_seconds is None else round(row.start_seconds, 3)
        _add(digest, [row.id, row.text, row.speaker, round(row.seconds or 0.0, 3), where, size])
    for row in _spread(rows):
        digest.update(_bytes_of(row.audio, row.column, row.row))
    return digest.hexdigest()[:DIGITS]


def of_shards(units: Sequence[Unit]) -> str:
    """Return the hash of what a stream reads: shards by name and size, their parts, and the bytes of some. Of the hub's, names alone."""
    digest = hashlib.sha256()
    shards = list(dict.fromkeys(unit.shard for unit in units))
    sizes = {shard: Path(shard).stat().st_size for shard in shards if Path(shard).is_file()}
    for unit in units:
        here = unit.shard in sizes
        _add(digest, [Path(unit.shard).name if here else unit.shard, sizes.get(unit.shard), unit.group, unit.first, unit.last])
    for shard in _spread([shard for shard in shards if shard in sizes]):
        digest.update(_bytes_of(Path(shard)))
    return digest.hexdigest()[:DIGITS]


def _add(digest: Any, fields: Iterable[object]) -> None:
    digest.update(json.dumps(list(fields)).encode() + b"\n")


def _spread(items: Sequence[Any]) -> Sequence[Any]:
    return items[:: -(-len(items) // READ_WHOLE) or 1]


def _bytes_of(path: Path, column: str = "", row: int | None = None) -> bytes:
    """Return the first bytes of a file or a cell; none of what can't be read, which is met again when its batch comes."""
    with contextlib.suppress(OSError, DataError):
        if row is not None:
            return arrow.audio_bytes(path, column, row)[:MOST_BYTES]
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    return b""
