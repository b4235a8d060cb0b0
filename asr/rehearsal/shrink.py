"""An experiment made small enough to be rehearsed: its model, its ranks and its length; and what takes another path than asked.

In: a composed configuration. Out: one of the same schema for a rehearsal, with every change, its reason and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

from asr import compatibility, config, engines
from asr.arguments import installed_spelling
from asr.compatibility import GRAPHS, TRAINING_GRAPHS
from asr.ctc import CTCModel
from asr.errors import ConfigError
from asr.pipeline import Pipeline

MOST_RANKS = 2
NEVER = 1_000_000  # steps, of which a rehearsal has a few


@dataclass(frozen=True)
class Change:
    """One key that a rehearsal has otherwise than the experiment, and why."""

    key: str
    asked: Any
    rehearsed: Any
    why: str


@dataclass(frozen=True)
class Shrunk:
    """A rehearsal's configuration, which Pipeline.of takes; what is smaller in it, and what takes another path than asked."""

    config: dict[str, Any]
    sizes: list[Change]
    substitutions: list[Change]


def shrink(composed: Mapping[str, Any]) -> Shrunk:
    """Return the rehearsal of an experiment; raise ConfigError for one that is composed wrongly, or can't be rehearsed.

    Needs the checkpoint's config.json, from disk or the hub, and none of its weights; no device, data or torch.
    """
    asked = Pipeline.of({**composed, "rehearse": False})
    if not asked.works:
        raise ConfigError("has neither train nor evaluate, so there is nothing to rehearse.", key="stages")
    made = Shrunk({**deepcopy(dict(composed)), "rehearse": True}, [], [])
    _shrink_model(asked, made)
    _keep_tokenizer(asked, made)
    _shrink_topology(asked, made)
    _replace_deepspeed(asked, made)
    _shorten(asked, made)
    _leave_out_compiler(asked, made)
    _leave_out_fp8(asked, made)
    _leave_out_checkpointing(made)
    Pipeline.of(made.config)
    return made


def _shrink_model(asked: Pipeline, made: Shrunk) -> None:
    model, node = asked.model, made.config["model"]
    if not hasattr(model, "shrunk"):
        raise ConfigError(
            f"{type(model).__name__} has no method shrunk(), which returns a small one of its kind with random weights: give it one, "
            "or rehearse with another model.",
            key="model",
        )
    asked.check_evaluates()
    with config.under("model"):
        small = model.shrunk()
    changed = [f.name for f in fields(small) if getattr(small, f.name) != getattr(model, f.name)]
    node |= {name: deepcopy(getattr(small, name)) for name in changed}
    if not isinstance(model, CTCModel):
        why = f"as {type(model).__name__}.shrunk() has it"
        for name in changed:
            before, after = getattr(model, name), getattr(small, name)
            nested = isinstance(before, Mapping) and isinstance(after, Mapping)
            differ = [(f"{name}.{k}", v, after[k]) for k, v in before.items() if k in after and after[k] != v] if nested else []
            made.sizes.extend(
                Change(f"model.{key}", was, now, why) for key, was, now in differ or ([] if nested else [(name, before, after)])
            )
        return
    if model.name_or_path is not None:
        made.sizes.append(Change("model.name_or_path", model.name_or_path, None, "random weights; the checkpoint's are not read"))
    assert isinstance(small, CTCModel)
    before, after = model.config_values(), small.config_values()
    if _described(before) != _described(after):
        why = "the same class and options take the same path; convolutions keep kernels and strides, so that there are as many frames"
        made.sizes.append(Change("model", _described(before), _described(after), why))
    length = "mask_feature_length"
    if before.get(length) != after.get(length):
        why = "no longer than the small model is wide: no span would be drawn otherwise"
        made.sizes.append(Change(f"model.{length}", before[length], after[length], why))


def _described(values: Mapping[str, Any]) -> str:
    """Return a model's sizes in words."""
    widths = sorted(set(values.get("conv_dim") or ()))
    convolutions = f", convolutions of width {' to '.join(map(str, dict.fromkeys((widths[0], widths[-1]))))}" if widths else ""
    return (
        f"{values['num_hidden_layers']} layers of width {values['hidden_size']}, {values['num_attention_heads']} heads, "
        f"feed-forward of width {values['intermediate_size']}{convolutions}"
    )


