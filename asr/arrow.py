"""Cells of Arrow files: the encoded audio that a hub dataset keeps beside its text.

In: an Arrow file as datasets writes it (the IPC stream format), a column and a row. Out: the bytes of one audio file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.errors import DataError

if TYPE_CHECKING:
    import pyarrow


class ArrowFile:
    """A memory-mapped table: opening reads where its record batches lie, a cell reads its own bytes only."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        with _named(path):
            self.table: pyarrow.Table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
        self._batches = self.table.to_batches()
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def cell(self, column: str, row: int) -> Any:
        """Return one value as a Python object."""
        batch = bisect_right(self._ends, row)
        start = self._ends[batch - 1] if batch else 0
        return self._batches[batch].column(column)[row - start].as_py()


@lru_cache(maxsize=64)
def opened(path: Path) -> ArrowFile:
    """Return the table of a file, opened once a process; raise DataError when it is no Arrow file."""
    return ArrowFile(path)


def audio_bytes(path: Path, column: str, row: int) -> bytes:
    """Return the encoded audio in a cell of type {bytes, path}; raise DataError when it holds none."""
    table = opened(path)
    with _named(path):
        cell = table.cell(column, row)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise DataError(f"{path}, row {row}: column {column!r} holds no audio bytes.")
    return content


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into a DataError that names the file."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowInvalid, IndexError, KeyError) as error:
        raise DataError(f"{path} can't be read as an Arrow file ({' '.join(str(error).split())[:200]}).") from error
