"""What a CTC model's logits say of each utterance: its tokens and its loss, of its real frames only.

In: logits, labels and lengths. Out: tokens decoded greedily, losses an utterance and a batch. Neither padding nor fillers count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from asr.collate import BatchFacts

NEVER = -1e4
"""A log probability that is finite, and 0 as a probability."""


def frame_lengths(model: PreTrainedModel, input_lengths: Sequence[int]) -> torch.Tensor:
    """Return how many output frames belong to each utterance, int64 [batch], on the host; at least 1, also for fillers."""
    import torch

    return model._get_feat_extract_output_lengths(torch.tensor(input_lengths)).to(torch.int64).clamp(min=1)


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[NDArray[Any]], list[str]]:
    """Return what turns tokens of frames [rows, frames] into text; what is below zero is the evaluation loop's padding."""

    def decode(tokens: NDArray[Any]) -> list[str]:
        tokens[tokens < 0] = tokenizer.pad_token_id
        return list(tokenizer.batch_decode(tokens))

    return decode


def greedy_tokens(logits: torch.Tensor, frames: torch.Tensor, blank_id: int) -> torch.Tensor:
    """Return the best token of every frame, int64 [batch, frames]; frames past an utterance's own are blank.

    Without the mask, what a model says about padding becomes words: WER 33.6 instead of 9.8 in one trial.
    """
    import torch

    past_end = torch.arange(logits.shape[1], device=logits.device) >= frames.to(logits.device)[:, None]
    return logits.argmax(dim=-1).masked_fill(past_end, blank_id)


def searched_tokens(
    search: Callable[[NDArray[Any]], NDArray[Any]], logits: torch.Tensor, frames: torch.Tensor, real: Sequence[bool], blank_id: int
) -> torch.Tensor:
    """Return the tokens that a search finds for every real utterance, int64 [batch, frames]; blank past its own frames, and for fillers."""
    import torch

    log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    tokens = torch.full(logits.shape[:2], blank_id, dtype=torch.int64)
    for row, (count, is_real) in enumerate(zip(frames.tolist(), real, strict=True)):
        if is_real:
            tokens[row, :count] = torch.from_numpy(search(log_probs[row, :count]))
    return tokens.to(logits.device)


def utterance_losses(
    logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, label_lengths: Sequence[int], config: Any
) -> torch.Tensor:
    """Return the CTC loss of each utterance, float32 [batch]; their mean is the loss of transformers' own forward.

    `labels` is int64 [batch, labels] padded with -100; `config` gives blank, reduction and zero_infinity. `frames` and
    `label_lengths` lie on the host, where torch wants them: lengths on a device would be copied back at every step (a sync).

    On an HPU they go to the device all the same: numbers of the host are constants of a lazy graph, so that every batch would
    compile another. Only the op below torch's own function takes lengths as tensors there (aten/src/ATen/native/LossCTC.cpp).
    """
    import torch
    from torch.nn import functional

    num_labels = torch.tensor(label_lengths)
    log_probs = functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    targets, blank, zeroes = labels.clamp(min=0), config.pad_token_id, config.ctc_zero_infinity
    if logits.device.type == "hpu":
        lengths = _moved(frames, logits), _moved(num_labels, logits)
        losses, _ = torch._ctc_loss(log_probs, targets, *lengths, blank=blank, zero_infinity=zeroes)
        losses = torch.where(losses.isinf(), 0.0, losses) if zeroes else losses
    else:
        losses = functional.ctc_loss(log_probs, targets, frames, num_labels, blank=blank, reduction="none", zero_infinity=zeroes)
    return losses / _moved(num_labels.clamp(min=1), losses) if config.ctc_loss_reduction == "mean" else losses


def batch_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    frames: torch.Tensor,
    facts: BatchFacts,
    config: Any,
    kernel: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the loss of a batch, a scalar: over its real rows what transformers' own forward gives, fillers left out.

    With several ranks a mean is over `rows_per_rank` rows: the mean over ranks, which DDP takes of the gradients, is then
    the mean over all their utterances.

    A batch of fillers alone gives a zero that has a gradient, so that no rank of several waits for another. The operations
    are the same with fillers or without: an HPU compiles a graph for every sequence of operations.

    `kernel` is the device's own CTC loss (asr.gaudi.ctc_kernel); None takes torch's.
    """
    import torch

    if kernel is not None:
        return _loss_by_kernel(kernel, logits, labels, frames, facts, config)
    losses = utterance_losses(logits, labels, frames, facts.label_lengths, config)
    total = torch.where(_moved(torch.tensor(facts.real), losses), losses, torch.zeros_like(losses)).sum()
    return total / _mean_over(facts) if config.ctc_loss_reduction == "mean" else total


def _loss_by_kernel(
    kernel: Callable[..., torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, facts: BatchFacts, config: Any
) -> torch.Tensor:
    """Return the loss of a batch by a kernel that reduces over all its rows, and takes lengths as tensors on the device.

    It is used as optimum-habana's wav2vec2 uses it (modeling_wav2vec2.py:425 of 1.21.2): labels padded with -100, a mean or
    a sum. A filler gets one label, in all of its frames with probability 1: its loss is log 1, and where's gradient is 0.
    """
    import torch
    from torch.nn import functional

    label = 0 if config.pad_token_id else 1  # whichever isn't blank
    certain, only = torch.full(logits.shape[-1:], NEVER), torch.full(labels.shape[-1:], -100)
    certain[label], only[0] = 0.0, label
    real = _moved(torch.tensor(facts.real), logits)
    log_probs = functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    num_labels = torch.tensor([length if is_real else 1 for length, is_real in zip(facts.label_lengths, facts.real, strict=True)])
    mean = config.ctc_loss_reduction == "mean"
    loss = kernel(
        torch.where(real[:, None], log_probs, _moved(certain, logits)),
        torch.where(real[:, None], labels, _moved(only, logits)),
        _moved(frames, logits),
        _moved(num_labels, logits),
        config.pad_token_id,
        "mean" if mean else "sum",
        config.ctc_zero_infinity,
    )
    return loss * (len(facts.rows) / _mean_over(facts)) if mean else loss  # the kernel's mean is over fillers too


def _mean_over(facts: BatchFacts) -> float:
    """Return the number of rows that a mean loss is over."""
    return facts.rows_per_rank or max(1, sum(facts.real))


def _moved(made_on_host: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the other's device without waiting for what runs there."""
    return made_on_host.to(like.device, non_blocking=True)
