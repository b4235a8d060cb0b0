"""A few static shapes for a split's utterances, with the least padding.

In: input lengths and label counts. Out: the shapes, and which of them each row goes to. A Gaudi compiles one graph for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CANDIDATES = 512  # lengths that a bucket may end at; more of them change the plan's cost by less than a thousandth
MOST_OF_BOTH = 64  # lengths, and label counts, where a plan is over both: the work of planning grows with the square of each
DECODER_SHARE = 0.3  # of the longest row's work with a decoder, unless batching.label_share says otherwise
WORTH_A_SHAPE = 0.005  # share of the padded work that one more shape has to save: each costs a compilation


class Shape(NamedTuple):
    """What every tensor of a batch is padded to: input length (samples, or frames of features), labels, rows."""

    length: int
    labels: int
    rows: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a split's rows: input lengths and label counts, int64 [rows].

    `length_of` turns seconds into an input length. `unit` is what bucket ends are rounded up to. `label_share` is the share of
    a row's work that grows with its labels: 0 for CTC, whose labels cost nothing. `audio` is
    how much of each length is audio; None: all of it.
    """

    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    length_of: Callable[[float], int]
    unit: int = 1
    label_share: float = 0.0
    audio: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Plan:
    """A few shapes, and the shape that each row goes to (int64 [rows], positions in `shapes`)."""

    shapes: tuple[Shape, ...]
    shape_of: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    world_size: int = 1
    audio: NDArray[np.int64] | None = None
    """How much of each row's length is audio; None: all of it. Whisper's window is as long for whatever it holds."""

    @cached_property
    def num_batches(self) -> tuple[int, ...]:
        """Batches an epoch of each shape, a multiple of the number of ranks."""
        import numpy as np

        counts = np.bincount(self.shape_of, minlength=len(self.shapes))
        return tuple(_num_batches(int(n), shape.rows, self.world_size) for n, shape in zip(counts, self.shapes, strict=True))

    @property
    def padding_efficiency(self) -> float:
        """The share of the planned input that is audio: fill-up rows count as padding."""
        padded = sum(n * shape.rows * shape.length for n, shape in zip(self.num_batches, self.shapes, strict=True))
        real = self.lengths if self.audio is None else self.audio
        return float(real.sum() / padded) if padded else 0.0

    @property
    def label_efficiency(self) -> float:
        """The share of the planned places for labels that have one: fill-up rows count as padding."""
        padded = sum(n * shape.rows * shape.labels for n, shape in zip(self.num_batches, self.shapes, strict=True))
        return float(self.labels.sum() / padded) if padded else 0.0


