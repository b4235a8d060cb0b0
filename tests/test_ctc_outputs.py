"""Tokens and losses that padding and fillers can't change, without a sync and by the same operations for every batch of a shape."""

from types import SimpleNamespace

import pytest
import torch
from test_ctc import batch_of, described, rows_of
from torch.utils._python_dispatch import TorchDispatchMode

from asr.batching import FILLER
from asr.collate import BatchFacts, Collator, Row
from asr.ctc_outputs import batch_loss, frame_lengths, greedy_tokens, utterance_losses

NUM_TOKENS, NUM_FRAMES = 9, 30
LABELS = ([3, 4, 4], [5], [6, 4, 3, 5, 5], [2, 8])


def config_of(reduction="mean", zero_infinity=False, blank=0):
    return SimpleNamespace(ctc_loss_reduction=reduction, ctc_zero_infinity=zero_infinity, pad_token_id=blank)


def made_batch(real, rows_per_rank=None, frames=(30, 12, 25, 18), labels=LABELS):
    """Return logits that want a gradient, padded labels, frames and facts of a batch; rows that aren't real are fillers."""
    torch.manual_seed(0)
    logits = torch.randn(len(real), NUM_FRAMES, NUM_TOKENS).requires_grad_()
    rows = [row if is_real else [] for row, is_real in zip(labels, real, strict=True)]
    padded = torch.tensor([row + [-100] * (6 - len(row)) for row in rows])
    facts = BatchFacts(
        rows=tuple(i if is_real else FILLER for i, is_real in enumerate(real)),
        lengths=(0,) * len(real),  # the losses take frames
        label_lengths=tuple(map(len, rows)),
        seconds=(0.0,) * len(real),
        rows_per_rank=rows_per_rank,
    )
    return logits, padded, torch.tensor(frames), facts


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_utterance_losses_add_up_to_the_library_s(reduction, tokenizer):
    node = described("wav2vec2_tiny")
    node.ctc_loss_reduction = reduction
    model = node.load(tokenizer, new_head=True).eval()
    batch, facts = batch_of(Collator("input_values", 0.0, True), rows_of(node.processor(tokenizer, model).feature_extractor))
    with torch.no_grad():
        outputs = model(**batch)
    ours = utterance_losses(outputs.logits, batch["labels"], frame_lengths(model, facts.lengths), facts.label_lengths, model.config)
    torch.testing.assert_close(ours.mean() if reduction == "mean" else ours.sum(), outputs.loss)


@pytest.mark.parametrize("name", ["wav2vec2_bert_tiny", "wav2vec2_tiny"])
def test_padding_changes_neither_tokens_nor_losses(name, tokenizer):
    """Layer-norm models: alone, in a batch, and with a second of more padding, an utterance gives the same."""
    torch.manual_seed(0)
    node = described(name)
    model = node.load(tokenizer, new_head=True).eval()
    extractor = node.processor(tokenizer, model).feature_extractor
    collator = Collator.for_extractor(extractor)
    rows = rows_of(extractor)
    filler = Row(99, torch.zeros(2 * rows[-1].inputs.shape[0], *rows[-1].inputs.shape[1:]), [3], 1.0)

    def results(group):
        batch, facts = batch_of(collator, group)
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        frames = frame_lengths(model, facts.lengths)
        tokens = tokenizer.batch_decode(greedy_tokens(logits, frames, 0))
        losses = utterance_losses(logits, labels, frames, facts.label_lengths, model.config).tolist()
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


