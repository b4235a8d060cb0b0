import random
from itertools import pairwise

import numpy as np
import pytest

from asr.labels import Labels

DICE = random.Random(0)
ROWS = [[DICE.randint(0, 2) for _ in range(DICE.randint(0, 6))] for _ in range(200)]


def test_rows_come_back_as_they_were(tmp_path):
    labels = Labels.of(ROWS)
    labels.save(tmp_path / "train.labels.npz")
    again = Labels.load(tmp_path / "train.labels.npz")
    assert [row.tolist() for row in again] == ROWS
    assert again[-1].tolist() == ROWS[-1]
    assert again.lengths.tolist() == [len(row) for row in ROWS]
    with pytest.raises(IndexError):
        again[200]


def test_frames_needed_counts_a_blank_between_equal_neighbours():
    needed = [len(row) + sum(a == b for a, b in pairwise(row)) for row in ROWS]
    assert Labels.of(ROWS).frames_needed().tolist() == needed


def test_frames_needed_is_where_torch_s_loss_stops_being_infinite():
    import torch

    for row in [[1, 2, 3], [1, 1, 2], [2, 2, 2], [1]]:
        needed = int(Labels.of([row]).frames_needed()[0])
        for frames in (needed - 1, needed):
            log_probs = torch.zeros(max(frames, 1), 1, 4).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([row]), torch.tensor([frames]), torch.tensor([len(row)]))
            assert torch.isfinite(loss) == (frames == needed)


def test_selecting_and_nothing():
    assert [row.tolist() for row in Labels.of(ROWS).select([3, 0])] == [ROWS[3], ROWS[0]]
    assert Labels.of([]).frames_needed().tolist() == []
    assert Labels.of([[]]).frames_needed().tolist() == [0]
    assert Labels.of([[1, 2]]).ids.dtype == np.int32
