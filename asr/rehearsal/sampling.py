"""The batches of a rehearsal: a few of each shape that the whole job has, cut to a handful of rows.

In: an experiment's own batching, with the sizes of its whole manifest. Out: a batch sampler whose shapes are the job's but for
the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr.batching import FILLER, Batches, Batching, Slot, weighed
from asr.planning import Shape, Sizes

Run = list[list[Slot]]
"""The batches that the ranks take in one step."""


@dataclass(kw_only=True)
class FewBatches(Batching):
    """An experiment's batching, of which each shape is visited a few times."""

    whole: Batching
    most_shapes_met: int = 12
    """Most shapes that are visited, in the order in which the job meets them: dynamic padding has a new one nearly every step."""
    visits: int = 2
    """Batches of each shape: a graph is captured in the first and replayed in the second, and whatever compiles anew for the same
    shape shows. One more comes with a filler where the job has any and these had none."""
    rows: int = 4
    """Most rows of a batch: its first ones, and its last, which is a filler where the batch has any; at least 2."""
    planned: dict[str, Sequence[Shape]] = field(default_factory=dict)
    """The shapes of the whole job, by "train" and "eval", once they were asked for: all that a plan has, else those met."""

    planned_efficiency: dict[str, float] = field(default_factory=dict)
    """The share of the whole job's input that is audio, where there is a plan that says so."""

    def __post_init__(self) -> None:
        assert self.rows > 1 and self.visits > 0, "a batch has a first row and a last, and comes at all"
        self.STATIC = self.whole.STATIC

    def check(self, args: Mapping[str, Any]) -> None:
        self.whole.check(args)

    @property
    def most_shapes(self) -> int | None:
        return self.whole.most_shapes

    @property
    def most_seconds(self) -> float | None:
        return self.whole.most_seconds

    @property
    def most_labels(self) -> int | None:
        return self.whole.most_labels

    def train(self, sizes: Sizes, batch_size: int, *, seed: int, world_size: int, args: Any) -> Any:
        batches = self.whole.train(sizes, batch_size, seed=seed, world_size=world_size, args=args)
        return self._few("train", batches, sizes, world_size, self.visits, args.gradient_accumulation_steps)

    def evaluate(self, sizes: Sizes, batch_size: int, *, world_size: int) -> Any:
        return self._few("eval", self.whole.evaluate(sizes, batch_size, world_size=world_size), sizes, world_size, self.visits)

    def _few(self, role: str, batches: Any, sizes: Sizes, world_size: int, visits: int, accumulated: int = 0) -> Any:
        if not len(batches):
            return batches  # whoever asked for them says why there are none
        visited: Counter[tuple[Shape, ...]] = Counter()
        filled: set[tuple[Shape, ...]] = set()
        met: dict[Shape, None] = {}
        kept: list[Run] = []
        for run in _runs(batches, world_size):
            shapes = tuple(_shape(batch, sizes) for batch in run)
            met |= dict.fromkeys(shapes)
            if shapes not in visited and len(visited) == self.most_shapes_met:
                continue
            fills = any(slot.row == FILLER for batch in run for slot in batch)
            if visited[shapes] < visits or (fills and shapes not in filled):
                visited[shapes] += 1
                filled |= {shapes} if fills else set()
                cut = [_cut(batch, shape, self.rows) for batch, shape in zip(run, shapes, strict=True)]
                kept.append(weighed(cut, sizes.labels))
        plan = getattr(batches, "plan", None)
        self.planned[role] = list(plan.shapes if plan else met)
        if plan:
            self.planned_efficiency[role] = plan.padding_efficiency
        if accumulated:
            kept = _for_two_steps(kept, accumulated)
        return VisitedShapes(kept, world_size, planned=self.planned[role])


class VisitedShapes(Batches):
    """The batches of a rehearsal, the same in every epoch. `planned` has the shapes of the whole job."""

    def __init__(self, runs: Sequence[Run], world_size: int, *, planned: Sequence[Shape]) -> None:
        self.runs = runs
        self.world_size = world_size
        self.planned = planned

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def __iter__(self) -> Iterator[list[Slot]]:
        for run in self.runs:
            yield from run


def _for_two_steps(runs: list[Run], accumulated: int) -> list[Run]:
    """Return the runs, repeated where they are too few for two optimizer steps: a rehearsal resumes after the first."""
    return runs if len(runs) > accumulated else [runs[i % len(runs)] for i in range(2 * accumulated)]


def _runs(batches: Any, world_size: int) -> Iterator[Run]:
    run: Run = []
    for batch in batches:
        run.append([slot if isinstance(slot, Slot) else Slot(slot, None, 0) for slot in batch])  # a team's own sampler may name rows
        if len(run) == world_size:
            yield run
            run = []
    assert not run, f"{len(run)} batches left over for {world_size} ranks"


def _shape(batch: list[Slot], sizes: Sizes) -> Shape:
    """Return what a batch is padded to: its planned shape, or its longest row and its most labels."""
    if batch[0].shape is not None:
        return batch[0].shape
    rows = [slot.row for slot in batch if slot.row != FILLER]
    return Shape(int(sizes.lengths[rows].max()), max(1, int(sizes.labels[rows].max())), len(batch))


def _cut(batch: list[Slot], shape: Shape, most_rows: int) -> list[Slot]:
    """Return the batch's first rows and its last, padded as the whole batch would be."""
    rows = batch if len(batch) <= most_rows else [*batch[: most_rows - 1], batch[-1]]
    return [slot._replace(shape=shape._replace(rows=len(rows))) for slot in rows]
