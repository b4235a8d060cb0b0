"""What the stand-in saw of a trainer: facts for the verdict, what costs time, and what would fail.

In: a trainer of ours that trained or evaluated on the stand-in device, and its recorder. Out: JSON-able facts and sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asr import trainer
from asr.rehearsal import device, graphs
from asr.rehearsal.recorder import EVALUATION, SCORING, STEP, UPDATE, count_graphs
from asr.rehearsal.verdict import Facts, times


def described(speech_trainer: Any) -> Mapping[str, Any]:
    """Return what runs, as the trainer itself says it."""
    import torch.distributed

    from asr.rehearsal import hccl

    hccl.register()  # one rank alone has no reason to; with several accelerate has asked for it
    args, model = speech_trainer.args, speech_trainer.accelerator.unwrap_model(speech_trainer.model)
    group = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    gaudi_config = getattr(speech_trainer, "gaudi_config", None)
    return {
        "device": args.device.type,
        "backend": torch.distributed.Backend.default_device_backend_map["hpu"],
        "process_group": group,
        "world_size": args.world_size,
        "trainer_class": trainer.class_path(speech_trainer),
        "model_class": type(model).__mro__[0].__name__,
        "settings": {
            "use_habana": getattr(args, "use_habana", None),
            "use_lazy_mode": getattr(args, "use_lazy_mode", None),
            "autocast": "bfloat16" if getattr(speech_trainer, "use_hpu_amp", False) or args.bf16 else None,
            "fused_adam": bool(gaudi_config and gaudi_config.use_fused_adam),
            "fused_clip_norm": bool(gaudi_config and gaudi_config.use_fused_clip_norm and args.max_grad_norm),
            "attention": model.config._attn_implementation,
            "training_graphs": bool(getattr(args, "use_hpu_graphs_for_training", False)),
            "inference_graphs": bool(getattr(args, "use_hpu_graphs_for_inference", False)),
            "distribution_strategy": getattr(args, "distribution_strategy", None) if args.world_size > 1 else None,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        },
    }


def class_name(optimizer: Any) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def of_training(speech_trainer: Any, recorder: Any, measured: Mapping[str, Any]) -> Mapping[str, Any]:

    counted = count_graphs("training", STEP)
    syncs = device.events("sync", STEP, UPDATE)
    where = [{"op": op, "where": place, "times": number} for (op, place), number in recorder.syncs.most_common()]
    if syncs.total() > recorder.syncs.total():
        where.append({"op": "others", "where": "C++ (DDP, or the backward pass)", "times": syncs.total() - recorder.syncs.total()})
    later = max(recorder.steps - 1, 1)  # the first sets things up: DDP asks how its buckets are to be
    return {
        "train_graphs": counted["model"],
        "train_graphs_captured": counted["captured"],
        "graphs_in_training": {
            "forward_backward": counted["recorded"],
            "update": len(device.graphs(UPDATE)),
            "in_all": len(device.graphs(STEP, UPDATE)),
        },
        "train_input_shapes": _shapes(speech_trainer, "train"),
        "planned_train_shapes": _planned(speech_trainer, "train"),
        "num_train_shapes": measured["num_train_shapes"],
        "steps": recorder.steps,
        "host_syncs_per_step": (syncs.total() - recorder.first_syncs) / later if recorder.steps > 1 else float(syncs.total()),
        "host_syncs_in_first_step": recorder.first_syncs,
        "host_syncs": where,
        "dynamic_ops": dict(device.events("dynamic", STEP, UPDATE)),
        "padding_efficiency": measured["padding_efficiency"],
        "planned_padding_efficiency": speech_trainer.batching.planned_efficiency.get("train"),
        "losses": recorder.losses,
    }


def of_evaluation(speech_trainer: Any, measured: Mapping[str, Any]) -> Mapping[str, Any]:

    counted = count_graphs("inference", EVALUATION)
    facts = {
        "eval_graphs": counted["model"],
        "eval_graphs_captured": counted["captured"],
        "graphs_in_evaluation": {
            "forward": counted["recorded"],
            "scoring": len(device.graphs(SCORING)),
            "in_all": len(device.graphs(EVALUATION, SCORING)),
        },
        "eval_input_shapes": _shapes(speech_trainer, "eval"),
        "planned_eval_shapes": _planned(speech_trainer, "eval"),
        "num_eval_shapes": measured["num_eval_shapes"],
    }
    return facts if "train" in speech_trainer.batching.planned else facts | {"padding_efficiency": measured["eval_padding_efficiency"]}


def _shapes(speech_trainer: Any, phase: str) -> list[list[int]]:
    """Return the shapes that went through forward: inputs', then labels'."""
    return sorted(list(shape) for shape in speech_trainer.forwarded[phase].shapes)


def _planned(speech_trainer: Any, phase: str) -> list[list[int]]:
    """Return length, labels and rows of the whole job's shapes, as they were planned."""
    return [list(shape) for shape in speech_trainer.batching.planned.get(phase, ())]


