"""A rehearsal's batches: the shapes of the whole job, a few times each, in a handful of rows."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from test_batching import SECONDS, Echo, sizes

from asr.batching import FILLER, Batching, Buckets, Fixed, Longest
from asr.planning import Sizes
from asr.rehearsal.sampling import FewBatches

ARGS = SimpleNamespace(group_by_length=True, dataloader_drop_last=False, gradient_accumulation_steps=1)


def train(whole, world_size=1, data=None, batch_size=8, **few):
    node = FewBatches(whole=whole, **few)
    return node.train(data or sizes(), batch_size, seed=1, world_size=world_size, args=ARGS)


def whole_train(whole, world_size=1):
    return whole.train(sizes(), 8, seed=1, world_size=world_size, args=ARGS)


@pytest.mark.parametrize("whole", [Buckets(), Buckets(max_shapes=3), Fixed()])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_planned_shape_is_visited_twice_as_the_job_first_meets_it(whole, world_size):
    few, job = train(whole, world_size), whole_train(whole, world_size)
    drawn = list(few)
    assert len(drawn) == len(few)
    assert few.planned == list(job.plan.shapes)
    visited = Counter(batch[0].shape[:2] for batch in drawn)
    assert visited.keys() == {shape[:2] for shape in job.plan.shapes}
    assert set(visited.values()) <= {2 * world_size, 3 * world_size}  # the third is for a filler
    met = list(dict.fromkeys(batch[0].shape[:2] for batch in job))
    assert list(visited) == met
    first = next(iter(job))
    assert [slot.row for slot in drawn[0]] == [slot.row for slot in (*first[:3], first[-1])]


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_are_cut_and_a_filler_stays(world_size):
    for batch in train(Buckets(), world_size):
        assert 1 <= len(batch) <= 4
        assert {slot.shape.rows for slot in batch} == {len(batch)}
        assert {slot.epoch for slot in batch} == {0}


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_shape_that_has_fillers_in_the_job_is_met_with_one(world_size):
    def with_fillers(batches):
        return {batch[0].shape[:2] for batch in batches if batch[-1].row == FILLER}

    data = sizes(SECONDS[:927])
    few, job = (node.train(data, 8, seed=1, world_size=world_size, args=ARGS) for node in (FewBatches(whole=Buckets()), Buckets()))
    assert with_fillers(few) == with_fillers(job) != set()
    assert len(few) < 3 * world_size * len(few.planned)  # no third visit where there is no need


def test_a_mean_over_ranks_counts_the_rows_that_are_left():
    assert {slot.rows_per_rank for batch in train(Buckets()) for slot in batch} == {None}
    drawn = list(train(Buckets(), world_size=2))
    for one, other in zip(drawn[::2], drawn[1::2], strict=True):
        assert one[0].shape == other[0].shape
        real = sum(slot.row != FILLER for slot in (*one, *other)) / 2
        assert {slot.rows_per_rank for slot in (*one, *other)} == {real}


@pytest.mark.parametrize("world_size", [1, 2])
def test_dynamic_padding_is_visited_at_its_first_shapes_padded_as_in_the_job(world_size):
    few, job = train(Longest(), world_size, most_shapes_met=5), list(whole_train(Longest(), world_size))
    assert len(few) == 5 * world_size
    assert len(few.planned) == len(set(few.planned)) > 50
    data = sizes()
    for batch, full in zip(few, job, strict=False):
        rows = [slot.row for slot in full if slot.row != FILLER]
        assert batch[0].shape == (data.lengths[rows].max(), data.labels[rows].max(), len(batch))
        assert [slot.row for slot in batch] == [full[i].row for i in (0, 1, 2, -1)]


def test_the_most_labels_of_a_cut_row_count():
    data = Sizes(np.array([90, 80, 70, 60, 50, 40, 30, 20]), np.array([1, 1, 1, 1, 1, 1, 9, 1]), int)
    batch = next(iter(train(Longest(), data=data)))
    assert [slot.row for slot in batch] == [0, 1, 2, 7]
    assert batch[0].shape == (90, 9, 4)


@pytest.mark.parametrize("whole", [Buckets(), Longest()])
def test_an_evaluation_visits_each_shape_longest_first(whole):
    """Twice where the job does: what compiles anew for the same shape shows."""
    data = sizes(SECONDS[:927])
    drawn = list(FewBatches(whole=whole, most_shapes_met=6).evaluate(data, 8, world_size=2))
    lengths = [batch[0].shape.length for batch in drawn]
    assert lengths == sorted(lengths, reverse=True)
    runs = Counter(lengths[::2])
    assert len(runs) == 6
    planned = isinstance(whole, Buckets)
    assert (max(runs.values()) >= 2) == planned
    assert max(runs.values()) <= 3


@pytest.mark.parametrize("whole", [Buckets(), Fixed(), Longest()])
def test_what_accelerate_makes_of_them_for_two_ranks(whole):
    """The same batches in every epoch, as many for each rank, and set_epoch does no harm."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    for batches in (train(whole, 2), FewBatches(whole=whole).evaluate(sizes(), 8, world_size=2)):
        drawn = list(batches)
        loaders = [
            prepare_data_loader(
                DataLoader(Echo(), batch_sampler=batches, collate_fn=list), num_processes=2, process_index=rank, even_batches=False
            )
            for rank in range(2)
        ]
        for epoch in range(2):
            for loader in loaders:
                loader.set_epoch(epoch)
            assert [list(loader) for loader in loaders] == [drawn[::2], drawn[1::2]]


