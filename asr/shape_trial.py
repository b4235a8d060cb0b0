"""Every planned shape tried once before the first step, the largest first: memory runs out in the first minute or not at all.

In: a trainer about to begin, and the shapes of its plans. Out: nothing but the error of a shape that doesn't fit; weights,
gradients, buffers, dice and counts are as before, bit by bit.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from asr.collate import Row
from asr.ctc_outputs import frame_lengths
from asr.planning import Shape

log = logging.getLogger(__name__)


def try_shapes(trainer: Any, shapes: Mapping[str, Sequence[Shape]]) -> None:
    """Take a batch of each shape forward, and for training backward too; raise what the device or its library raises.

    What isn't tried, though it takes memory: the optimizer's states, which its first step makes; DDP's own copies of gradients;
    HPU graphs of an inference; layers that LayerDrop leaves out in this draw. Every rank tries its shapes by itself, on the
    model beneath DDP, so that nothing is reduced.

    DeepSpeed and FSDP hold weights in shards and step within backward: there nothing is tried.
    """
    kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
    tried = [(phase, shape) for phase in ("train", "eval") for shape in sorted(shapes.get(phase, ()), key=_size, reverse=True)]
    if not tried or kind in ("DEEPSPEED", "FSDP"):
        return
    begin = time.monotonic()
    with _untouched(trainer):
        for phase, shape in tried:
            _try(trainer, phase, shape)
    log.info("%d shapes fit into memory, tried in %.1f s (trainer.try_shapes)", len(tried), time.monotonic() - begin)


def _size(shape: Shape) -> tuple[int, int, int]:
    return shape.rows * shape.length, shape.length, shape.rows * shape.labels


def _try(trainer: Any, phase: str, shape: Shape) -> None:
    model, batch = trainer.model, made_up(trainer, phase, shape)
    if phase == "eval":
        model.eval()
        trainer.prediction_step(model, batch, False)
    else:
        model.train()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
        trainer.accelerator.backward(loss)
        loss.item()  # a lazy device computes when it is asked
    model.zero_grad(set_to_none=True)


def made_up(trainer: Any, phase: str, shape: Shape) -> Mapping[str, Any]:
    """Return a batch of a shape, every row of it real: quiet noise, and as many of the split's own labels as fit."""
    import numpy as np

    data = trainer.train_dataset if phase == "train" else trainer.eval_dataset
    collate = trainer.data_collator if phase == "train" else trainer.data_collator.for_evaluation()
    width = () if collate.num_features is None else (collate.num_features,)
    noise = np.random.default_rng(0).standard_normal((shape.length, *width), np.float32)
    labels = _labels(data.labels, shape, trainer.model)
    seconds = seconds_of(shape.length, data)
    return collate([Row(i, noise, labels, seconds, shape.length, shape) for i in range(shape.rows)])  # type: ignore[no-any-return]


def _labels(labels: Any, shape: Shape, model: Any) -> list[int]:
    """Return labels that CTC can spell in the shape's frames: no two neighbours are equal, where there are two kinds."""
    kinds = sorted({int(label) for label in labels.ids[:1000]}) or [0]
    most = shape.labels
    if hasattr(model, "_get_feat_extract_output_lengths"):
        frames = int(frame_lengths(model, [shape.length])[0])
        most = min(most, frames if len(kinds) > 1 else (frames + 1) // 2)
    return list(islice(cycle(kinds), most))


def seconds_of(length: int, dataset: Any) -> float:
    """Return the most seconds that fit into an input length, to a hundredth."""
    if dataset.input_length.window_seconds is not None:
        return float(dataset.input_length.window_seconds)
    hundredths = max(0, length * 100_000 // dataset.input_length(1000.0) - 10)  # frames overlap, so that a proportion isn't exact
    while dataset.input_length((hundredths + 1) / 100) <= length:
        hundredths += 1
    return float(hundredths / 100)


@contextlib.contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """Put everything back as it was before: a run with a trial is the run without it."""
    import torch

    model, forwarded = trainer.model, trainer.forwarded
    training = model.training
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    had = vars(trainer).get("current_gradient_accumulation_steps")
    trainer.current_gradient_accumulation_steps = 1  # the loop says so at each step
    trainer.forwarded = {phase: type(seen)() for phase, seen in forwarded.items()}
    trainer.trying = True
    for parameter, _ in gradients:
        parameter.grad = None
    try:  # auto_find_batch_size goes on after an error
        with _same_dice(trainer.args.device):
            yield
        trainer.trying, trainer.latest = False, None  # an error is explained by them
    finally:
        trainer.forwarded = forwarded
        trainer.current_gradient_accumulation_steps = had
        trainer.bad_numbers.begin()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        model.train(training)


@contextlib.contextmanager
def _same_dice(device: Any) -> Iterator[None]:
    """Put the dice of Python, numpy, torch and the device back where they were."""
    import numpy as np
    import torch

    of_device = None if device.type == "cpu" else torch.get_device_module(device)
    python, legacy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    its_own = None if of_device is None else of_device.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(host)
        if of_device is not None:
            of_device.set_rng_state(its_own)