def what_graphs_do_wrong(kind: str) -> list[str]:
    """Return what HPU graphs of a kind would do wrong."""

    found = []
    frozen = [captured for captured in graphs.seen.of(kind) if captured.frozen]
    if frozen:
        drawn = ", ".join(sorted({name for captured in frozen for name in captured.frozen}))
        shapes, named = _listed(captured.shapes for captured in frozen), "graph" if len(frozen) == 1 else "graphs"
        found.append(
            f"{len(frozen)} {kind} {named} of input shapes {shapes} froze what forward drew on the host ({drawn}): "
            "every replay repeats it. Draw it with the batch and pass it as a tensor."
        )
    frozen_shapes = [captured.shapes for captured in frozen]
    unfaithful = [shapes for of, shapes in graphs.seen.unfaithful if of == kind and shapes not in frozen_shapes]
    if unfaithful:
        found.append(
            f"a replay of the {kind} graph of input shapes {_listed(unfaithful)} gives something else than forward itself: the capture "
            "froze what forward decides or counts in Python, such as a branch on a value of its input."
        )
    without = graphs.seen.without(kind)
    if kind == "training" and without:
        found.append(
            f"a training graph over changing shapes: {len(graphs.seen.of(kind))} are kept, and input shapes "
            f"{_listed(without)} ran without one, {times(sum(without.values()))}. "
            "Choose batching=buckets or fixed, or fewer shapes."
        )
    return found


def what_splits_graphs(kind: str, located: Counter[tuple[str, str]]) -> list[str]:
    """Return what splits HPU graphs of a kind, which costs time and is no failure
    (https://docs.habana.ai/en/latest/PyTorch/Model_Optimization_PyTorch/HPU_Graphs_Training.html, "Limitations")."""

    phase = {"training": STEP, "inference": EVALUATION}[kind]
    syncs = Counter({f"{op} at {where}": times for (op, where), times in located.items()}) or device.events("sync_in_capture", phase)
    found = []
    if kind == "inference" and (without := graphs.seen.without(kind)):
        found.append(f"{len(without)} of the evaluation's shapes ran without a graph: max_hpu_graphs keeps {len(graphs.seen.of(kind))}.")
    for ops, reason in (
        (syncs, "asks for a value on the host; where Python branches on it, the branch that was captured stays"),
        (device.events("dynamic_in_capture", phase), "gives a result whose size depends on data"),
    ):
        found += [f"{op} splits {kind} graphs, {times(number)}: it {reason}." for op, number in ops.items()]
    return found


def what_shares_a_graph(facts: Facts, phase: str) -> list[str]:
    """Say where fewer graphs than shapes were recorded: what several batches computed is one, for nobody ended it."""
    graphs, shapes = facts[f"{phase}_graphs"], facts[f"num_{phase}_shapes"]
    if graphs >= shapes or not facts["settings"]["use_lazy_mode"]:
        return []
    return [f"{shapes} shapes made {graphs} graphs ({phase}): nobody calls mark_step between batches, so that several share a graph."]


def _listed(inputs: Iterable[Sequence[Sequence[int]]]) -> str:
    """Return the shape of each forward's first tensor, its input."""
    return ", ".join(str(list(shapes[0])) for shapes in inputs)


def what_attention_is_not_called(speech_trainer: Any, facts: Facts) -> list[str]:
    """Say where fused attention was asked for and the model has its own: it takes the name and keeps to itself."""
    from asr.rehearsal.kernels import CALLED

    facts |= {"fused_sdpa_calls": CALLED["FusedSDPA"]}
    asked = facts["settings"]["attention"]
    if asked != "gaudi_fused_sdpa" or CALLED["FusedSDPA"]:
        return []
    return [f"model.attn_implementation: {asked} was asked for, and {facts['model_class']} never calls it: take eager, or null."]