def test_an_epoch_without_batches_is_the_job_s_own():
    args = SimpleNamespace(**{**vars(ARGS), "dataloader_drop_last": True})
    none = FewBatches(whole=Longest()).train(sizes(SECONDS[:5]), 8, seed=1, world_size=1, args=args)
    assert (len(none), none.rows) == (0, 8)  # the trainer says so with both


def test_everything_else_is_the_whole_batching_s():
    fixed, longest = FewBatches(whole=Fixed(seconds=7, labels=9)), FewBatches(whole=Longest())
    assert (fixed.most_shapes, fixed.most_seconds, fixed.most_labels, fixed.STATIC) == (1, 7, 9, True)
    assert (longest.most_shapes, longest.most_seconds, longest.most_labels, longest.STATIC) == (None, None, None, False)
    longest.check({"group_by_length": True})
    with pytest.raises(Exception, match="static shapes"):
        fixed.check({"group_by_length": True})


class Named(Batching):
    """A team's own batching, whose batches are plain row numbers."""

    def train(self, sizes, batch_size, *, seed, world_size, args):
        return [[0, 1], [2, 3], [4]]


def test_batches_of_plain_row_numbers():
    data = Sizes(np.array([5, 9, 5, 9, 4]), np.ones(5, np.int64), int)
    assert [[tuple(slot[:2]) for slot in batch] for batch in train(Named(), data=data)] == [
        [(0, (9, 1, 2)), (1, (9, 1, 2))],
        [(2, (9, 1, 2)), (3, (9, 1, 2))],
        [(4, (4, 1, 1))],
    ]


def test_the_node_knows_the_whole_job_s_shapes_once_they_were_asked_for():
    node = FewBatches(whole=Buckets())
    assert node.planned == {}
    trained = node.train(sizes(), 8, seed=1, world_size=1, args=ARGS)
    evaluated = node.evaluate(sizes(SECONDS[:50]), 4, world_size=1)
    assert node.planned == {"train": trained.planned, "eval": evaluated.planned}
    assert trained.planned != evaluated.planned


@pytest.mark.parametrize(("accumulated", "shapes"), [(1, 8), (4, 3), (16, 1)])
def test_batches_are_accumulated_to_whole_steps_of_which_there_are_two(accumulated, shapes):
    args = SimpleNamespace(**{**vars(ARGS), "gradient_accumulation_steps": accumulated})
    few = FewBatches(whole=Buckets(max_shapes=shapes)).train(sizes(), 8, seed=1, world_size=2, args=args)
    assert len(list(few)) == len(few)
    assert len(few) % (2 * accumulated) == 0
    assert len(few) >= 2 * 2 * accumulated
