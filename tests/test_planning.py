"""Plans over lengths and labels: against brute force, against the plan over lengths alone, and what every plan holds."""

import hashlib
import itertools
import random

import numpy as np
import pytest

from asr.batching import FILLER, Buckets, Fixed, LengthGroupedBatches, Longest, PlannedBatches, SortedBatches
from asr.errors import ConfigError
from asr.planning import Sizes

# fmt: off
OVER_LENGTHS = [
    # seed, rows, longest, unit, max_shapes, ranks, attention_share, most rows, batch size; shapes; hash of each row's shape
    ((0, 40, 60, 1, 3, 1, 0.0, None, 4), [(18, 6, 12), (41, 8, 4), (58, 10, 4)], "7dbd635c2214"),
    (
        (1, 500, 900, 7, 8, 1, 0.0, None, 8),
        [(182, 5, 27), (315, 6, 19), (448, 7, 15), (539, 8, 13), (616, 8, 10), (735, 9, 9), (812, 10, 8), (903, 10, 7)],
        "65f95061684c",
    ),
    (
        (2, 500, 900, 7, 8, 3, 0.4, None, 8),
        [(154, 5, 22), (308, 6, 16), (455, 7, 12), (560, 8, 11), (644, 9, 9), (763, 9, 7), (826, 10, 6), (903, 10, 8)],
        "025489850134",
    ),
    (
        (3, 3000, 400000, 320, 8, 8, 0.0, 12, 8),
        [
            (66880, 5, 12),
            (104640, 5, 10),
            (152960, 6, 12),
            (204480, 7, 10),
            (249280, 8, 11),
            (294080, 9, 9),
            (345280, 10, 9),
            (400000, 10, 8),
        ],
        "4fdcf50d77d3",
    ),
    (
        (4, 30000, 400000, 320, 10, 1, 0.25, None, 16),
        [
            (63040, 5, 100),
            (104640, 5, 61),
            (146240, 6, 43),
            (182080, 7, 35),
            (225280, 7, 28),
            (266560, 8, 24),
            (303360, 9, 21),
            (337280, 9, 18),
            (369280, 10, 17),
            (400000, 10, 16),
        ],
        "bd2746e14f4c",
    ),
]
# fmt: on
"""What was planned before there was a label dimension."""


