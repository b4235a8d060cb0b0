"""What a decoder's logits and its generated tokens say of each utterance: its loss, and its tokens up to their end.

In: logits and labels, generated tokens. Out: losses an utterance and a batch, tokens up to their end. Fillers count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from asr.collate import BatchFacts


def batch_loss(logits: torch.Tensor, labels: torch.Tensor, facts: BatchFacts, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return the loss of a batch, a scalar: the mean cross-entropy of its real labels, as transformers' own forward gives.

    `logits` is [batch, labels, tokens], `labels` int64 [batch, labels] padded with -100. With several ranks the mean is over
    `labels_per_rank` labels: the mean over ranks, which DDP takes of the gradients, is then the mean over all their labels.
    Labels are counted on the host, so that nobody waits for the device. `label_smoothing` is shared out over all tokens, as
    transformers' LabelSmoother does.
    """
    from torch.nn import functional

    total = functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten().to(logits.device),
        ignore_index=-100,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (facts.labels_per_rank or max(1, sum(facts.label_lengths)))


def utterance_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each utterance's labels, float32 [batch]; 0 for a filler."""
    from torch.nn import functional

    labels = labels.to(logits.device)
    losses = functional.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
    return losses.sum(dim=1) / (labels != -100).sum(dim=1).clamp(min=1)


def decoder(tokenizer: PreTrainedTokenizerBase, start: int) -> Callable[[NDArray[Any]], list[str]]:
    """Return what turns generated tokens [rows, tokens] into text."""
    end = int(tokenizer.eos_token_id)
    return lambda tokens: list(tokenizer.batch_decode([row.tolist() for row in up_to_end(tokens, start, end)], skip_special_tokens=True))


def up_to_end(tokens: NDArray[Any], start: int, end: int) -> list[NDArray[np.int64]]:
    """Return each row of generated tokens [rows, tokens] up to its end, what starts it left out.

    Whisper's generate() has left that out already (transformers 4.55, generation_whisper.py). A device of static shapes generates on
    after the end; padding may be the end itself, and so may be the start.
    """
    import numpy as np

    rows = []
    for row in tokens.astype(np.int64):
        said = row[1:] if len(row) and row[0] == start else row
        ends = np.flatnonzero((said == end) | (said < 0))
        rows.append(said[: ends[0]] if len(ends) else said)
    return rows
