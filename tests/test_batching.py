"""Plans against brute force, and what samplers promise: each row once, one shape for all ranks, (seed, epoch) decides."""

import random
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from asr.batching import FILLER, POOL_BATCHES, Buckets, Fixed, LengthGroupedBatches, Longest, PlannedBatches, SortedBatches
from asr.errors import ConfigError
from asr.planning import Sizes
from asr.resuming import Epochs

DICE = random.Random(1)
SECONDS = [DICE.uniform(1, 20) for _ in range(1000)]
RATE = 100  # of a coarse clock, so that plans stay readable


def sizes(seconds=SECONDS, unit=1):
    lengths = np.array([round(s * RATE) for s in seconds], np.int64)
    return Sizes(lengths, np.maximum(lengths // 10, 1), lambda s: round(s * RATE), unit)


def rows_of(batches):
    return [[slot.row for slot in batch if slot.row != FILLER] for batch in batches]


def flat(batches):
    return sorted(row for batch in rows_of(batches) for row in batch)


def padded(batches, seconds=SECONDS):
    return sum(len(batch) * max(seconds[i] for i in batch) for batch in rows_of(batches))


# ---- plans ----


def work_of(ends, lengths, budget, work, world_size=1):
    """Return the padded work of buckets with these ends, counted the slow way."""
    total, start = 0.0, 0
    for end in ends:
        count = sum(start < n <= end for n in lengths)
        rows = max(1, budget // end)
        batches = -(-count // (rows * world_size)) * world_size
        total += batches * -(-count // max(batches, 1)) * work(end)
        start = end
    return total


@pytest.mark.parametrize("attention_share", [0.0, 0.4])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_ends_beats_the_plan(seed, world_size, attention_share):
    dice = random.Random(seed)
    lengths = sorted(dice.choices(range(5, 60), k=40))
    data = Sizes(np.array(lengths), np.ones(40, np.int64), lambda s: int(s))
    for k in (1, 2, 3):
        plan = Buckets(max_shapes=k, attention_share=attention_share).plan(data, 4, world_size=world_size)
        budget, longest = 4 * max(lengths), max(lengths)

        def work(n, longest=longest):
            return (1 - attention_share) * n + attention_share * n * n / longest

        ours = sum(n * s.rows * work(s.length) for n, s in zip(plan.num_batches, plan.shapes, strict=True))
        others = sorted(set(lengths) - {longest})
        best = min(work_of([*ends, longest], lengths, budget, work, world_size) for i in range(k) for ends in combinations(others, i))
        assert best <= ours <= best * 1.005 + 1e-9


def test_the_plan_holds_every_row_and_keeps_to_its_budget():
    plan = Buckets().plan(sizes(unit=7), 8)
    assert len(plan.shapes) <= 8
    for length, labels, position in zip(plan.lengths, sizes().labels, plan.shape_of, strict=True):
        shape = plan.shapes[position]
        assert length <= shape.length
        assert labels <= shape.labels
        assert position == 0 or length > plan.shapes[position - 1].length
    longest = plan.shapes[-1].length
    assert all(shape.length % 7 == 0 and shape.rows * shape.length <= 8 * longest for shape in plan.shapes)


def test_eight_shapes_leave_little_padding():
    assert Buckets(max_shapes=1).plan(sizes(), 8).padding_efficiency < 0.55
    assert Buckets().plan(sizes(), 8).padding_efficiency > 0.88


def test_a_shape_that_saves_nothing_is_not_made():
    same = Sizes(np.full(50, 300), np.ones(50, np.int64), lambda s: int(s))
    assert [s.length for s in Buckets().plan(same, 8).shapes] == [300]


def test_sweeping_the_batch_size_sweeps_the_budget():
    steps = {size: len(PlannedBatches(Buckets().plan(sizes(), size), seed=0)) for size in (8, 16)}
    assert steps[8] > 1.7 * steps[16]
    by_reference = Buckets(reference_seconds=10).plan(sizes(), 8)
    assert all(s.rows == 1 or s.rows * s.length <= 8 * 10 * RATE for s in by_reference.shapes)


def test_max_batch_size_bounds_the_rows():
    assert max(s.rows for s in Buckets(max_batch_size=12).plan(sizes(), 8).shapes) <= 12


def test_many_different_lengths_are_planned_from_quantiles():
    dice = np.random.default_rng(0)
    lengths = dice.integers(16_000, 400_000, 30_000)
    plan = Buckets().plan(Sizes(lengths, np.ones(30_000, np.int64), lambda s: int(s * 16_000), 320), 8)
    assert plan.shapes[-1].length >= lengths.max()
    assert plan.padding_efficiency > 0.89


def test_one_utterance_is_a_plan_too():
    plan = Buckets().plan(sizes([3.0]), 8)
    assert plan.shapes == ((300, 30, 1),)
    assert rows_of(PlannedBatches(plan, seed=0)) == rows_of(PlannedBatches(plan)) == [[0]]


def test_fixed_has_the_published_shape():
    plan = Fixed().plan(sizes(), 4)
    assert plan.shapes == ((20 * RATE, 500, 4),)
    assert len(PlannedBatches(plan)) == 250
    assert Fixed().plan(sizes([3.0]), 4).shapes == ((20 * RATE, 500, 1),)


# ---- samplers ----


@pytest.mark.parametrize("node", [Buckets(), Buckets(max_shapes=3), Fixed()])
@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("seed", [None, 5])
def test_every_row_once_and_one_shape_for_all_ranks(node, world_size, seed):
    batches = PlannedBatches(node.plan(sizes(), 8, world_size=world_size), seed=seed)
    drawn = list(batches)
    assert flat(drawn) == list(range(1000))
    assert len(drawn) == len(batches)
    assert len(drawn) % world_size == 0
    for step in range(0, len(drawn), world_size):
        assert len({slot.shape for batch in drawn[step : step + world_size] for slot in batch}) == 1
    assert all(len(batch) == batch[0].shape.rows for batch in drawn)


def test_accelerate_deals_the_same_shape_to_every_rank():
    from accelerate.data_loader import BatchSamplerShard

    batches = PlannedBatches(Buckets().plan(sizes(), 8, world_size=4), seed=1)
    ranks = [list(BatchSamplerShard(batches, 4, rank, even_batches=False)) for rank in range(4)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len({batch[0].shape for batch in step}) == 1 for step in zip(*ranks, strict=True))
    assert flat([batch for rank in ranks for batch in rank]) == list(range(1000))


@pytest.mark.parametrize("node", [Buckets(), Fixed(), Longest()])
@pytest.mark.parametrize("num_rows", [53, 1, 64])
def test_what_accelerate_makes_of_the_samplers_for_two_ranks(node, num_rows):
    """Through accelerate's own loaders: as many batches for each rank, every row once, in the epoch that the trainer's callback begins."""
    from accelerate import skip_first_batches
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    args = SimpleNamespace(group_by_length=True, dataloader_drop_last=False)
    data = sizes(SECONDS[:num_rows])
    for batches in (node.train(data, 8, seed=1, world_size=2, args=args), node.evaluate(data, 8, world_size=2)):
        epochs_of = Epochs(batches)
        loaders = [
            prepare_data_loader(
                DataLoader(Echo(), batch_sampler=epochs_of, collate_fn=list), num_processes=2, process_index=rank, even_batches=False
            )
            for rank in range(2)
        ]
        epochs = []
        for epoch in range(2):
            epochs_of.begin(epoch)
            for loader in loaders:
                loader.set_epoch(epoch)
            ranks = [list(loader) for loader in loaders]
            assert len(ranks[0]) == len(ranks[1]) == len(batches) / 2
            assert all(len(mine) == len(theirs) for mine, theirs in zip(*ranks, strict=True))
            assert flat([batch for rank in ranks for batch in rank]) == list(range(num_rows))
            assert {slot.epoch for rank in ranks for batch in rank for slot in batch} == {epoch}
            epochs.append([[slot.row for slot in batch] for rank in ranks for batch in rank])
        if num_rows > 1 and getattr(batches, "seed", None) is not None:
            assert epochs[0] != epochs[1]
        resumed = [list(skip_first_batches(loader, 1)) for loader in loaders]  # within the last epoch
        assert resumed == [rank[1:] for rank in ranks]


class Echo:
    """A dataset that gives back what it is asked for."""

    def __len__(self):
        return 1000

    def __getitem__(self, slot):
        return slot


def test_training_batches_are_dealt_evenly():
    """No batch of one utterance, whose gradient would weigh as much as a full batch's."""
    plan = Buckets().plan(sizes(), 8)
    drawn = list(PlannedBatches(plan, seed=0))
    fullness = [len(rows) / batch[0].shape.rows for rows, batch in zip(rows_of(drawn), drawn, strict=True)]
    assert min(fullness) > 0.8
    fillers = sum(slot.row == FILLER for batch in drawn for slot in batch)
    assert fillers < len(drawn)


def test_seed_and_epoch_decide_the_order():
    first, again, other = (PlannedBatches(Buckets().plan(sizes(), 8), seed=seed) for seed in (3, 3, 4))
    assert list(first) == list(again) != list(other)
    before = rows_of(first)
    first.set_epoch(1)
    assert sorted(map(sorted, rows_of(first))) != sorted(map(sorted, before))  # shuffled within buckets
    shapes = [batch[0].shape for batch in first]
    assert shapes != sorted(shapes) != shapes[::-1]  # and across them
    assert {slot.epoch for batch in first for slot in batch} == {1}


def test_the_largest_shape_comes_first():
    shape = next(iter(PlannedBatches(Buckets().plan(sizes(), 8), seed=0)))[0].shape
    assert shape.rows * shape.length == max(s.rows * s.length for s in Buckets().plan(sizes(), 8).shapes)


def test_evaluation_goes_from_long_to_short_and_never_shuffles():
    batches = PlannedBatches(Buckets().plan(sizes(), 8))
    assert list(batches) == list(batches)
    lengths = [sizes().lengths[row] for batch in rows_of(batches) for row in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_resuming_skips_batches_without_decoding_them():
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    class Spy(Echo):
        asked = ()

        def __getitem__(self, slot):
            self.asked = (*self.asked, slot.row)
            return slot.row

    spy = Spy()
    batches = PlannedBatches(Buckets().plan(sizes(), 8), seed=0)
    loader = skip_first_batches(DataLoader(spy, batch_sampler=batches, collate_fn=list), 5)
    whole = [[slot.row for slot in batch] for batch in batches]
    assert list(loader) == whole[5:]
    assert list(spy.asked) == [row for batch in whole[5:] for row in batch]


# ---- dynamic padding ----


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("size", [1, 7, 16, 2000])
def test_every_row_comes_once(grouped, size):
    batches = LengthGroupedBatches(SECONDS, size, group_by_length=grouped)
    assert flat(batches) == list(range(1000))
    assert len(list(batches)) == len(batches)
    assert all(0 < len(batch) <= size for batch in batches)


def test_drop_last_leaves_only_full_batches():
    batches = LengthGroupedBatches(SECONDS, 16, drop_last=True)
    assert [len(batch) for batch in batches] == [16] * 62 == [16] * len(batches)


def test_seed_and_epoch_decide_the_order_of_dynamic_batches():
    first, again, other = (LengthGroupedBatches(SECONDS, 16, seed=seed) for seed in (3, 3, 4))
    assert list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert rows_of(first) != rows_of(again)
    again.set_epoch(1)
    assert list(first) == list(again)


def test_grouping_leaves_little_padding():
    grouped, shuffled = (padded(LengthGroupedBatches(SECONDS, 16, group_by_length=g)) for g in (True, False))
    assert sum(SECONDS) / grouped > 0.95 > 0.65 > sum(SECONDS) / shuffled


def test_the_longest_comes_first():
    assert max(SECONDS) in [SECONDS[slot.row] for slot in next(iter(LengthGroupedBatches(SECONDS, 16)))]


def test_pools_keep_an_epoch_from_being_sorted():
    size = 2
    seconds = SECONDS[: 4 * POOL_BATCHES * size]
    starts = [seconds[batch[0].row] for batch in LengthGroupedBatches(seconds, size)]
    assert starts != sorted(starts) != starts[::-1]


def test_evaluation_takes_each_row_once_longest_first():
    batches = rows_of(SortedBatches(SECONDS, 30))
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(1000))
    assert [SECONDS[i] for i in order] == sorted(SECONDS, reverse=True)
    assert len(batches) == len(SortedBatches(SECONDS, 30)) == 34


# ---- nodes ----


@pytest.mark.parametrize("name", ["group_by_length", "dataloader_drop_last"])
def test_arguments_that_static_shapes_contradict_say_why(name):
    for node in (Buckets(), Fixed()):
        with pytest.raises(ConfigError, match=rf"^trainer\.args\.{name}: can't be true with static shapes: "):
            node.check({name: True})
    Longest().check({name: True})
    Buckets().check({name: False})


def test_how_many_shapes_training_can_meet():
    assert [node.most_shapes for node in (Buckets(max_shapes=11), Fixed(), Longest())] == [11, 1, None]
