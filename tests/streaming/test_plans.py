"""Shapes for a stream: from a sample, from a file of an earlier run, and for less than a batch."""

import json

import numpy as np
import pytest

from asr.batching import Buckets, Fixed, Longest
from asr.errors import ConfigError, DataError
from asr.planning import Shape, Sizes
from asr.streaming.plans import StreamPlan, planned

DICE = np.random.default_rng(0)
SAMPLE = Sizes(DICE.integers(1000, 10000, 400), DICE.integers(5, 40, 400), lambda seconds: round(1000 * seconds), 20)


def plan(batching, sizes=SAMPLE, batch_size=8, **options) -> StreamPlan:
    defaults = {"longest_seconds": None, "most_labels": None, "num_readers": 1, "num_processes": 1, "is_whole": False}
    return planned(batching, sizes, batch_size, **{**defaults, **options})


def test_a_batch_holds_its_budget_whatever_the_sample_has():
    found = plan(Buckets(max_shapes=4))
    longest = max(shape.length for shape in found.shapes)
    assert len(found.shapes) == 4
    assert longest == -(-SAMPLE.lengths.max() // 20) * 20
    assert [shape.rows for shape in found.shapes] == [8 * longest // shape.length for shape in found.shapes]
    assert 0.8 < found.padding_efficiency < 1
    assert all(shape.rows <= 9 for shape in plan(Buckets(max_shapes=4, max_batch_size=9)).shapes)


def test_every_row_of_the_sample_has_its_shape_with_room_for_labels():
    found = plan(Buckets(max_shapes=4))
    for length, labels in zip(SAMPLE.lengths, SAMPLE.labels, strict=True):
        shape = found.shapes[found.bin_of(length, labels)]
        assert length <= shape.length
        assert labels <= shape.labels
        assert length > max((s.length for s in found.shapes if s.length < shape.length), default=0)
    assert max(shape.labels for shape in found.shapes) == 47  # 39 and a fifth
    assert max(shape.labels for shape in plan(Buckets(), most_labels=41).shapes) == 41
    assert found.bin_of(10**6, 1) is None
    assert found.bin_of(2000, 48) is None


def test_what_the_bounds_allow_fits():
    found = plan(Buckets(), longest_seconds=15.0)
    assert found.bin_of(15000, 10) is not None
    assert plan(Buckets()).bin_of(15000, 10) is None


def test_other_batchings():
    assert plan(Fixed(seconds=12, labels=50)).shapes == (Shape(12000, 50, 8),)
    longest = plan(Longest())
    assert (longest.shapes, longest.rows, longest.bin_of(10**9, 10**9), longest.padding_efficiency) == ((), 8, 0, None)
    assert longest.shape(0) is None


def test_two_dimensions():
    sizes = Sizes(np.full(400, 3000), SAMPLE.labels, lambda _: 3000, 1, 0.3)
    found = plan(Buckets(max_shapes=4), sizes)
    assert {shape.length for shape in found.shapes} == {3000}
    assert len(found.shapes) > 1
    assert {shape.rows for shape in found.shapes} == {8}
    assert max(shape.labels for shape in found.shapes) == 47
    assert found.bin_of(3000, 5) == min(range(len(found.shapes)), key=lambda i: found.shapes[i].labels)


def test_a_corpus_of_less_than_a_batch():
    few = Sizes(SAMPLE.lengths[:7], SAMPLE.labels[:7], SAMPLE.length_of, 20)
    with pytest.raises(DataError, match=r"split's 7 utterances make no batch of 8: lower trainer\.args\.per_device_train_batch_size"):
        plan(Buckets(), few, is_whole=True)
    with pytest.raises(DataError, match="make no batch of 4 for each of 2 processes"):
        plan(Longest(), few, 4, is_whole=True, num_processes=2)
    assert plan(Buckets(), few, is_whole=False).shapes  # a sample of more


def test_a_small_corpus_does_not_wait_for_its_next_epoch():
    few = Sizes(SAMPLE.lengths[:30], SAMPLE.labels[:30], SAMPLE.length_of, 20)
    found = plan(Buckets(max_shapes=3), few, is_whole=True, num_readers=2)
    for number, shape in enumerate(found.shapes):
        of_it = sum(found.bin_of(*row) == number for row in zip(few.lengths, few.labels, strict=True))
        assert shape.rows <= max(1, of_it // 2)


def test_an_earlier_run_s_plan(tmp_path):
    path = tmp_path / "train.plan.json"
    earlier = plan(Buckets(max_shapes=4))
    earlier.save(path, {"made_from": "a sample"})
    assert StreamPlan.load(path) == earlier
    other = Sizes(SAMPLE.lengths[:5], SAMPLE.labels[:5], SAMPLE.length_of, 20)
    assert plan(Buckets(plan_file=str(path)), other).shapes == earlier.shapes
    halved = plan(Buckets(plan_file=str(path)), other, 4).shapes
    assert [(s.length, s.labels) for s in halved] == [(s.length, s.labels) for s in earlier.shapes]
    assert [s.rows for s in halved] != [s.rows for s in earlier.shapes]


@pytest.mark.parametrize("content", ["", "{}", '{"shapes": []}', '{"shapes": [[1, 2]]}', '{"shapes": [[0, 1, 1]]}', json.dumps([1])])
def test_a_file_that_is_no_plan(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ConfigError, match=r"plan_file: \S+/plan.json can't be read as a plan .*name a streamed run's manifest"):
        plan(Buckets(plan_file=str(tmp_path / "plan.json")))
    with pytest.raises(ConfigError, match="No such file"):
        plan(Buckets(plan_file=str(tmp_path / "none.json")))
