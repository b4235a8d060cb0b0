"""Which utterances share a batch, in what shape and in what order.

In: the sizes of a split and a batch size. Out: lists of slots, the same for the same seed and epoch. `buckets` and
`fixed` fill every batch up to one of a few planned shapes; `longest` pads each batch to its longest row, as usual elsewhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asr.config import bounded
from asr.errors import ConfigError
from asr.planning import Plan, Shape, Sizes, plan_buckets, planned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POOL_BATCHES = 50  # batches sorted together: as in transformers' LengthGroupedSampler, enough to leave little padding
MOST_GRAPHS = 10  # what optimum-habana's ModuleCacher keeps, whatever max_hpu_graphs says (trainer.py:512)
FILLER = -1


class Slot(NamedTuple):
    """One row of a batch: a row number, or FILLER; the shape of its batch (None: the longest row decides); the epoch.

    `rows_per_rank` is how many rows that are no fillers each of several ranks has in this step, on average: what a mean
    loss is divided by, so that an utterance weighs as much on whichever rank it is. `labels_per_rank` is how many labels these
    rows have, likewise. None with one rank.
    """

    row: int
    shape: Shape | None
    epoch: int
    rows_per_rank: float | None = None
    labels_per_rank: float | None = None


class Batches:
    """What every batch sampler of ours has: an epoch. It has no `batch_size`, since batches differ."""

    epoch = 0
    world_size = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PlannedBatches(Batches):
    """Batches of planned shapes; every row comes once an epoch, and FILLER where a batch has room left.

    Training (`seed` given): rows are shuffled within their bucket and dealt evenly over its batches, so that no batch
    is nearly empty; batches of one shape come in runs of `world_size`, one for each rank (accelerate deals batch i to
    rank i mod world size); runs are shuffled across buckets with the largest shape first, so that memory runs out at
    the start or never. `set_epoch` reshuffles. Evaluation (`seed` None): longest first, no shuffling.
    """

    def __init__(self, plan: Plan, *, seed: int | None = None) -> None:
        self.plan = plan
        self.seed = seed
        self.world_size = plan.world_size

    def __len__(self) -> int:
        return sum(self.plan.num_batches)

    def __iter__(self) -> Iterator[list[Slot]]:
        if self.seed is None:
            for position in reversed(range(len(self.plan.shapes))):
                for run in self._runs(position, None):
                    yield from run
            return
        dice = random.Random(f"{self.seed}/{self.epoch}")
        runs = [run for position in range(len(self.plan.shapes)) for run in self._runs(position, dice)]
        dice.shuffle(runs)
        largest = max(range(len(runs)), key=lambda i: _size(runs[i]))
        runs[0], runs[largest] = runs[largest], runs[0]
        for run in runs:
            yield from run

    def _runs(self, position: int, dice: random.Random | None) -> Iterator[list[list[Slot]]]:
        """Yield the batches of one shape, as many at a time as there are ranks."""
        import numpy as np

        plan, shape = self.plan, self.plan.shapes[position]
        rows = np.flatnonzero(plan.shape_of == position)
        if dice is None:
            rows = rows[np.argsort(-plan.lengths[rows], kind="stable")]
        numbers = rows.tolist()
        if dice is not None:
            dice.shuffle(numbers)
        count = plan.num_batches[position]
        least, more = divmod(len(numbers), count) if count else (0, 0)
        start, batches = 0, []
        for i in range(count):
            end = start + least + (i < more)
            filled = [*numbers[start:end], *[FILLER] * (shape.rows - (end - start))]
            batches.append([Slot(row, shape, self.epoch) for row in filled])
            start = end
        return (weighed(batches[i : i + plan.world_size], plan.labels) for i in range(0, count, plan.world_size))


def weighed(run: list[list[Slot]], labels: Sequence[int] | NDArray[np.int64] | None) -> list[list[Slot]]:
    """Return the batches that several ranks take in one step with the number of their rows that count, and of these rows' labels.

    `labels` has the number of labels of every row of the split; None where nobody asks for them.
    """
    if len(run) == 1:
        return run
    rows = [slot.row for batch in run for slot in batch if slot.row != FILLER]
    num_rows = len(rows) / len(run)
    num_labels = None if labels is None else sum(int(labels[row]) for row in rows) / len(run)
    return [[slot._replace(rows_per_rank=num_rows, labels_per_rank=num_labels) for slot in batch] for batch in run]


def _size(run: list[list[Slot]]) -> tuple[int, ...]:
    shape = run[0][0].shape
    return (shape.length * shape.rows, shape.length, shape.labels * shape.rows) if shape else ()


class LengthGroupedBatches(Batches):
    """Batches of rows of like length, padded to the longest by whoever collates them.

    Every row comes once an epoch. Rows are shuffled, sorted by length within pools of 50 batches, cut into
    batches, and the batches are shuffled with the longest first, so that memory runs out at the start or never.
    `set_epoch` reshuffles; (seed, epoch) decides everything.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows: int,
        *,
        seed: int = 0,
        group_by_length: bool = True,
        drop_last: bool = False,
        world_size: int = 1,
        labels: Sequence[int] | None = None,
    ) -> None:
        self.lengths = lengths
        self.labels = labels
        self.rows = rows
        self.seed = seed
        self.group_by_length = group_by_length
        self.drop_last = drop_last
        self.world_size = world_size

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.rows)
        return _up_to(full + (1 if rest and not self.drop_last else 0), self.world_size)

    def __iter__(self) -> Iterator[list[Slot]]:
        return _for_all_ranks(self._batches(), self.lengths, self.labels, self.rows, self.epoch, self.world_size)

    def _batches(self) -> list[list[int]]:
        dice = random.Random(f"{self.seed}/{self.epoch}")
        rows = list(range(len(self.lengths)))
        dice.shuffle(rows)
        if self.drop_last:
            rows = rows[: len(rows) // self.rows * self.rows]
        if not self.group_by_length:
            return list(_cut(rows, self.rows))
        batches = [
            batch
            for pool in _cut(rows, POOL_BATCHES * self.rows)
            for batch in _cut(sorted(pool, key=self.lengths.__getitem__, reverse=True), self.rows)
        ]
        dice.shuffle(batches)
        longest = max(range(len(batches)), key=lambda i: self.lengths[batches[i][0]], default=0)
        if batches:
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches


class SortedBatches(Batches):
    """Batches for evaluation: every row once, longest first, no shuffling."""

    def __init__(self, lengths: Sequence[int], rows: int, *, world_size: int = 1, labels: Sequence[int] | None = None) -> None:
        self.lengths = lengths
        self.labels = labels
        self.rows = rows
        self.world_size = world_size

    def __len__(self) -> int:
        return _up_to(-(-len(self.lengths) // self.rows), self.world_size)

    def __iter__(self) -> Iterator[list[Slot]]:
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__, reverse=True)
        return _for_all_ranks(list(_cut(order, self.rows)), self.lengths, self.labels, self.rows, self.epoch, self.world_size)


def _for_all_ranks(
    batches: list[list[int]], lengths: Sequence[int], labels: Sequence[int] | None, rows: int, epoch: int, world_size: int
) -> Iterator[list[Slot]]:
    """Yield slots; with several ranks every batch has all its rows and every rank as many batches, fillers where there are none.

    Otherwise one rank would wait for others that have no batch, or gather tensors of another size.
    """
    filled = []
    for batch in batches:
        fillers = [FILLER] * (rows - len(batch) if world_size > 1 else 0)
        filled.append([Slot(row, None, epoch) for row in (*batch, *fillers)])
    for _ in range(_up_to(len(batches), world_size) - len(batches)):
        shape = Shape(max(lengths[row] for row in batches[-1]), 1, rows)
        filled.append([Slot(FILLER, shape, epoch)] * rows)
    for i in range(0, len(filled), world_size):
        yield from weighed(filled[i : i + world_size], labels)


def _up_to(count: int, world_size: int) -> int:
    return -(-count // world_size) * world_size


def _cut(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


@dataclass(kw_only=True)
class Batching:
    """What every way of batching has: a sampler for training, one for evaluation, and what it can't hold."""

    STATIC = True

    def check(self, args: Mapping[str, Any]) -> None:
        """Raise ConfigError for training arguments that these batches contradict; keys are those of the trainer node."""
        strategy = args.get("train_sampling_strategy")
        if strategy not in (None, "random", "group_by_length"):
            raise ConfigError(
                f"{strategy!r} is not one of random, group_by_length: batches are made here.", key="trainer.args.train_sampling_strategy"
            )
        for name, why in (
            ("group_by_length", "rows of like length share a batch already"),
            ("train_sampling_strategy", "rows of like length share a batch already"),
            ("dataloader_drop_last", "every batch is full already: room left is filled up with rows that count for nothing"),
        ):
            if self.STATIC and args.get(name) not in (None, False, "random"):
                raise ConfigError(
                    f"can't be {str(args[name]).lower()} with static shapes: {why}; leave it out, or take batching=longest.",
                    key=f"trainer.args.{name}",
                )

    @property
    def most_shapes(self) -> int | None:
        """How many shapes training can meet; None: no bound is known."""
        return None

    @property
    def most_seconds(self) -> float | None:
        """The longest utterance that fits; None: any."""
        return None

    @property
    def most_labels(self) -> int | None:
        """The longest transcript that fits, in labels; None: any."""
        return None

    def train(self, sizes: Sizes, batch_size: int, *, seed: int, world_size: int, args: Any) -> Any:
        """Return the batch sampler of training; `args` are the training arguments."""
        return PlannedBatches(self.plan(sizes, batch_size, world_size=world_size), seed=seed)

    def evaluate(self, sizes: Sizes, batch_size: int, *, world_size: int) -> Any:
        """Return the batch sampler of an evaluation."""
        return PlannedBatches(self.plan(sizes, batch_size, world_size=world_size))

    def plan(self, sizes: Sizes, batch_size: int, *, world_size: int = 1) -> Plan:
        raise NotImplementedError

    def shapes_of_stream(
        self, sizes: Sizes, batch_size: int, *, longest_seconds: float | None, most_labels: int | None
    ) -> tuple[Shape, ...]:
        """Return the shapes for a stream of which `sizes` are a sample; empty where the longest row of a batch decides.

        All of a stream that is no longer than `longest_seconds` fits. `most_labels` is what the model takes at most.
        """
        return ()


@dataclass(kw_only=True)
class Buckets(Batching):
    """A few static shapes with the least padding, planned from the manifest; see `plan_buckets` for the cost model."""

    max_shapes: int = bounded(8, at_least=1, at_most=64)
    """Most shapes (length, labels, rows), for training and for evaluation each; at most 10 with HPU training graphs."""
    reference_seconds: float | None = bounded(None, above=0)
    """A batch holds as many padded seconds as batch_size utterances of this length; null takes the longest bucket's."""
    attention_share: float = bounded(0.0, at_least=0, at_most=1)
    """Share of the longest utterance's work that grows with the square of the length; 0 counts padded seconds alone."""
    max_batch_size: int | None = bounded(None, at_least=1)
    """Most rows of a batch, whatever the budget of seconds; null sets no bound."""
    label_share: float | None = bounded(None, at_least=0, at_most=1)
    """Share of the largest row's work that grows with its labels: shapes differ in labels too where it isn't 0.
    null takes 0 for CTC, and 0.3 for a model with a decoder."""
    label_unit: int = bounded(1, at_least=1)
    """The labels of a shape are rounded up to a multiple of this."""
    plan_file: str | None = None
    """With dataset.streaming: manifest/train.plan.json of an earlier streamed run, for its lengths and labels; null plans from a sample."""

    @property
    def most_shapes(self) -> int:
        return self.max_shapes

    def plan(self, sizes: Sizes, batch_size: int, *, world_size: int = 1) -> Plan:
        return plan_buckets(
            sizes,
            max_shapes=self.max_shapes,
            budget=self._budget(int(sizes.lengths.max()), sizes, batch_size),
            world_size=world_size,
            attention_share=self.attention_share,
            most_rows=self.max_batch_size,
            label_share=sizes.label_share if self.label_share is None else self.label_share,
            label_unit=self.label_unit,
        )

    def _budget(self, longest: int, sizes: Sizes, batch_size: int) -> int:
        """Return the padded input length of a batch."""
        longest = -(-longest // sizes.unit) * sizes.unit
        return batch_size * (longest if self.reference_seconds is None else sizes.length_of(self.reference_seconds))

    def shapes_of_stream(
        self, sizes: Sizes, batch_size: int, *, longest_seconds: float | None, most_labels: int | None
    ) -> tuple[Shape, ...]:
        if longest_seconds is not None:
            sizes = with_row(sizes, sizes.length_of(longest_seconds))
        edges = saved_edges(self.plan_file) if self.plan_file else roomier(self.plan(sizes, batch_size).shapes, most_labels)
        budget = self._budget(max(shape.length for shape in edges), sizes, batch_size)
        most = self.max_batch_size or budget
        return tuple(shape._replace(rows=max(1, min(budget // shape.length, most))) for shape in edges)


@dataclass(kw_only=True)
class Fixed(Batching):
    """One static shape, as the published script pads: every utterance to the same length and number of labels."""

    seconds: float | None = bounded(20.0, above=0)
    """Longer utterances are left out, counted and listed; null leaves out none and pads to the longest, which is the only
    length there is where a model's input is always as long."""
    labels: int = bounded(500, at_least=1)
    """Utterances with more labels are left out, counted and listed."""

    @property
    def most_shapes(self) -> int:
        return 1

    @property
    def most_seconds(self) -> float | None:
        return self.seconds

    @property
    def most_labels(self) -> int:
        return self.labels

    def plan(self, sizes: Sizes, batch_size: int, *, world_size: int = 1) -> Plan:
        import numpy as np

        longest = -(-int(sizes.lengths.max()) // sizes.unit) * sizes.unit
        length = np.array([longest if self.seconds is None else sizes.length_of(self.seconds)])
        shape_of = np.zeros(len(sizes.lengths), np.int64)
        return planned(sizes, length, shape_of, lambda _: batch_size, None, world_size, self.labels)

    def shapes_of_stream(
        self, sizes: Sizes, batch_size: int, *, longest_seconds: float | None, most_labels: int | None
    ) -> tuple[Shape, ...]:
        sizes = sizes if longest_seconds is None else with_row(sizes, sizes.length_of(longest_seconds))
        (shape,) = self.plan(sizes, batch_size).shapes
        return (shape._replace(rows=batch_size),)


LABEL_ROOM = 1.2
"""A stream's longest transcript, over that of a sample: labels cost little, and what doesn't fit is left out."""


def roomier(shapes: Sequence[Shape], most_labels: int | None) -> tuple[Shape, ...]:
    """Return a sample's shapes with more room for labels: of each length, the shape with the most holds any up to `LABEL_ROOM` times
    the most that rows no longer had."""
    wider = []
    for shape in shapes:
        if shape.labels == max(other.labels for other in shapes if other.length == shape.length):
            seen = max(other.labels for other in shapes if other.length <= shape.length)
            shape = shape._replace(labels=min(-int(-seen * LABEL_ROOM // 1), most_labels or 1 << 30))
        wider.append(shape)
    return tuple(wider)


def with_row(sizes: Sizes, length: int) -> Sizes:
    """Return the sizes with one row more, of this length and without labels."""
    import numpy as np

    return replace(sizes, lengths=np.append(sizes.lengths, length), labels=np.append(sizes.labels, 0))


def saved_edges(path: str) -> tuple[Shape, ...]:
    """Return the shapes of a plan that a streamed run has written; raise ConfigError for a file that is none."""
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        shapes = tuple(Shape(*map(int, shape)) for shape in content["shapes"])
        if not shapes or min(map(min, shapes)) < 1:
            raise ValueError("it has no shapes")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} can't be read as a plan ({why}); name a streamed run's manifest/train.plan.json.", key="plan_file"
        ) from error
    return shapes


def groups_by_length(args: Any) -> bool:
    """Say whether training arguments ask for rows of like length in a batch: transformers 5 has another name for it."""
    return bool(vars(args).get("group_by_length")) or vars(args).get("train_sampling_strategy") == "group_by_length"


@dataclass(kw_only=True)
class Longest(Batching):
    """Each batch is padded to its longest row: least padding with trainer.args.group_by_length, a new shape nearly every step."""

    STATIC = False

    def train(self, sizes: Sizes, batch_size: int, *, seed: int, world_size: int, args: Any) -> Any:
        return LengthGroupedBatches(
            sizes.lengths.tolist(),
            batch_size,
            seed=seed,
            group_by_length=groups_by_length(args),
            drop_last=args.dataloader_drop_last,
            world_size=world_size,
            labels=sizes.labels.tolist(),
        )

    def evaluate(self, sizes: Sizes, batch_size: int, *, world_size: int) -> Any:
        return SortedBatches(sizes.lengths.tolist(), batch_size, world_size=world_size, labels=sizes.labels.tolist())
