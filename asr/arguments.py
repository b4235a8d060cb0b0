"""Training arguments in either spelling: transformers 5 renamed or dropped some that 4.55 has.

In: arguments by either name, and the fields of the installed class. Out: the same arguments by the names that this
class knows, or a ConfigError for one that has no counterpart. Read from training_args.py of 4.55.4 and of 5.23.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from asr.errors import ConfigError

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "torchdynamo": "torch_compile_backend",
}
"""Old names and new ones of arguments that take the same values."""

LENGTH_GROUPING = {True: "group_by_length", False: "random"}
"""Values of group_by_length and what train_sampling_strategy calls them."""
ALL_STEPS = math.nextafter(1, 0)  # warmup_steps=1 is one step, not all of them; rounded up, this share of n steps is n


@dataclass(frozen=True)
class Dropped:
    """An argument of 4.55 that 5 has no more: values that say nothing there, and what to do about others."""

    harmless: Collection[Any]
    instead: str


_PRECISION = Dropped(("auto", "cpu_amp", "hpu_amp", "cuda_amp"), "mixed precision is accelerate's: bf16 or fp16")
_HUB = Dropped((None,), "name the repository whole: hub_model_id")
_FSDP = Dropped((0, None), "it is a key of fsdp_config")
_GONE = Dropped((False,), "what it did is gone")
DROPPED: dict[str, Dropped] = {
    "fp16_backend": _PRECISION,
    "fp16_opt_level": Dropped(("O1",), "apex is gone; fp16 is accelerate's"),
    "fsdp_min_num_params": _FSDP,
    "fsdp_transformer_layer_cls_to_wrap": _FSDP,
    "half_precision_backend": _PRECISION,
    "include_tokens_per_second": Dropped((False,), "metrics.json counts seconds of audio a second"),
    "jit_mode_eval": _GONE,
    "mp_parameters": Dropped(("",), "SageMaker's model parallelism reads its own environment"),
    "past_index": Dropped((-1,), "what it did is gone"),
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "ray_scope": Dropped(("last",), "what it did is gone"),
    "save_safetensors": Dropped((True, None), "weights are always written as safetensors"),
    "tpu_metrics_debug": Dropped((False,), "debug=tpu_metrics_debug says the same"),
    "tpu_num_cores": Dropped((None,), "TPUs are found by themselves"),
    "use_ipex": _GONE,
    "use_legacy_prediction_loop": _GONE,
    "use_mps_device": Dropped((False, True), "mps is found by itself"),
}
"""Fields of 4.55's TrainingArguments that 5 neither has nor calls otherwise."""

Spelt = tuple[str, Any] | None
"""An argument's installed name and its value; None where it says nothing that isn't so anyway."""


def _warmup_ratio(value: Any, known: Collection[str]) -> Spelt:
    if "warmup_ratio" in known or not isinstance(value, (int, float)) or isinstance(value, bool):
        return "warmup_ratio" if "warmup_ratio" in known else "warmup_steps", value
    return "warmup_steps", ALL_STEPS if value == 1 else value


def _warmup_steps(value: Any, known: Collection[str]) -> Spelt:
    """A number below 1 is a share of all steps in 5, as warmup_ratio is in 4.55, whose warmup_steps are whole."""
    if "warmup_ratio" not in known or not isinstance(value, float):
        return "warmup_steps", value
    if 0 < value < 1:
        return "warmup_ratio", value
    return "warmup_steps", int(value) if value.is_integer() else value


def _group_by_length(value: Any, known: Collection[str]) -> Spelt:
    if "group_by_length" in known:
        return "group_by_length", value
    return "train_sampling_strategy", LENGTH_GROUPING.get(value, value) if isinstance(value, bool) else value


def _train_sampling_strategy(value: Any, known: Collection[str]) -> Spelt:
    if "train_sampling_strategy" in known:
        return "train_sampling_strategy", value
    for grouped, strategy in LENGTH_GROUPING.items():
        if value == strategy:
            return "group_by_length", grouped
    raise ConfigError(f"{value!r} needs transformers 5; here it is one of {', '.join(LENGTH_GROUPING.values())}.")


def _adafactor(value: Any, known: Collection[str]) -> Spelt:
    if "adafactor" in known:
        return "adafactor", value
    return ("optim", "adafactor") if value else None


def _include_inputs_for_metrics(value: Any, known: Collection[str]) -> Spelt:
    if "include_inputs_for_metrics" in known:
        return "include_inputs_for_metrics", value
    return ("include_for_metrics", ["inputs"]) if value else None


def _report_to(value: Any, known: Collection[str]) -> Spelt:
    """Null means all that are installed; 5.23 takes it for a tracker's name (training_args.py:1590)."""
    return "report_to", "all" if value is None else value


CHANGED: dict[str, Callable[[Any, Collection[str]], Spelt]] = {
    "adafactor": _adafactor,
    "group_by_length": _group_by_length,
    "include_inputs_for_metrics": _include_inputs_for_metrics,
    "report_to": _report_to,
    "train_sampling_strategy": _train_sampling_strategy,
    "warmup_ratio": _warmup_ratio,
    "warmup_steps": _warmup_steps,
}
"""Arguments whose values changed too, or their meaning."""
SPELLINGS = {*RENAMED, *RENAMED.values(), *DROPPED, *CHANGED, "logging_dir"}
"""Names that serve with either version; `logging_dir` is an environment variable in 5."""


def installed(name: str, value: Any, known: Collection[str]) -> Spelt:
    """Return one argument by the name and value that the installed class takes; `known` are its fields.

    A name that neither version has comes back as it is. Raises ConfigError, without a key, for a value that only the
    other version can have.
    """
    if name in CHANGED:
        return CHANGED[name](value, known)
    if name in RENAMED and RENAMED[name] in known:
        return RENAMED[name], value
    old = next((old for old, new in RENAMED.items() if new == name), None)
    if name not in known and old in known:
        return str(old), value
    if name in DROPPED and name not in known:
        if any(value == same and type(value) is type(same) for same in DROPPED[name].harmless):
            return None
        raise ConfigError(f"the installed transformers has no such argument: {DROPPED[name].instead}.")
    return name, value


def installed_spelling(arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return all arguments as the installed class takes them; raise ConfigError for two that say one thing."""
    spelt: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for name, value in _with_one_warmup(arguments).items():
        pair = installed(name, value, known)
        if pair is None:
            continue
        if pair[0] in spelt:
            raise ConfigError(f"says the same as {said_by[pair[0]]}; leave one of them out.", key=f"args.{name}")
        spelt[pair[0]] = pair[1]
        said_by[pair[0]] = name
    return spelt


def _with_one_warmup(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out a warmup_ratio or warmup_steps of 0 beside the other; both say something: ConfigError.

    Transformers 4.55 lets the steps win in silence: a ratio given on the command line would have no effect.
    """
    ratio, steps = (arguments.get(name) for name in ("warmup_ratio", "warmup_steps"))
    if ratio and steps:
        raise ConfigError(
            f"args.warmup_steps is {steps} already; give the share there (warmup_steps={ratio}), or ~trainer.args.warmup_steps.",
            key="args.warmup_ratio",
        )
    silent = "warmup_steps" if ratio else "warmup_ratio"
    return {name: value for name, value in arguments.items() if name != silent or value}
