"""Parameters that training can't reach, frozen before it begins.

In: a model and an example of what it takes in training. Out: a model each of whose trained parameters gets a gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def freeze_unused(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[str]:
    """Freeze the parameters that no training step gives a gradient, say so, and return their names.

    DDP and HPU training graphs fail on a missing gradient. `inputs` is what the model takes in training, masks included
    and labels not, as short as you like: only which parameters the logits are made from counts. Nothing is changed for
    training without DDP, whose optimizer passes over a missing gradient; but checkpoints fit whatever the topology.
    """
    reached = _reached_parameters(model, inputs)
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p not in reached] if reached else []
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    if unused:
        why = {name: "no time masks" if name.endswith("masked_spec_embed") else "unused by this model's forward" for name in unused}
        log.info("froze what would get no gradient: %s", ", ".join(f"{name} ({reason})" for name, reason in why.items()))
    return unused


def _reached_parameters(model: PreTrainedModel, inputs: Mapping[str, Any]) -> set[Any]:
    """Return the parameters from which the logits are made, without a backward pass: half a second for 95 M of them on a CPU.

    The model is in evaluation meanwhile: no LayerDrop hides a layer, no running statistics change. Attention is eager, since
    the weights still lie on the host, where flash attention doesn't run. Empty where the graph doesn't show them.
    """
    import torch

    training, attention = model.training, model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):  # LayerDrop rolls its dice in evaluation too
            without = {"use_cache": False} if "decoder_input_ids" in inputs else {}  # optimum-habana's BART generates with one alone
            logits = model.eval()(**inputs, **without).logits
    finally:
        model.config._attn_implementation = attention
        model.train(training)
    reached, seen, waiting = set(), set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if "CheckpointFunction" in node.name():  # reentrant checkpointing keeps its part of the graph to itself
            return set()
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad: a leaf
            reached.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return reached


def trained_parameters(model: PreTrainedModel) -> Mapping[str, int]:
    """Return how many parameters a model has and how many are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}
