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
WORTH_A_SHAPE = 0.005  # share of the padded work that one more shape has to save: each costs a compilation


class Shape(NamedTuple):
    """What every tensor of a batch is padded to: input length (samples, or frames of features), labels, rows."""

    length: int
    labels: int
    rows: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a split's rows: input lengths and label counts, int64 [rows].

    `length_of` turns seconds into an input length. `unit` is what bucket ends are rounded up to.
    """

    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    length_of: Callable[[float], int]
    unit: int = 1


@dataclass(frozen=True)
class Plan:
    """A few shapes, and the shape that each row goes to (int64 [rows], positions in `shapes`)."""

    shapes: tuple[Shape, ...]
    shape_of: NDArray[np.int64]
    lengths: NDArray[np.int64]
    world_size: int = 1

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
        return float(self.lengths.sum() / padded) if padded else 0.0


def plan_buckets(
    sizes: Sizes, *, max_shapes: int, budget: float, world_size: int = 1, attention_share: float = 0.0, most_rows: int | None = None
) -> Plan:
    """Return the plan of at most `max_shapes` shapes with the least padded work, by dynamic programming.

    The work of a row padded to length w is (1 - attention_share) w + attention_share w^2 / longest: the second term
    is self-attention's. `budget` is the padded input length of a batch: a bucket that ends at w has floor(budget / w)
    rows, at least one, and no more than an even share of its utterances over its batches. Rows that fill a batch up
    count as work. A shape is added only where it saves 0.5 % of it.
    """
    import numpy as np

    rounded = -(-sizes.lengths // sizes.unit) * sizes.unit
    ends = _candidates(rounded)
    reached = np.searchsorted(np.sort(rounded), ends, side="right")  # rows no longer than each end
    before = np.concatenate([[0], reached])
    work = (1 - attention_share) * ends + attention_share * ends.astype(float) ** 2 / ends[-1]
    most = np.maximum(1, (budget // ends).astype(np.int64))
    if most_rows is not None:
        most = np.minimum(most, most_rows)
    # cost[i, j]: rows longer than end i-1 and no longer than end j in one bucket
    count = np.maximum(reached[None, :] - before[:-1, None], 0)
    batches = -(-count // (most * world_size)[None, :]) * world_size
    rows = batches * -(-count // np.maximum(batches, 1))
    cost = np.where(np.tri(len(ends), k=-1, dtype=bool), np.inf, rows * work[None, :])
    shapes = [ends[j] for j in _cheapest_ends(cost, max_shapes)]
    shape_of = np.searchsorted(shapes, rounded)
    return planned(sizes, np.array(shapes), shape_of, lambda length: max(1, int(budget // length)), most_rows, world_size)


def _candidates(rounded: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    ends = np.unique(rounded)
    if len(ends) <= MOST_CANDIDATES:
        return ends
    shares = np.linspace(0, 1, MOST_CANDIDATES)
    return np.unique(np.quantile(np.sort(rounded), shares, method="higher"))


def _cheapest_ends(cost: NDArray[np.float64], max_shapes: int) -> list[int]:
    """Return the positions of the bucket ends that split all rows at the least cost; the last is always among them."""

    size = len(cost)
    best = [cost[0]]  # best[k][j]: least cost of all rows up to end j in k + 1 buckets
    cut: list[NDArray[np.int64]] = []
    for _ in range(1, min(max_shapes, size)):
        options = best[-1][:-1, None] + cost[1:, :]  # one bucket more, from after end i to end j
        cut.append(options.argmin(axis=0))
        best.append(options.min(axis=0))
    totals = [row[-1] for row in best]
    k = next(k for k, total in enumerate(totals) if total <= min(totals) * (1 + WORTH_A_SHAPE))
    ends = [size - 1]
    for layer in reversed(cut[:k]):
        ends.append(int(layer[ends[-1]]))
    return ends[::-1]


def planned(
    sizes: Sizes,
    lengths: NDArray[np.int64],
    shape_of: NDArray[np.int64],
    rows_at: Callable[[int], int],
    most_rows: int | None,
    world_size: int,
    labels: int | None = None,
) -> Plan:
    import numpy as np

    shapes = []
    for i, length in enumerate(lengths.tolist()):
        inside = shape_of == i
        count = int(inside.sum())
        most = rows_at(length) if most_rows is None else min(rows_at(length), most_rows)
        rows = -(-count // _num_batches(count, most, world_size))
        widest = int(np.max(sizes.labels[inside], initial=1))
        shapes.append(Shape(length, widest if labels is None else labels, rows))
    return Plan(tuple(shapes), shape_of, sizes.lengths, world_size)


def _num_batches(count: int, rows: int, world_size: int) -> int:
    return -(-count // (rows * world_size)) * world_size
