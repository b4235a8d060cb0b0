"""Label ids of a split: tokenised once, stored flat, the same for every worker.

In: lists of token ids. Out: one small file, and what CTC needs to know of each list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asr.files import written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Labels:
    """Row i is `ids[ends[i-1]:ends[i]]`, int32 [labels]."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[ArrayLike]) -> Labels:
        import numpy as np

        listed = [np.asarray(row, np.int32) for row in rows]
        lengths = np.array([len(row) for row in listed], np.int64)
        return cls(np.concatenate([*listed, np.empty(0, np.int32)]), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.ids[self.ends[row - 1] if row else 0 : self.ends[row]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of labels of each row, int64 [rows]."""
        import numpy as np

        return np.diff(self.ends, prepend=0)

    def frames_needed(self) -> NDArray[np.int64]:
        """Return the least frames by which CTC can spell each row, int64 [rows]: a blank stands between equal neighbours."""
        import numpy as np

        same = np.concatenate([[0], self.ids[1:] == self.ids[:-1]]).astype(np.int64)
        starts = self.ends - self.lengths
        same[starts[starts < len(same)]] = 0  # the last label of a row is no neighbour of the next row's first
        summed = np.concatenate([[0], np.cumsum(same)])
        needed: NDArray[np.int64] = self.lengths + summed[self.ends] - summed[starts]
        return needed

    def select(self, rows: Sequence[int]) -> Labels:
        """Return the labels of some rows, in their order."""
        return Labels.of([self[row] for row in rows])

    def save(self, path: Path) -> None:
        import numpy as np

        with written(path) as aside, aside.open("wb") as file:
            np.savez(file, ids=self.ids, ends=self.ends)

    @classmethod
    def load(cls, path: Path) -> Labels:
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["ids"], arrays["ends"])
