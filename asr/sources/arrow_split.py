"""One split of a dataset as the Arrow files that datasets keeps of it.

In: the files, in order. Out: cells of its text columns, and for audio the place of each cell, its bytes unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import arrow

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class ArrowSplit:
    """The Arrow files of one split, in order."""

    files: tuple[Path, ...]
    num_rows: int

    @property
    def columns(self) -> list[str]:
        return list(arrow.opened(self.files[0]).table.column_names) if self.files else []

    def kind(self, column: str) -> pyarrow.DataType:
        return arrow.opened(self.files[0]).table.schema.field(column).type

    def values(self, column: str, start: int = 0, end: int | None = None) -> Iterator[Any]:
        """Yield the cells of a column as Python objects, a record batch at a time."""
        for _, _, chunk in self._chunks(column, start, end):
            yield from chunk.to_pylist()

    def places(self, column: str, start: int, end: int) -> Iterator[tuple[Path, int, str | None]]:
        """Yield (Arrow file, row in it, path) for every cell of an audio column; a path only where the cell holds no bytes."""
        for file, first, chunk in self._chunks(column, start, end):
            for row, path in enumerate(_paths(chunk), first):
                yield file, row, path

    def _chunks(self, column: str, start: int, end: int | None) -> Iterator[tuple[Path, int, pyarrow.Array]]:
        """Yield (Arrow file, its row, cells from there on) for the rows from `start` to before `end` of the split."""
        before = 0
        for file in self.files:
            table = arrow.opened(file).table
            first, last = max(start - before, 0), min(table.num_rows, table.num_rows if end is None else end - before)
            before += table.num_rows
            if first >= last:
                continue
            for chunk in table.column(column).slice(first, last - first).iterchunks():
                yield file, first, chunk
                first += len(chunk)


def _paths(chunk: pyarrow.Array) -> Sequence[str | None]:
    """Return the path of each audio cell that has a local one instead of bytes, else None. Bytes are counted, not read."""
    import pyarrow.types

    found: Sequence[str | None] = [None] * len(chunk)
    if is_text(chunk.type):
        found = chunk.to_pylist()
    elif pyarrow.types.is_struct(chunk.type):
        inner = dict(zip((item.name for item in chunk.type), chunk.flatten(), strict=True))
        held, named = inner.get("bytes"), inner.get("path")
        if named is not None and (held is None or held.null_count):
            absent = [True] * len(chunk) if held is None else held.is_null().to_pylist()
            found = [path if without else None for path, without in zip(named.to_pylist(), absent, strict=True)]
    return [path if path and "://" not in path else None for path in found]


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type holds strings."""
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_audio(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type may hold audio: encoded bytes, the path of a file, or datasets' pair of both."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return bool({item.name for item in kind} & {"bytes", "path"})
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or is_text(kind))
