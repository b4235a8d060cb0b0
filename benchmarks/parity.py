"""The loss of every training step with batching=fixed, against transformers' own pieces put together plainly.

    python benchmarks/parity.py [--steps 20] [--batch-size 4] [--model wav2vec2_tiny]

Plainly: soundfile, Wav2Vec2Processor padding to 20 s and 500 labels, the model's own loss, torch's AdamW without decay of
biases and norms, clipping, a linear schedule; no trainer and none of our batches. Both begin with the same weights and
take the same utterances in the same order, without dropout and SpecAugment. Only rounding can differ. Prints both losses;
as the last line, a JSON object with the greatest relative difference.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpus
import soundfile
import trainers

if TYPE_CHECKING:
    import torch

MAX_SECONDS, MAX_LABELS, RATE_HZ = 20, 500, 16000
NO_DICE = [
    *(f"model.{name}=0" for name in ("attention_dropout", "activation_dropout", "feat_proj_dropout", "hidden_dropout", "final_dropout")),
    *(f"model.{name}=0" for name in ("mask_time_prob", "mask_feature_prob", "layerdrop")),
]


def our_losses(trainer: Any) -> list[float]:
    """Train, and return the loss of every step."""
    losses = []
    step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = recorded
    trainer.train()
    return losses


def their_losses(trainer: Any, model: Any, order: Sequence[Sequence[int]]) -> list[float]:
    """Train `model` on the batches of row numbers in `order`, and return the loss of every step."""
    from torch.nn.utils import clip_grad_norm_
    from torch.optim import AdamW
    from transformers import get_linear_schedule_with_warmup

    args = trainer.args
    optimizer = AdamW(parameter_groups(model, args.weight_decay), args.learning_rate, (args.adam_beta1, args.adam_beta2), args.adam_epsilon)
    schedule = get_linear_schedule_with_warmup(optimizer, args.get_warmup_steps(len(order)), len(order))
    losses = []
    model.train()
    for inputs in batches(trainer, order):
        loss = model(**inputs).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def batches(trainer: Any, order: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what Wav2Vec2Processor makes of the utterances, padded as published."""
    import torch

    processor, utterances = trainer.processing_class, trainer.train_dataset.utterances
    for rows in order:
        waves = [soundfile.read(utterances[row].audio, dtype="float32")[0] for row in rows]
        padding = {"padding": "max_length", "max_length": MAX_SECONDS * RATE_HZ, "return_attention_mask": True}
        inputs = processor(waves, sampling_rate=RATE_HZ, return_tensors="pt", **padding)
        labels = torch.full((len(rows), MAX_LABELS), -100)
        for i, row in enumerate(rows):
            ids = processor.tokenizer(utterances[row].text).input_ids
            labels[i, : len(ids)] = torch.tensor(ids)
        yield {**inputs, "labels": labels}


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: what decays, and biases and norms, which don't."""
    from torch import nn

    norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))}
    decays, stays = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (stays if name.endswith("bias") or any(name.startswith(norm) for norm in norms) else decays).append(parameter)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0}]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--model", default="wav2vec2_tiny", help="an option of conf/model that takes waveforms")
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER, help="where synthetic audio is made and kept")
    asked = parser.parse_args(arguments)
    utterances = asked.steps * asked.batch_size  # every batch is full
    root = corpus.make(asked.corpus, train=utterances, dev=1, audio_format="wav", longest_seconds=MAX_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers.built(
            Path(folder, "run"),
            root,
            "batching=fixed",
            f"model={asked.model}",
            *NO_DICE,
            "trainer.args.num_train_epochs=1",
            f"trainer.args.per_device_train_batch_size={asked.batch_size}",
        )
        plain = plain_copy(trainer.model)
        order = [[slot.row for slot in slots] for slots in trainer.get_train_dataloader().batch_sampler]
        ours = our_losses(trainer)
        theirs = their_losses(trainer, plain, order)
    assert len(ours) == len(theirs) == asked.steps, f"{len(ours)} and {len(theirs)} steps instead of {asked.steps}"
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    print("step         ours       theirs   relative difference")
    for i, (a, b, difference) in enumerate(zip(ours, theirs, differences, strict=True), 1):
        print(f"{i:4} {a:12.6f} {b:12.6f} {difference:21.1e}")
    print(json.dumps({"max_relative_difference": max(differences), "steps": asked.steps, "first_loss": ours[0], "last_loss": ours[-1]}))


def plain_copy(model: Any) -> Any:
    """Return transformers' own class with the same config and weights."""
    from transformers import AutoModelForCTC

    plain = AutoModelForCTC.from_config(copy.deepcopy(model.config))
    plain.load_state_dict(model.state_dict())
    return plain


if __name__ == "__main__":
    main()