@pytest.mark.parametrize("real", [(True, True, True, True), (True, False, True, False)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_a_batch_is_the_library_s_over_its_real_rows(reduction, real):
    logits, labels, frames, facts = made_batch(real)
    loss = batch_loss(logits, labels, frames, facts, config_of(reduction))
    loss.backward()
    gradient, logits.grad = logits.grad, None
    rows = [i for i, is_real in enumerate(real) if is_real]
    log_probs = logits[rows].log_softmax(-1).transpose(0, 1)
    flat = torch.tensor([label for i in rows for label in LABELS[i]])
    lengths = torch.tensor([len(LABELS[i]) for i in rows])
    theirs = torch.nn.functional.ctc_loss(log_probs, flat, frames[rows], lengths, reduction=reduction)
    theirs.backward()
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(gradient, logits.grad)


def test_a_mean_is_over_the_rows_of_a_rank():
    real = (True, False, True, False)
    logits, labels, frames, facts = made_batch(real, rows_per_rank=2.5)
    alone = batch_loss(*made_batch(real), config_of())
    torch.testing.assert_close(batch_loss(logits, labels, frames, facts, config_of()), alone * 2 / 2.5)
    torch.testing.assert_close(batch_loss(logits, labels, frames, facts, config_of("sum")), batch_loss(*made_batch(real), config_of("sum")))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_loss_waits_for_its_device(reduction, monkeypatch):
    """On the meta device nothing can be read back: what asks for a value raises. Torch's own loss copies lengths to the host."""

    def on_host_lengths(log_probs, targets, input_lengths, target_lengths, **_):
        assert (log_probs.device.type, targets.device.type) == ("meta", "meta")
        assert (input_lengths.device.type, target_lengths.device.type) == ("cpu", "cpu")
        return log_probs.sum((0, 2))

    monkeypatch.setattr(torch.nn.functional, "ctc_loss", on_host_lengths)
    logits, labels, frames, facts = made_batch((True, False, True, False))
    logits = logits.detach().to("meta").requires_grad_()
    for kernel in (None, Kernel()):
        logits.grad = None
        batch_loss(logits, labels.to("meta"), frames, facts, config_of(reduction), kernel).backward()
        assert logits.grad.device.type == "meta"
    assert greedy_tokens(logits, frames, 0).device.type == "meta"


class Kernel:
    """What stands in for Habana's kernel: torch's loss of the whole batch, of what only that kernel takes.

    Labels are padded with -100, every row has one, lengths lie with the logits, and there is no loss of a row alone.
    """

    def __init__(self):
        self.calls = 0

    def __call__(self, log_probs, labels, input_lengths, label_lengths, blank, reduction, zero_infinity):
        self.calls += 1
        assert reduction in ("mean", "sum")
        assert log_probs.dtype == torch.float32
        assert {t.device for t in (labels, input_lengths, label_lengths)} == {log_probs.device}
        if log_probs.device.type == "meta":
            return log_probs.sum()
        assert (label_lengths > 0).all()
        taken = torch.arange(labels.shape[1]) < label_lengths[:, None]
        assert (labels[~taken] == -100).all()
        assert ((labels[taken] >= 0) & (labels[taken] != blank)).all()
        theirs = torch.nn.functional.ctc_loss
        return theirs(log_probs, labels[taken], input_lengths, label_lengths, blank, reduction, zero_infinity)


@pytest.mark.parametrize("frames", [(30, 12, 25, 18), (30, 12, 4, 18)])  # the latter too short for five labels, of which two alike
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("rows_per_rank", [None, 2.5])
@pytest.mark.parametrize("real", [(True, True, True, True), (True, False, True, False), (False, True, False, False)])
@pytest.mark.parametrize("blank", [0, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_kernel_gives_the_same_loss_and_gradient(reduction, blank, real, rows_per_rank, zero_infinity, frames):
    config, kernel = config_of(reduction, zero_infinity, blank), Kernel()
    losses, gradients = [], []
    for its_own in (None, kernel):
        logits, *batch = made_batch(real, rows_per_rank, frames)
        losses.append(batch_loss(logits, *batch, config, its_own))
        losses[-1].backward()
        gradients.append(logits.grad)
    assert kernel.calls == 1
    assert torch.isfinite(losses[0]) == (zero_infinity or not real[2] or frames[2] > 5)
    assert gradients[0][0].any() == real[0]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_kernel_gives_exactly_zero_for_fillers_alone(reduction):
    logits, *batch = made_batch((False,) * 4)
    loss = batch_loss(logits, *batch, config_of(reduction), Kernel())
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


class Operations(TorchDispatchMode):
    """Writes down every operation that is run, with the shapes of the first three tensors that it gets.

    Later ones are lengths, and what ctc_loss keeps for its backward pass: as wide as the batch's longest labels, on a CPU.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func), [tuple(a.shape) for a in args[:3] if isinstance(a, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


def operations(real, reduction, kernel):
    logits, *batch = made_batch(real)
    with Operations() as run:
        batch_loss(logits, *batch, config_of(reduction), kernel).backward()
    return run.seen


def whole_sum(log_probs, labels, input_lengths, label_lengths, blank, reduction, zero_infinity):
    """A kernel of one operation, whatever the lengths."""
    return log_probs.sum()


@pytest.mark.parametrize("kernel", [None, whole_sum])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fillers_change_no_operation(reduction, kernel):
    full = operations((True,) * 4, reduction, kernel)
    assert any("log_softmax_backward" in name for name, _ in full)
    assert any("ctc_loss_backward" in name for name, _ in full) == (kernel is None)
    assert operations((True, False, True, False), reduction, kernel) == full
    assert operations((False,) * 4, reduction, kernel) == full
