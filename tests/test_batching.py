import random

import pytest

from asr.batching import POOL_BATCHES, LengthGroupedBatches, SortedBatches

DICE = random.Random(1)
SECONDS = [DICE.uniform(1, 20) for _ in range(1000)]


def padded(batches, seconds=SECONDS):
    return sum(len(batch) * max(seconds[i] for i in batch) for batch in batches)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("size", [1, 7, 16, 2000])
def test_every_row_comes_once(grouped, size):
    batches = LengthGroupedBatches(SECONDS, size, group_by_length=grouped)
    drawn = list(batches)
    assert sorted(i for batch in drawn for i in batch) == list(range(1000))
    assert len(drawn) == len(batches)
    assert all(0 < len(batch) <= size for batch in drawn)


def test_drop_last_leaves_only_full_batches():
    batches = LengthGroupedBatches(SECONDS, 16, drop_last=True)
    assert [len(batch) for batch in batches] == [16] * 62 == [16] * len(batches)


def test_seed_and_epoch_decide_the_order():
    first, again, other = (LengthGroupedBatches(SECONDS, 16, seed=seed) for seed in (3, 3, 4))
    assert list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert list(first) != list(again)
    again.set_epoch(1)
    assert list(first) == list(again)


def test_grouping_leaves_little_padding():
    grouped, shuffled = (padded(LengthGroupedBatches(SECONDS, 16, group_by_length=g)) for g in (True, False))
    assert sum(SECONDS) / grouped > 0.95 > 0.65 > sum(SECONDS) / shuffled


def test_the_longest_comes_first():
    assert max(SECONDS) in [SECONDS[i] for i in next(iter(LengthGroupedBatches(SECONDS, 16)))]


def test_pools_keep_an_epoch_from_being_sorted():
    size = 2
    seconds = SECONDS[: 4 * POOL_BATCHES * size]
    starts = [seconds[batch[0]] for batch in LengthGroupedBatches(seconds, size)]
    assert starts != sorted(starts) != starts[::-1]


def test_evaluation_takes_each_row_once_longest_first():
    batches = list(SortedBatches(SECONDS, 30))
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(1000))
    assert [SECONDS[i] for i in order] == sorted(SECONDS, reverse=True)
    assert len(batches) == len(SortedBatches(SECONDS, 30)) == 34
