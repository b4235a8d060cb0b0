"""A decoder's losses against transformers' own, and tokens up to their end."""

import numpy as np
import pytest
import torch

from asr import seq2seq_outputs
from asr.collate import BatchFacts
from asr.seq2seq import sequence_labels

LABELS = torch.tensor([[4, 5, 2, -100], [6, 2, -100, -100], [-100] * 4])
FACTS = BatchFacts(rows=(0, 1, -1), lengths=(9, 9, 0), label_lengths=(3, 2, 0), seconds=(1.0, 1.0, 0.0))


@pytest.fixture
def logits():
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_over_real_labels_as_transformers_has_it(logits):
    theirs = torch.nn.CrossEntropyLoss()(logits[:2].reshape(-1, 8), LABELS[:2].reshape(-1))
    torch.testing.assert_close(seq2seq_outputs.batch_loss(logits, LABELS, FACTS), theirs)


def test_smoothed_labels_are_as_transformers_has_them(logits):
    from transformers.trainer_pt_utils import LabelSmoother

    theirs = LabelSmoother(epsilon=0.1)({"logits": logits[:2].clone()}, LABELS[:2].clone())
    torch.testing.assert_close(seq2seq_outputs.batch_loss(logits, LABELS, FACTS, label_smoothing=0.1), theirs)


def test_ranks_divide_by_the_labels_that_each_has_on_average(logits):
    facts = BatchFacts(**{**vars(FACTS), "labels_per_rank": 10.0})
    alone = seq2seq_outputs.batch_loss(logits, LABELS, FACTS)
    torch.testing.assert_close(seq2seq_outputs.batch_loss(logits, LABELS, facts), alone * 5 / 10)


def test_a_batch_of_fillers_has_a_loss_of_zero_with_a_gradient(logits):
    facts = BatchFacts(rows=(-1,) * 3, lengths=(0,) * 3, label_lengths=(0,) * 3, seconds=(0.0,) * 3)
    loss = seq2seq_outputs.batch_loss(logits.requires_grad_(), torch.full((3, 4), -100), facts)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_utterance_losses_weighed_by_labels_give_the_batch_s(logits):
    losses = seq2seq_outputs.utterance_losses(logits, LABELS)
    assert losses[2] == 0
    torch.testing.assert_close((losses[:2] * torch.tensor([3, 2])).sum() / 5, seq2seq_outputs.batch_loss(logits, LABELS, FACTS))


def test_tokens_end_at_the_first_end_and_what_started_them_is_left_out():
    def said(tokens, start):
        return [row.tolist() for row in seq2seq_outputs.up_to_end(np.array(tokens), start, 2)]

    rows = [[1, 4, 5, 2, 7, 7], [4, 6, 2, -100, -100, -100], [1, 4, 4, 4, 4, 4], [1, 2, 2, 2, 2, 2]]
    assert said(rows, 1) == [[4, 5], [4, 6], [4, 4, 4, 4, 4], []]
    assert said([[2, 6, 2, 2]], 2) == [[6]], "what starts is what ends"
    assert said(np.empty((2, 0)), 1) == [[], []]


@pytest.mark.parametrize(("ids", "labels"), [([1, 4, 2], [4, 2]), ([4, 5], [4, 5, 2]), ([1, 2], [2]), ([], [2])])
def test_labels_leave_out_the_start_and_have_an_end(ids, labels):
    assert sequence_labels(ids, start=1, end=2) == labels
