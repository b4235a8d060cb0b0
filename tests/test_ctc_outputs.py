"""Tokens and losses that padding and fillers can't change."""

import pytest
import torch
from test_ctc import batch_of, described, rows_of

from asr.collate import CTCCollator, Row
from asr.ctc_outputs import frame_lengths, greedy_tokens, utterance_losses


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_utterance_losses_add_up_to_the_library_s(reduction, tokenizer):
    node = described("wav2vec2_tiny")
    node.ctc_loss_reduction = reduction
    model = node.load(tokenizer, new_head=True).eval()
    batch, facts = batch_of(CTCCollator("input_values", 0.0, True), rows_of(node.processor(tokenizer, model).feature_extractor))
    with torch.no_grad():
        outputs = model(**batch)
    ours = utterance_losses(outputs.logits, batch["labels"], frame_lengths(model, facts.lengths), model.config)
    torch.testing.assert_close(ours.mean() if reduction == "mean" else ours.sum(), outputs.loss)


@pytest.mark.parametrize("name", ["wav2vec2_bert_tiny", "wav2vec2_tiny"])
def test_padding_changes_neither_tokens_nor_losses(name, tokenizer):
    """Layer-norm models: alone, in a batch, and with a second of more padding, an utterance gives the same."""
    torch.manual_seed(0)
    node = described(name)
    model = node.load(tokenizer, new_head=True).eval()
    extractor = node.processor(tokenizer, model).feature_extractor
    collator = CTCCollator.for_extractor(extractor)
    rows = rows_of(extractor)
    filler = Row(99, torch.zeros(2 * rows[-1].inputs.shape[0], *rows[-1].inputs.shape[1:]), [3], 1.0)

    def results(group):
        batch, facts = batch_of(collator, group)
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        frames = frame_lengths(model, facts.lengths)
        tokens = tokenizer.batch_decode(greedy_tokens(logits, frames, 0))
        losses = utterance_losses(logits, labels, frames, model.config).tolist()
        return {row: (token, loss) for row, token, loss in zip(facts.rows, tokens, losses, strict=True)}

    alone = {k: v for row in rows for k, v in results([row]).items()}
    assert any(text for text, _ in alone.values())
    for group in (rows, rows[::-1], [*rows, filler]):
        together = results(group)
        for row in rows:
            assert together[row.number][0] == alone[row.number][0]
            assert together[row.number][1] == pytest.approx(alone[row.number][1], rel=1e-3)


def test_frames_past_the_end_are_blank():
    logits = torch.zeros(2, 4, 3)
    logits[:, :, 2] = 1
    assert greedy_tokens(logits, torch.tensor([1, 4]), 0).tolist() == [[2, 0, 0, 0], [2, 2, 2, 2]]