def _keep_tokenizer(asked: Pipeline, made: Shrunk) -> None:
    """Take the tokenizer from where the experiment has it, though the model has no checkpoint any more."""
    if asked.builds_vocabulary:
        return
    if asked.vocabulary.tokenizer_name_or_path is None:
        made.config["vocabulary"]["tokenizer_name_or_path"] = asked.model.tokenizer_files()[0]
    elif "revision" in made.config["model"]:  # another's tokenizer hasn't the checkpoint's: Pipeline.tokenizer
        made.config["model"]["revision"] = None


def _shrink_topology(asked: Pipeline, made: Shrunk) -> None:
    where, node = asked.topology, made.config["topology"]
    ranks = min(where.num_processes, MOST_RANKS)
    node |= {"num_nodes": 1, "ranks_per_node": ranks, "world_size": None}
    node |= dict.fromkeys(("hostfile", "node_rank", "master_addr", "master_port"))
    if ranks < where.num_processes:
        why = "two ranks share out batches and average gradients as any number does"
        made.sizes.append(Change("topology.world_size", where.num_processes, ranks, why))
    if where.num_nodes > 1:
        why = "a rehearsal has one host: that servers find each other, and Gaudi's network between them, isn't rehearsed"
        made.substitutions.append(Change("topology.num_nodes", where.num_nodes, 1, why))
    if where.device != "hpu":
        node |= {"device": "hpu", "use_habana": True, "use_lazy_mode": True}
        why = "a rehearsal is of the HPU's path; in lazy mode, as topology=hpu1 has it"
        made.substitutions.append(Change("topology.device", where.device, "hpu", why))
        if where.backend is not None:
            node["backend"] = "hccl"
            made.substitutions.append(Change("topology.backend", where.backend, "hccl", "what moves an HPU's tensors between ranks"))


def _replace_deepspeed(asked: Pipeline, made: Shrunk) -> None:
    where, node, args = asked.topology, made.config["topology"], made.config["trainer"]["args"]
    if where.launcher == "deepspeed":
        node["launcher"] = "torchrun"
        why = "DeepSpeed's launcher comes with Gaudi's fork of it (https://github.com/HabanaAI/DeepSpeed), which needs a Gaudi"
        made.substitutions.append(Change("topology.launcher", "deepspeed", "torchrun", why))
    if not where.deepspeed:
        return
    node["deepspeed"] = {}
    stage = (where.deepspeed.get("zero_optimization") or {}).get("stage", 0)
    why = (
        "Gaudi's fork of DeepSpeed (https://github.com/HabanaAI/DeepSpeed) doesn't run on the stand-in: weights, gradients and "
        "optimizer states are whole on every rank"
    )
    instead = "DDP" if node["ranks_per_node"] > 1 else "one rank without it"
    made.substitutions.append(Change("topology.deepspeed", f"ZeRO stage {stage}", instead, why))
    if node["ranks_per_node"] == 1 or "train" not in asked.stages or asked.trainer.engine != "gaudi":
        return
    if args.get(TRAINING_GRAPHS):
        if args.get("distribution_strategy") != "fast_ddp":
            why = "without DeepSpeed, training graphs on several cards need it (optimum-habana, docs of use_hpu_graphs_for_training)"
            _substitute(made, "distribution_strategy", "fast_ddp", why)
    elif any(asked.model.known_layerdrop().values()) and not args.get("ddp_find_unused_parameters"):
        why = "in DeepSpeed's place DDP would wait for the gradients of dropped layers"
        _substitute(made, "ddp_find_unused_parameters", True, why)


def _shorten(asked: Pipeline, made: Shrunk) -> None:
    """Leave the trainer what a few steps need: the batches say how many there are, and who rehearses saves in the middle."""
    args = asked.trainer.args
    if args.get("num_train_epochs", 3) != 1 or args.get("max_steps", -1) != -1:
        steps = args.get("max_steps", -1)
        length = f"{steps} steps" if steps > 0 else f"{args.get('num_train_epochs', 3)} epochs"
        why = "each shape of the job comes a few times, in batches of a few rows; its lengths and labels are the whole job's"
        made.sizes.append(Change("trainer.args.num_train_epochs", length, "a few steps", why))
    ours: dict[str, Any] = {"num_train_epochs": 1, "max_steps": -1, "report_to": [], "save_total_limit": None}
    ours |= _saving(args)
    if args.get("report_to") not in (None, "none", [], ["none"]):
        made.sizes.append(Change("trainer.args.report_to", args["report_to"], [], "nobody follows so short a run"))
    asked_saving = f"saves by {args.get('save_strategy', 'steps')}, evaluates by {args.get('eval_strategy', 'no')}"
    made.sizes.append(Change("trainer.args.save_strategy", asked_saving, "once, in the middle", "resuming starts from there"))
    for name, value, why in (
        ("push_to_hub", False, "there is nothing to publish"),
        ("dataloader_num_workers", 1, "one worker takes the path of several"),
    ):
        if args.get(name) not in (None, False, 0, value):
            ours[name] = value
            made.sizes.append(Change(f"trainer.args.{name}", args[name], value, why))
    if asked.trainer.average_checkpoints is not None:
        made.config["trainer"]["average_checkpoints"] = None
        made.sizes.append(Change("trainer.average_checkpoints", asked.trainer.average_checkpoints, None, "one checkpoint has no mean"))
    made.config["trainer"]["args"] |= ours
    if args.get("auto_find_batch_size"):
        _substitute(made, "auto_find_batch_size", False, "a host's memory says nothing about a Gaudi's")


