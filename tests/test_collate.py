"""Rows to tensors of a planned shape: what is real, what is padding, and that neither workers nor order decide it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from asr.augment import Augmentation
from asr.batching import FILLER, Slot
from asr.collate import Collator, UtteranceDataset
from asr.errors import DataError
from asr.frames import FrameCount
from asr.labels import Labels
from asr.planning import Shape
from asr.sources import Utterance
from asr.spec_augment import SpecAugment

SECONDS = (0.5, 0.75, 1.0)
LABELS = Labels.of([[5, 6], [7], [8, 9, 5]])


@pytest.fixture
def extractor():
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(return_attention_mask=True)


@pytest.fixture
def utterances(tmp_path):
    dice = np.random.default_rng(0)
    rows = []
    for i, seconds in enumerate(SECONDS):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, dice.uniform(-0.5, 0.5, round(seconds * 16000)), 16000)
        rows.append(Utterance(f"u{i}", path, "text", seconds=seconds))
    return rows


def slots(shape, *rows, epoch=0):
    return [Slot(row, shape, epoch) for row in rows]


def test_a_batch_has_its_planned_shape_whatever_is_in_it(utterances, extractor):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    for rows in ((0, 1, 2), (2, FILLER, FILLER), (1, 0, FILLER)):
        batch = collate([data[slot] for slot in slots(Shape(16320, 6, 3), *rows)])
        shapes = {key: tuple(value.shape) for key, value in batch.items() if key != "facts"}
        assert shapes == {"input_values": (3, 16320), "attention_mask": (3, 16320), "labels": (3, 6)}
        assert {key: value.dtype for key, value in batch.items() if key != "facts"} == {
            "input_values": torch.float32,
            "attention_mask": torch.int32,
            "labels": torch.int64,
        }
        assert batch["facts"].rows == rows


@pytest.mark.parametrize("rows", [(0, 1), (FILLER, FILLER)])
def test_what_a_step_s_ranks_have_on_average_comes_with_the_batch(utterances, extractor, rows):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    batch = collate([data[Slot(row, Shape(16320, 6, 2), 3, 1.5, 2.5)] for row in rows])
    facts = pickle.loads(pickle.dumps(batch))["facts"]  # as a worker hands it over
    assert (facts.rows_per_rank, facts.labels_per_rank, facts.epoch) == (1.5, 2.5, 3)


def test_a_dataset_says_what_labels_cost(utterances, extractor):
    assert UtteranceDataset(utterances, LABELS, extractor).sizes().label_share == 0
    assert UtteranceDataset(utterances, LABELS, extractor, label_share=0.3).sizes().label_share == 0.3


def test_what_is_real_is_the_library_s_and_the_rest_padding(utterances, extractor):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    batch = collate([data[slot] for slot in slots(Shape(20000, 5, 3), 0, 1, 2)])
    waves = [soundfile.read(u.audio, dtype="float32")[0] for u in utterances]
    theirs = extractor(waves, sampling_rate=16000, padding="max_length", max_length=20000, return_tensors="pt")
    torch.testing.assert_close(batch["input_values"], theirs.input_values)
    torch.testing.assert_close(batch["attention_mask"], theirs.attention_mask)
    assert batch["labels"].tolist() == [[5, 6, -100, -100, -100], [7, -100, -100, -100, -100], [8, 9, 5, -100, -100]]
    assert batch["facts"].lengths == (8000, 12000, 16000)
    assert batch["facts"].label_lengths == (2, 1, 3)
    assert batch["facts"].seconds == SECONDS


def test_a_mask_that_a_worker_leaves_out_is_made_again_on_arrival(utterances, extractor):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    sent = collate([data[slot] for slot in slots(Shape(20000, 5, 3), 1, 2, FILLER)])
    handed = pickle.dumps(sent)
    assert len(handed) < sent["input_values"].nbytes + 5000
    arrived = pickle.loads(handed)
    assert arrived.keys() == sent.keys()
    assert arrived["facts"] == sent["facts"]
    for key in ("input_values", "attention_mask", "labels"):
        torch.testing.assert_close(arrived[key], sent[key], rtol=0, atol=0)
    without = replace(collate, with_attention_mask=False)([data[Slot(0, None, 0)]])
    assert "attention_mask" not in pickle.loads(pickle.dumps(without))


def test_a_filler_is_attended_to_and_has_no_labels(utterances, extractor):
    """Attention over nothing is NaN in some kernels; the trainer leaves a filler out of the loss instead."""
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    batch = collate([data[slot] for slot in slots(Shape(16000, 3, 2), 0, FILLER)])
    assert batch["attention_mask"].sum(-1).tolist() == [8000, 16000]
    assert not batch["input_values"][1].any()
    assert (batch["labels"][1] == -100).all()
    assert batch["facts"].lengths == (8000, 0)
    assert batch["facts"].label_lengths == (2, 0)
    assert batch["facts"].rows == (0, FILLER)
    assert batch["facts"].real == (True, False)


def test_without_a_plan_the_longest_row_decides(utterances, extractor):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    batch = collate([data[slot] for slot in slots(None, 0, 1)])
    assert batch["input_values"].shape == (2, 12000)
    assert batch["labels"].shape == (2, 2)


@pytest.mark.parametrize("shape", [None, Shape(16000, 3, 2)])
def test_a_row_that_can_t_be_decoded_is_a_filler_of_the_same_shape(utterances, extractor, shape):
    bad = [replace(utterances[2], audio=utterances[2].audio.with_name("gone.wav")), utterances[0]]
    collate = Collator.for_extractor(extractor)
    data = UtteranceDataset(bad, Labels.of([[8, 9, 5], [5, 6]]), extractor, on_bad="drop")
    batch = collate([data[slot] for slot in slots(shape, 0, 1)])
    assert batch["input_values"].shape == (2, 16000)
    facts = batch["facts"]
    assert facts.rows == (FILLER, 1)
    assert facts.label_lengths == (0, 2)
    assert facts.real == (False, True)
    assert facts.seconds == (0.0, 0.5)
    ((row, problem),) = facts.bad
    assert row == 0
    assert "gone.wav is not there" in problem
    with pytest.raises(DataError, match=r"gone\.wav is not there"):
        UtteranceDataset(bad, LABELS, extractor, on_bad="fail")[0]


def test_audio_a_little_longer_than_its_header_said_still_fits(utterances, extractor):
    data, collate = UtteranceDataset(utterances, LABELS, extractor), Collator.for_extractor(extractor)
    batch = collate([data[slot] for slot in slots(Shape(7900, 3, 1), 0)])
    assert batch["input_values"].shape == (1, 7900)
    assert batch["facts"].lengths == (7900,)


def test_parts_and_arrow_cells_are_decoded_where_they_lie(utterances, extractor):
    part = replace(utterances[2], start_seconds=0.25, seconds=0.5)
    row = UtteranceDataset([part], LABELS, extractor)[0]
    whole = soundfile.read(part.audio, dtype="float32")[0][4000:12000]
    np.testing.assert_array_equal(row.inputs, extractor(whole, sampling_rate=16000, return_tensors="np").input_values[0])


def test_masks_depend_on_seed_epoch_and_row_only(utterances, extractor):
    augment = SpecAugment(0.5, 2, 0, 0.3, 4, 0, hidden_size=32, seed=1)
    frames = FrameCount(((400, 320, 0),))
    collate = replace(Collator.for_extractor(extractor), spec_augment=augment, mask_frames=frames)
    data = UtteranceDataset(utterances, LABELS, extractor)

    def masks(shape, *rows, epoch=0):
        batch = collate([data[slot] for slot in slots(shape, *rows, epoch=epoch)])
        assert batch["mask_time_indices"].shape == (len(rows), int(frames(batch["input_values"].shape[1])))
        assert batch["mask_feature_indices"].shape == (len(rows), 32)
        return dict(zip(rows, zip(batch["mask_time_indices"], batch["mask_feature_indices"], strict=True), strict=True))

    narrow, wide = masks(Shape(16000, 3, 3), 0, 1, 2), masks(Shape(20000, 3, 3), 2, FILLER, 0)
    for row in (0, 2):
        real = int(frames(round(SECONDS[row] * 16000)))
        assert narrow[row][0].any()
        assert torch.equal(narrow[row][0][:real], wide[row][0][:real])
        assert torch.equal(narrow[row][1], wide[row][1])
        assert not wide[row][0][real:].any()
    assert not wide[FILLER][0].any()
    assert not torch.equal(masks(Shape(16000, 3, 1), 2, epoch=1)[2][0], narrow[2][0])
    assert "mask_time_indices" not in collate.for_evaluation()([data[0]])


def test_shapes_hold_what_speed_perturbation_stretches(utterances, extractor):
    augmentation = Augmentation(speed_factors=[0.9, 1.1])
    data = UtteranceDataset(utterances, LABELS, extractor, augmentation=augmentation, seed=3)
    lengths = data.sizes().lengths
    seen = {len(data[Slot(row, None, epoch)].inputs) for row in range(3) for epoch in range(20)}
    assert lengths.tolist() == [round(8000 / 0.9), round(12000 / 0.9), round(16000 / 0.9)]
    assert max(seen) <= lengths.max() + 1
    assert len(seen) == 6
    assert data.sizes().length_of(20.0) == 320_000  # a fixed shape stays what it says


def test_loader_workers_change_nothing(utterances, extractor):
    from torch.utils.data import DataLoader

    data = UtteranceDataset(utterances, LABELS, extractor, augmentation=Augmentation(speed_factors=[0.9, 1.1], gain_db=[-6, 6]), seed=3)
    augment = SpecAugment(0.5, 2, 0, 0.3, 4, 0, hidden_size=32, seed=1)
    collate = replace(Collator.for_extractor(extractor), spec_augment=augment, mask_frames=FrameCount(((400, 320, 0),)))
    batches = [slots(None, 0, 2, epoch=epoch) for epoch in range(3)] + [slots(Shape(20000, 3, 2), 1, FILLER)]
    results = [list(DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers)) for workers in (0, 1, 2)]
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert mine.keys() == theirs.keys()
            assert mine["facts"] == theirs["facts"]
            assert all(torch.equal(mine[key], theirs[key]) for key in mine if key != "facts")