def plan_buckets(
    sizes: Sizes,
    *,
    max_shapes: int,
    budget: float,
    world_size: int = 1,
    attention_share: float = 0.0,
    most_rows: int | None = None,
    label_share: float = 0.0,
    label_unit: int = 1,
) -> Plan:
    """Return the plan of at most `max_shapes` shapes with the least padded work, by dynamic programming.

    The work of a row padded to length w is (1 - attention_share) w + attention_share w^2 / longest: the second term
    is self-attention's. With `label_share`, that is the encoder's, and a row padded to l labels costs
    (1 - label_share) of it + label_share of l / most labels, in units of the longest row's encoder. `budget` is the padded
    input length of a batch: a bucket that ends at w has floor(budget / w) rows, at least one, and no more than an even share
    of its utterances over its batches. Rows that fill a batch up count as work. A shape is added only where it saves 0.5 % of it.

    Rows are split by length first, and then, where labels cost anything, those of one bucket by labels; each such cell is as long
    and as wide as the rows in it. Of all such partitions, between candidate lengths and label counts, the cheapest is taken.
    """
    import numpy as np

    lengths, labels = _rounded_up(sizes.lengths, sizes.unit), _rounded_up(np.maximum(sizes.labels, 1), label_unit)
    if label_share:
        ends, widths = _candidates(lengths, MOST_OF_BOTH), _candidates(labels, MOST_OF_BOTH)
        if len(ends) == 1:  # a model whose input is always as long
            widths = _candidates(labels, MOST_CANDIDATES)
    else:
        ends, widths = _candidates(lengths, MOST_CANDIDATES), np.array([labels.max()])
    work = (1 - attention_share) * ends + attention_share * ends.astype(float) ** 2 / ends[-1]
    most = np.maximum(1, (budget // ends).astype(np.int64))
    cells = _Cells(
        counts=_counted(np.searchsorted(ends, lengths), np.searchsorted(widths, labels), (len(ends), len(widths))),
        length_work=(1 - label_share) * work,
        label_work=label_share * work[-1] * widths / widths[-1],
        most_rows=most if most_rows is None else np.minimum(most, most_rows),
        world_size=world_size,
    )
    shape_of, start = np.empty(len(lengths), np.int64), -1
    made = []
    for end, columns in _cheapest(cells, max_shapes):
        inside = (lengths > start) & (lengths <= ends[end])
        column = np.searchsorted(widths[columns], labels)
        for i in range(len(columns)):
            rows = np.flatnonzero(inside & (column == i))
            made.append((int(lengths[rows].max()), int(labels[rows].max()), rows))
        start = ends[end]
    made.sort(key=lambda cell: cell[:2])
    for position, (_, _, rows) in enumerate(made):
        shape_of[rows] = position
    ends_of_shapes = np.array([length for length, _, _ in made])
    return planned(
        sizes, ends_of_shapes, shape_of, lambda length: max(1, int(budget // length)), most_rows, world_size, label_unit=label_unit
    )


def _rounded_up(values: NDArray[np.int64], unit: int) -> NDArray[np.int64]:
    return -(-values // unit) * unit


def _candidates(rounded: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    import numpy as np

    ends = np.unique(rounded)
    if len(ends) <= most:
        return ends
    shares = np.linspace(0, 1, most)
    return np.unique(np.quantile(np.sort(rounded), shares, method="higher"))


def _counted(lines: NDArray[np.int64], columns: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    import numpy as np

    return np.bincount(lines * size[1] + columns, minlength=size[0] * size[1]).reshape(size)


@dataclass(frozen=True)
class _Cells:
    """Rows counted by candidate length (line) and candidate label count (column), and what padding some of them alike costs.

    `length_work` and `most_rows` are of each line, `label_work` of each column.
    """

    counts: NDArray[np.int64]
    length_work: NDArray[np.float64]
    label_work: NDArray[np.float64]
    most_rows: NDArray[np.int64]
    world_size: int

    @cached_property
    def _longest(self) -> NDArray[np.int64]:
        """[j, a, b]: the last line up to j that has rows in the columns a to b; -1 for none."""
        import numpy as np

        lines = np.arange(len(self.counts))[:, None, None]
        met = np.where(_sums(self.counts) > 0, lines, -1)
        return np.maximum.accumulate(met, axis=0)

    def costs(self, end: int) -> NDArray[np.float64]:
        """Return the work [i, a, b] of the rows of lines i to `end` and columns a to b in one shape; infinite where there are none."""
        import numpy as np

        inside = self.counts[end::-1].cumsum(axis=0)[::-1]  # [i, column]: rows of lines i to end
        count = np.maximum(_sums(inside), 0)
        longest = self._longest[end]
        widest = np.maximum.accumulate(np.where(inside > 0, np.arange(inside.shape[1]), 0), axis=1)  # [i, b]
        batches = -(-count // (self.most_rows[longest] * self.world_size)) * self.world_size
        rows = batches * -(-count // np.maximum(batches, 1))
        work = self.length_work[longest] + self.label_work[widest][:, None, :]
        return np.where(count > 0, rows * work, np.inf)


def _sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums [i, a, b] over columns a to b of each line, not above 0 where b is less than a."""
    import numpy as np

    before = np.concatenate([np.zeros((len(counts), 1), np.int64), counts.cumsum(axis=1)], axis=1)
    sums: NDArray[np.int64] = before[:, None, 1:] - before[:, :-1, None]
    return sums


def _cheapest(cells: _Cells, max_shapes: int) -> list[tuple[int, list[int]]]:
    """Return the least costly split of all rows: the last line of each bucket of lengths, and the last columns of its cells."""
    import numpy as np

    size, columns = cells.counts.shape
    most = min(max_shapes, columns)
    # alike[m][i, j]: least cost of the lines i to j in m + 1 cells of one bucket
    alike = np.full((most, size, size), np.inf)
    for end in range(size):
        for m, layer in enumerate(_by_columns(cells.costs(end), most)[0]):
            alike[m, : end + 1, end] = layer[:, -1]
    best = [alike[0, 0]]  # best[k][j]: least cost of all lines up to j in k + 1 cells
    cuts: list[NDArray[np.int64]] = [np.zeros((size, 2), np.int64)]  # [j]: where its last bucket begins, and that bucket's cells less one
    for k in range(1, min(max_shapes, size * columns)):
        # one bucket more, of m + 1 cells, from line i to line j; and everything in one
        options = [best[k - m - 1][:-1, None] + alike[m, 1:, :] for m in range(min(most, k))]
        whole = [alike[k, :1, :]] if k < most else []
        offered = np.concatenate([*options, *whole])
        taken = offered.argmin(axis=0)
        best.append(offered.min(axis=0))
        m, line = np.divmod(taken, max(size - 1, 1))
        in_one = taken >= len(options) * (size - 1)
        cuts.append(np.stack([np.where(in_one, 0, line + 1), np.where(in_one, k, m)], axis=1))
    totals = [row[-1] for row in best]
    k = next(k for k, total in enumerate(totals) if total <= min(totals) * (1 + WORTH_A_SHAPE))
    buckets, end = [], size - 1
    while end >= 0:
        begin, m = cuts[k][end].tolist()
        buckets.append((end, _ends_of_columns(cells.costs(end)[begin : begin + 1], m)))
        end, k = begin - 1, k - m - 1
    return buckets[::-1]


def _by_columns(cost: NDArray[np.float64], most: int) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
    """Return for costs [i, a, b] the least [i, b] of columns up to b in 1, 2, ... `most` cells, and where the last of 2, ... begins."""
    best, cuts = [cost[:, 0, :]], []
    for _ in range(1, most):
        options = best[-1][:, :-1, None] + cost[:, 1:, :]
        cuts.append(options.argmin(axis=1) + 1)
        best.append(options.min(axis=1))
    return best, cuts


def _ends_of_columns(cost: NDArray[np.float64], m: int) -> list[int]:
    """Return the last columns of the m + 1 cells that split one bucket at the least cost."""
    ends = [cost.shape[2] - 1]
    for layer in reversed(_by_columns(cost, m + 1)[1]):
        ends.append(int(layer[0, ends[-1]]) - 1)
    return ends[::-1]


def planned(
    sizes: Sizes,
    lengths: NDArray[np.int64],
    shape_of: NDArray[np.int64],
    rows_at: Callable[[int], int],
    most_rows: int | None,
    world_size: int,
    labels: int | None = None,
    label_unit: int = 1,
) -> Plan:
    import numpy as np

    shapes = []
    for i, length in enumerate(lengths.tolist()):
        inside = shape_of == i
        count = int(inside.sum())
        most = rows_at(length) if most_rows is None else min(rows_at(length), most_rows)
        rows = -(-count // _num_batches(count, most, world_size))
        widest = -(-int(np.max(sizes.labels[inside], initial=1)) // label_unit) * label_unit
        shapes.append(Shape(length, widest if labels is None else labels, rows))
    return Plan(tuple(shapes), shape_of, sizes.lengths, sizes.labels, world_size, sizes.audio)


def _num_batches(count: int, rows: int, world_size: int) -> int:
    return -(-count // (rows * world_size)) * world_size