def uniform(seed, rows, longest, unit):
    dice = np.random.default_rng(seed)
    lengths = dice.integers(longest // 20, longest, rows)
    return Sizes(lengths, np.maximum(lengths * 7 // longest + dice.integers(0, 5, rows), 1), int, unit)


def speech(rows=2000, seed=0, **sizes):
    """Return sizes as of speech: labels go with seconds, more or less."""
    dice = np.random.default_rng(seed)
    seconds = np.clip(dice.gamma(6, 2, rows), 1, 20)
    labels = np.maximum(1, seconds * np.clip(dice.normal(3, 0.6, rows), 0.5, 6)).astype(np.int64)
    return Sizes((seconds * 100).astype(np.int64), labels, lambda s: round(s * 100), **sizes)


def cost_of(plan, sizes, share):
    longest, widest = max(s.length for s in plan.shapes), max(s.labels for s in plan.shapes)
    return sum(
        n * s.rows * ((1 - share) * s.length + share * longest * s.labels / widest)
        for n, s in zip(plan.num_batches, plan.shapes, strict=True)
    )


def rows_of(batches):
    return [[slot.row for slot in batch if slot.row != FILLER] for batch in batches]


# ---- the plan ----


@pytest.mark.parametrize(("asked", "shapes", "hashed"), OVER_LENGTHS)
def test_labels_that_cost_nothing_leave_the_plan_over_lengths_as_it_was(asked, shapes, hashed):
    seed, rows, longest, unit, max_shapes, ranks, attention_share, most_rows, batch_size = asked
    node = Buckets(max_shapes=max_shapes, attention_share=attention_share, max_batch_size=most_rows)
    plan = node.plan(uniform(seed, rows, longest, unit), batch_size, world_size=ranks)
    assert [tuple(shape) for shape in plan.shapes] == shapes
    assert hashlib.sha256(plan.shape_of.astype("<i8").tobytes()).hexdigest()[:12] == hashed


def groups(values):
    """Yield every way to cut sorted values into neighbouring groups."""
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        parts = [[values[0]]]
        for value, cut in zip(values[1:], cuts, strict=True):
            parts = [*parts, [value]] if cut else [*parts[:-1], [*parts[-1], value]]
        yield parts


def cheapest_by_force(rows, max_shapes, budget, ranks, share, attention_share):
    """Return the least cost of any split of (length, labels) by length, and of each part by labels, counted the slow way."""
    longest, widest = max(w for w, _ in rows), max(n for _, n in rows)

    def cost(cell):
        length, labels = max(w for w, _ in cell), max(n for _, n in cell)
        most = max(1, int(budget // length))
        batches = -(-len(cell) // (most * ranks)) * ranks
        encoder = (1 - attention_share) * length + attention_share * length**2 / longest
        return batches * -(-len(cell) // batches) * ((1 - share) * encoder + share * longest * labels / widest)

    def by_labels(bucket):
        """The least cost of a bucket by its number of cells."""
        found = {}
        for parts in groups(sorted({n for _, n in bucket})):
            total = sum(cost([row for row in bucket if row[1] in part]) for part in parts)
            found[len(parts)] = min(total, found.get(len(parts), np.inf))
        return found

    best = np.inf
    for parts in groups(sorted({w for w, _ in rows})):
        options = [by_labels([row for row in rows if row[0] in part]) for part in parts]
        for counts in itertools.product(*options):
            if sum(counts) <= max_shapes:
                best = min(best, sum(option[count] for option, count in zip(options, counts, strict=True)))
    return best


@pytest.mark.parametrize(("share", "attention_share"), [(0.3, 0.0), (0.7, 0.4), (1.0, 0.0)])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_by_length_and_then_by_labels_beats_the_plan(seed, ranks, share, attention_share):
    dice = random.Random(seed)
    rows = [(w, max(1, w // 3 + dice.randrange(4))) for w in dice.choices(range(6, 30, 4), k=24)]
    lengths, labels = (np.array(column) for column in zip(*rows, strict=True))
    for max_shapes in (1, 2, 4):
        node = Buckets(max_shapes=max_shapes, label_share=share, attention_share=attention_share)
        plan = node.plan(Sizes(lengths, labels, int), 3, world_size=ranks)
        longest, widest = lengths.max(), labels.max()
        ours = sum(
            n * s.rows * ((1 - share) * ((1 - attention_share) * s.length + attention_share * s.length**2 / longest)
                          + share * longest * s.labels / widest)
            for n, s in zip(plan.num_batches, plan.shapes, strict=True)
        )  # fmt: skip
        best = cheapest_by_force(rows, max_shapes, 3 * longest, ranks, share, attention_share)
        assert best - 1e-9 <= ours <= best * 1.005 + 1e-9
        assert len(plan.shapes) <= max_shapes


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("unit", [1, 4])
def test_every_row_fits_its_shape_and_batches_are_dealt_to_all_ranks(ranks, unit):
    sizes = speech(unit=5)
    plan = Buckets(max_shapes=10, label_share=0.3, label_unit=unit).plan(sizes, 8, world_size=ranks)
    assert len(plan.shapes) <= 10
    assert len({shape[:2] for shape in plan.shapes}) == len(plan.shapes)
    shapes = np.array(plan.shapes)[plan.shape_of]
    assert (sizes.lengths <= shapes[:, 0]).all() and (sizes.labels <= shapes[:, 1]).all()
    assert all(shape.length % 5 == 0 and shape.labels % unit == 0 for shape in plan.shapes)
    budget = 8 * max(shape.length for shape in plan.shapes)
    assert all(shape.rows == 1 or shape.rows * shape.length <= budget for shape in plan.shapes)
    assert list(plan.shapes) == sorted(plan.shapes)  # by length, then by labels: an evaluation goes from the end
    drawn = list(PlannedBatches(plan, seed=3))
    assert sorted(row for batch in rows_of(drawn) for row in batch) == list(range(2000))
    for step in range(0, len(drawn), ranks):
        together = drawn[step : step + ranks]
        assert len(together) == ranks
        assert len({slot.shape for batch in together for slot in batch}) == 1


def test_labels_that_cost_something_are_padded_less():
    sizes = speech()
    alone, both = (Buckets(label_share=share).plan(sizes, 8) for share in (0.0, 0.3))
    assert cost_of(both, sizes, 0.3) < cost_of(alone, sizes, 0.3)
    assert both.label_efficiency > alone.label_efficiency + 0.05
    assert both.padding_efficiency > 0.85
    assert len({shape.length for shape in both.shapes}) > 1


def test_inputs_of_one_length_are_planned_over_labels_alone():
    labels = speech().labels
    plan = Buckets(label_share=0.3).plan(Sizes(np.full(2000, 3000), labels, lambda _: 3000), 16)
    assert {shape.length for shape in plan.shapes} == {3000}
    assert 4 <= len({shape.labels for shape in plan.shapes}) == len(plan.shapes) <= 8
    assert all(shape.rows <= 16 for shape in plan.shapes)
    assert plan.label_efficiency > 0.85
    mirrored = Buckets().plan(Sizes(labels, np.ones(2000, np.int64), int), 10**6)  # one batch of everything: no rows to even out
    by_labels = Buckets(label_share=1.0).plan(Sizes(np.full(2000, 1), labels, int), 10**6)
    assert [shape.labels for shape in by_labels.shapes] == [shape.length for shape in mirrored.shapes]


def test_more_sizes_than_candidates_are_planned_from_quantiles():
    dice = np.random.default_rng(0)
    lengths = dice.integers(16_000, 400_000, 30_000)
    labels = lengths // 2_000 + dice.integers(1, 60, 30_000)
    plan = Buckets(label_share=0.3, max_shapes=10).plan(Sizes(lengths, labels, int, 320), 8)
    shapes = np.array(plan.shapes)[plan.shape_of]
    assert (lengths <= shapes[:, 0]).all() and (labels <= shapes[:, 1]).all()
    assert plan.padding_efficiency > 0.8
    assert plan.label_efficiency > 0.75


def test_one_row_and_rows_without_labels_are_a_plan_too():
    assert Buckets(label_share=0.3).plan(Sizes(np.array([7]), np.array([3]), int), 8).shapes == ((7, 3, 1),)
    assert Buckets(label_share=0.3, label_unit=4).plan(Sizes(np.array([7, 7]), np.array([0, 0]), int), 8).shapes == ((7, 4, 2),)


def test_label_efficiency_counts_fill_up_rows():
    plan = Fixed(seconds=9, labels=10).plan(Sizes(np.array([5, 9, 4]), np.array([1, 2, 9]), int), 2)
    assert plan.shapes == ((9, 10, 2),)
    assert plan.label_efficiency == pytest.approx(12 / 40)


def test_what_labels_cost_is_the_dataset_s_unless_it_is_given():
    by_dataset = speech(label_share=0.3)
    assert Buckets().plan(by_dataset, 8).shapes == Buckets(label_share=0.3).plan(speech(), 8).shapes
    assert Buckets(label_share=0.0).plan(by_dataset, 8).shapes == Buckets().plan(speech(), 8).shapes


def test_fixed_without_seconds_is_as_long_as_the_longest():
    assert Fixed(seconds=None).plan(Sizes(np.full(5, 3000), np.full(5, 2), lambda _: 3000), 4).shapes == ((3000, 500, 3),)
    assert Fixed(seconds=None, labels=9).plan(Sizes(np.array([5, 8]), np.array([1, 2]), int, unit=10), 4).shapes == ((10, 9, 2),)
    assert Fixed(seconds=None).most_seconds is None


# ---- labels of a step ----


@pytest.mark.parametrize("node", [Buckets(label_share=0.3), Fixed(labels=200), Longest()])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_step_knows_the_mean_number_of_labels_of_its_ranks(node, ranks):
    class Args:
        dataloader_drop_last = False
        group_by_length = True

    sizes = speech(53)
    for batches in (node.train(sizes, 8, seed=1, world_size=ranks, args=Args()), node.evaluate(sizes, 8, world_size=ranks)):
        drawn = list(batches)
        for step in range(0, len(drawn), ranks):
            together = drawn[step : step + ranks]
            known = {slot.labels_per_rank for batch in together for slot in batch}
            rows = [row for batch in rows_of(together) for row in batch]
            assert known == ({None} if ranks == 1 else {sizes.labels[rows].sum() / ranks})


def test_dynamic_batches_of_unknown_labels_know_no_mean():
    for batches in (LengthGroupedBatches([5, 6, 7], 2, world_size=2), SortedBatches([5, 6, 7], 2, world_size=2)):
        assert {slot.labels_per_rank for batch in batches for slot in batch} == {None}
        assert {slot.rows_per_rank for batch in batches for slot in batch} == {1.5}


# ---- the nodes ----


def test_shares_out_of_range_are_refused():
    from asr.config import check_ranges

    for name, value in (("label_share", 1.5), ("label_unit", 0)):
        with pytest.raises(ConfigError, match=name):
            check_ranges(Buckets(**{name: value}))