def _saving(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by which the trainer saves and evaluates when it is told to, and at no step of its own.

    What load_best_model_at_end refuses stays as it is, to be refused (transformers 4.55, training_args.py:1666-1694): strategies
    that differ, and steps of which one is no multiple of the other.
    """
    evaluates, saves = args.get("eval_strategy", "no"), args.get("save_strategy", "steps")
    every = {"eval_steps": args.get("eval_steps") or args.get("logging_steps", 500), "save_steps": args.get("save_steps", 500)}
    if args.get("load_best_model_at_end"):
        mixed = evaluates == saves == "steps" and len({value < 1 for value in every.values()}) > 1
        if evaluates == "no" or mixed or saves not in ("best", evaluates):
            return {}
    strategies = {"save_strategy": "steps"} | ({"eval_strategy": "steps"} if evaluates != "no" else {})
    both_by_steps = evaluates == saves == "steps"
    return strategies | {name: round(value * NEVER) if both_by_steps else NEVER for name, value in every.items()}


def _leave_out_compiler(asked: Pipeline, made: Shrunk) -> None:
    args, where = made.config["trainer"]["args"], asked.topology
    named = [name for name in ("torch_compile_backend", "torch_compile_mode", "torchdynamo") if args.get(name) is not None]
    if not (args.get("torch_compile") or named):
        return
    if where.device == "hpu" and where.use_lazy_mode and not args.get("torch_compile"):
        return  # "Dynamo and lazy are mutually exclusive": refused by optimum-habana (training_args.py:664), here too
    asks = next((args[name] for name in named), True)
    for name in named:
        del args[name]
    args["torch_compile"] = False
    why = "hpu_backend is Intel's compiler (optimum-habana, training_args.py:668), which isn't here: the model runs as it is written"
    made.substitutions.append(Change("trainer.args.torch_compile", asks, False, why))
    if where.device == "hpu" and not where.use_lazy_mode:
        for name in GRAPHS:
            if args.get(name):
                _substitute(made, name, False, "without torch.compile, HPU graphs are captured in lazy mode only")
        for name in ("max_hpu_graphs", "disable_tensor_cache_hpu_graphs"):  # refused without graphs
            args.pop(name, None)


def _leave_out_fp8(asked: Pipeline, made: Shrunk) -> None:
    for name, value in asked.trainer.args.items():
        if "fp8" in name and value:
            why = "its kernels are Intel's transformer engine (optimum-habana, accelerate/utils/transformer_engine.py:34), which isn't here"
            _substitute(made, name, False, why)


def _leave_out_checkpointing(made: Shrunk) -> None:
    """Switch gradient checkpointing off where it can't run on this host's torch, which need not be a Gaudi's."""
    asked = [name for name in ("gradient_checkpointing", "activation_checkpointing") if made.config["trainer"]["args"].get(name)]
    if not asked:
        return
    smaller = Pipeline.of(made.config)
    engine = engines.engine(smaller.trainer.engine)
    args = installed_spelling(smaller.trainer.args, engine.argument_fields())
    judged = replace(smaller, trainer=replace(smaller.trainer, args=args))
    if compatibility.checkpointing_knows_this_torch(judged) is None:
        return
    for name in asked:
        why = "optimum-habana's checkpointing in lazy mode doesn't fit this host's torch (gradient_checkpointing.py:368)"
        _substitute(made, name, False, why)


def _substitute(made: Shrunk, name: str, value: Any, why: str) -> None:
    """Set a training argument to what takes another path."""
    args = made.config["trainer"]["args"]
    made.substitutions.append(Change(f"trainer.args.{name}", args.get(name), value, why))
    args[name] = value
