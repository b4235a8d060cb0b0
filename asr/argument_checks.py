"""Training arguments are checked before anything is written: known to the engine, of its type, in range, not decided elsewhere.

In: arguments as a configuration says them, and the engine. Out: the same arguments, or a ConfigError with the key and the mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asr import arguments, engines
from asr.config import out_of_range
from asr.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from asr.engines import Engine

_POSITIVE, _COUNT, _SHARE = {"above": 0}, {"at_least": 1}, {"at_least": 0, "at_most": 1}
_NOT_NEGATIVE = {"at_least": 0}
RANGES: dict[str, Mapping[str, float]] = {
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": {"at_least": 0, "below": 1},
    "adam_beta2": {"at_least": 0, "below": 1},
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "num_train_epochs": _POSITIVE,
    "max_steps": {"at_least": -1},
    "warmup_ratio": _SHARE,
    "warmup_steps": _NOT_NEGATIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "throughput_warmup_steps": _NOT_NEGATIVE,
    "eval_delay": _NOT_NEGATIVE,
    "ddp_timeout": _COUNT,
    "generation_max_length": _COUNT,
    "generation_num_beams": _COUNT,
    "label_smoothing_factor": _SHARE,
    "torch_empty_cache_steps": _COUNT,
}
"""Arguments that have a range, though their class doesn't check it."""

ELSEWHERE = {
    "output_dir": "hydra.run.dir says where a run lies",
    "seed": "`seed` at the top level seeds everything",
    "do_train": "`stages` says what runs",
    "do_eval": "`stages` says what runs",
    "do_predict": "`stages` says what runs",
    "ddp_backend": "topology.backend names it",
    "deepspeed": "topology.deepspeed holds its configuration",
    "local_rank": "a launcher numbers the processes; the topology group says how many",
    "use_cpu": "the topology group says on what",
    "no_cuda": "the topology group says on what",
    "use_habana": "the topology group says on what",
    "use_lazy_mode": "the topology group says on what",
    "gaudi_config_name": "the gaudi_config group holds its values",
    "resume_from_checkpoint": "`resume` at the top level says whether a run goes on",
    "ignore_data_skip": "a run that goes on takes up its batches where it stopped",
    "restore_callback_states_from_checkpoint": "a run that goes on takes up everything where it stopped",
    "save_only_model": "a checkpoint is what a run goes on from; model/ has the weights alone",
    "save_on_each_node": "servers share the run directory",
    "hub_token": "tokens come from the environment (HF_TOKEN) and are never written",
    "push_to_hub_token": "tokens come from the environment (HF_TOKEN) and are never written",
    "sortish_sampler": "the batching group says which utterances share a batch",
    "generation_config": "model.generation holds its values",
    "eval_do_concat_batches": "an evaluation is scored as a whole",
    "batch_eval_metrics": "an evaluation is scored as a whole",
    "prediction_loss_only": "trainer.eval_metrics says what is scored",
    "remove_unused_columns": "batches hold what the model takes and nothing else",
    "logging_nan_inf_filter": "trainer.on_nan says what follows a loss that isn't finite",
    "overwrite_output_dir": "a run never overwrites another",
}
"""Arguments that another key decides, with that key."""
NOT_FOR_CTC = {"label_smoothing_factor": "CTC has no smoothed labels"}
"""Arguments that only a trainer whose models generate has a use for."""


def argument_names() -> list[str]:
    """Return every name that trainer.args takes, with any installed engine."""
    every = [engines.engine(name, generates=generates) for name in engines.names() for generates in (False, True)]
    known = {name for engine in every for name in engine.argument_fields()}
    return sorted(known - set(ELSEWHERE))


def checked(args: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """Return the arguments as they were said, but for YAML's false where `no` was meant; raise ConfigError with the key of a wrong one."""
    known = engine.argument_fields()
    if not known:  # it isn't installed, which Pipeline.check_reachable says
        return dict(args)
    given = {name: value for name, value in args.items() if name != "num_train_epochs" or value is not None}  # null leaves it to max_steps
    values = {name: _checked_argument(str(name), value, engine) for name, value in given.items()}
    arguments.installed_spelling(values, known)
    return values


def without_reentrance(args: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Return the arguments by which gradient checkpointing isn't torch's reentrant kind.

    That is transformers 4.55's default (modeling_utils.py:3700). Empty without checkpointing. Raises ConfigError, which says why, where
    that kind is asked for.
    """
    name = next((name for name in ("gradient_checkpointing", "activation_checkpointing") if args.get(name)), None)
    if name is None:
        return {}
    given = args.get(f"{name}_kwargs")
    if given is None:
        return {f"{name}_kwargs": {"use_reentrant": False}}
    if given.get("use_reentrant", True):
        raise ConfigError(f"{why}: set use_reentrant to false.", key=f"trainer.args.{name}_kwargs")
    return {}


def _checked_argument(name: str, value: Any, engine: Engine) -> Any:
    """Return the value of one training argument, or raise ConfigError with its key."""
    key = f"args.{name}"
    elsewhere = ELSEWHERE if engine.generates else ELSEWHERE | NOT_FOR_CTC
    if name in elsewhere:
        raise ConfigError(f"is not set here: {elsewhere[name]}.", key=key)
    known = engine.argument_fields()
    try:
        spelt = arguments.installed(name, value, known)
    except ConfigError as error:
        raise error.under(key) from error
    if spelt is None or (name == "logging_dir" and name not in known):
        return value
    if spelt[0] not in known:
        raise ConfigError(_unknown_argument(name, engine), key=key)
    parameter = known[spelt[0]]
    if value is False and "no" in parameter.values:  # YAML and Hydra read a bare `no` as false
        return "no"
    if not parameter.accepts(spelt[1]):
        wanted = f"one of {', '.join(parameter.values)}" if parameter.values else f"of type {parameter.annotation}"
        raise ConfigError(f"{value!r} is not {wanted}.{did_you_mean(str(value), parameter.values)}", key=key)
    problem = out_of_range(value, RANGES.get(name, {})) or out_of_range(spelt[1], RANGES.get(spelt[0], {}))
    if problem or (name == "max_steps" and value == 0):
        raise ConfigError(problem or "0 is out of range; -1 leaves the length to num_train_epochs.", key=key)
    return value


def _unknown_argument(name: str, engine: Engine) -> str:
    """Say that the engine takes no such argument, and which other does."""
    others = [other for other in engines.names() if name in engines.engine(other, generates=engine.generates).argument_fields()]
    if not others and name in engine.generating().argument_fields():
        return f"{engine.ARGUMENTS[1]} has no such field: it belongs to trainer=seq2seq, whose models generate."
    if others:
        return f"{engine.ARGUMENTS[1]} has no such field; it belongs to trainer.engine={' or '.join(others)}."
    taken = {*engine.argument_fields(), *arguments.SPELLINGS} - set(ELSEWHERE)
    return f"{engine.ARGUMENTS[1]} has no such field.{did_you_mean(name, sorted(taken))}"
