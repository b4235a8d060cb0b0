"""A streamed split as the trainer has it: batches in torch's loader, whoever reads them, and single rows again."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from shards_made import encoded, tar
from torch.utils.data import DataLoader

from asr.agreement import Agreement
from asr.augment import Augmentation
from asr.bad_batches import Watched
from asr.batching import FILLER
from asr.collate import BATCH_FACTS, Collator
from asr.fitting import Bounds
from asr.labels import Labels
from asr.planning import Shape
from asr.sources import Source
from asr.streaming.dataset import ROW_BITS, StreamedDataset, Taste
from asr.streaming.loading import Position, Readers, StreamLoader, as_it_is
from asr.streaming.plans import StreamPlan
from asr.streaming.rules import Rules
from asr.streaming.shards import Shards, Unit
from asr.streaming.tar import TarFormat

PLAN = StreamPlan((Shape(6000, 30, 3), Shape(10000, 30, 2)), 3)


def codes(text: str) -> list[int]:
    return [ord(c) for c in text]


def dataset(folder, **options) -> StreamedDataset:
    import transformers

    shards = Shards(TarFormat(), tuple(Unit(str(f)) for f in sorted(folder.glob("*.tar"))), 20)
    source = {"on_bad": options.pop("on_bad")} if "on_bad" in options else {}
    rules = Rules(Source(**source), str.strip, codes, Bounds())
    taste = Taste([0.3, 0.5], Labels.of([[1, 2], [3]]))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return StreamedDataset(shards, rules, taste, PLAN, extractor, shuffle_buffer_size=8, on_bad="drop", **options)


@pytest.fixture
def data(tmp_path):
    return dataset(tar(tmp_path, range(20), shards=3))


def batches(data, count, *, workers=0, position=None, rank=0, world_size=1):
    readers = Readers(
        data,
        Collator.for_extractor(data.feature_extractor),
        seed=3,
        rank=rank,
        world_size=world_size,
        workers=workers,
        position=position or Position(),
    )
    loader = DataLoader(readers, batch_size=None, collate_fn=as_it_is, num_workers=workers)
    found = iter(loader)
    return [next(found) for _ in range(count)]


def equal(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if name != BATCH_FACTS) and one[BATCH_FACTS] == other[BATCH_FACTS]


def test_batches_are_tensors_of_the_planned_shapes(data):
    for batch in batches(data, 8):
        shape = tuple(batch["input_values"].shape)
        assert (shape[1], batch["labels"].shape[1], shape[0]) in PLAN.shapes
        facts = batch[BATCH_FACTS]
        assert facts.rows == tuple(facts.stream.ids)
        assert sum(facts.real) == shape[0]
        assert [len(label[label >= 0]) for label in batch["labels"]] == list(facts.label_lengths)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_the_states_of_its_batches_say(data, workers):
    expected = batches(data, 11, workers=workers)
    for taken in (1, 4, 5):
        states = {str(b[BATCH_FACTS].stream.reader): b[BATCH_FACTS].stream.state for b in expected[:taken]}
        again = batches(data, 11 - taken, workers=workers, position=Position(taken, states))
        assert [equal(a, b) for a, b in zip(expected[taken:], again, strict=True)] == [True] * (11 - taken)


def test_ranks_read_different_utterances(data):
    first = [{row for batch in batches(data, 2, rank=rank, world_size=3) for row in batch[BATCH_FACTS].rows} for rank in range(3)]
    for rank in range(3):
        assert all(first[rank].isdisjoint(first[other]) for other in range(rank))


def test_a_row_again_from_its_number(data):
    batch = batches(data, 1)[0]
    facts = batch[BATCH_FACTS]
    shape = Shape(batch["input_values"].shape[1], batch["labels"].shape[1], len(facts.rows))
    again = Watched(torch.zeros(()), facts, shape).again(data, Collator.for_extractor(data.feature_extractor))
    assert all(torch.equal(again[name], batch[name]) for name in again)
    for row in facts.rows:
        assert data.utterances[row].id == facts.stream.ids[row]
    assert Watched(torch.zeros(()), facts, shape).utterance_ids(data) == tuple(facts.stream.ids.values())
    assert len({row >> ROW_BITS for row in facts.rows}) <= 3


def test_an_utterance_that_cannot_be_decoded_is_a_filler(tmp_path):
    def audio(n):
        return encoded(n, "FLAC")[:-900] + bytes(900) if n == 4 else encoded(n, "FLAC")

    data = dataset(tar(tmp_path, range(20), audio=audio))
    found = [batch for batch in batches(data, 8) if batch[BATCH_FACTS].bad]
    facts = found[0][BATCH_FACTS]
    ((number, problem),) = facts.bad
    assert facts.stream.ids[number] == "part0/u4"
    assert "row 4" in problem
    assert facts.rows.count(FILLER) == 1


def test_speed_changes_are_drawn_by_epoch_and_fit(tmp_path):
    data = dataset(tar(tmp_path, range(20)), augmentation=Augmentation(speed_factors=[0.9, 1.1]), seed=1)
    lengths = {}
    for batch in batches(data, 24):
        facts = batch[BATCH_FACTS]
        for row, length in zip(facts.rows, facts.lengths, strict=True):
            lengths.setdefault(row, set()).add(length)
        assert max(facts.lengths) <= batch["input_values"].shape[1]
    assert any(len(found) == 2 for found in lengths.values())


def test_sizes_are_those_of_the_sample(data):
    assert data.sizes().lengths.tolist() == [4800, 8000]
    assert data.sizes().labels.tolist() == [2, 1]
    assert len(data) == 20
    assert data.labels is data.taste.labels


class TwoRanks(Agreement):
    """The numbers of another rank, in turn."""

    def __init__(self, others):
        super().__init__(1)
        self.others = list(others)

    def end(self):
        sums = super().end()
        other = self.others.pop(0)
        return [a + b for a, b in zip(sums, other, strict=True)]


def test_ranks_tell_each_other_how_many_rows_and_labels_a_step_has(data):
    own = batches(data, 3)
    loader = StreamLoader(own, TwoRanks([(7, 100), (1, 10)]), 2)
    first, second = (batch[BATCH_FACTS] for batch in islice(loader, 2))
    plain = [batch[BATCH_FACTS] for batch in own]
    assert first.rows_per_rank == (sum(plain[0].real) + 7) / 2
    assert first.labels_per_rank == (sum(plain[0].label_lengths) + 100) / 2
    assert second.rows_per_rank == (sum(plain[1].real) + 1) / 2
    alone = list(StreamLoader(own, Agreement(1), 1))
    assert [replace(b[BATCH_FACTS], rows_per_rank=None, labels_per_rank=None) for b in alone] == [
        replace(facts, rows_per_rank=None, labels_per_rank=None) for facts in plain
    ]


def test_a_loader_has_no_length(data):
    with pytest.raises(TypeError):
        len(StreamLoader([], Agreement(1), 1))
    assert np.all([batch[BATCH_FACTS].epoch >= 0 for batch in batches(data, 2)])
