"""The typed schema of the whole configuration, and what makes a value of it wrong.

In: dataclass signatures and values. Out: ranges, choices and checks that name the key. Knows no torch.
Every node of the configuration is a keyword-only dataclass whose signature is its schema (style of the
Hydra structured configs, https://hydra.cc/docs/tutorials/structured_config/intro/).
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from asr import secrets
from asr.errors import ConfigError, did_you_mean

RESUME = ("never", "auto")
STAGES = ("prepare", "train", "evaluate")
LATER = ("resume", "rehearse", "publish")
"""Root keys that config.yaml of a run from before there were any doesn't have."""
WITHOUT_EFFECT = ("resume", "publish")
"""Root keys that change no result."""
NODES = ("dataset", "text", "vocabulary", "augment", "batching", "model", "gaudi_config", "trainer", "topology")
"""The nodes that `instantiate` builds, each from the class that its `_target_` names."""


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a dataclass field whose value must lie in a range; None is left alone."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


def choice(default: str | None, *values: str) -> Any:
    """Return a dataclass field that takes one of `values`; None is left alone."""
    return field(default=default, metadata={"values": values})


def free_form() -> Any:
    """Return a dataclass field for a dict that takes any key; whoever reads it checks its keys."""
    return field(default_factory=dict, metadata={"free_form": True})


@contextlib.contextmanager
def under(parent: str) -> Iterator[None]:
    """Put a node's name before the key of a ConfigError that is raised inside."""
    try:
        yield
    except ConfigError as error:
        raise error.under(parent) from error


def out_of_range(value: Any, limits: Mapping[str, Any]) -> str:
    """Return what is wrong with `value` for the metadata of `bounded` or `choice`; empty when nothing is.

    >>> out_of_range(0, {"at_least": 1})
    '0 is out of range; it must be at least 1.'
    """
    if value is None:
        return ""
    if "values" in limits and value not in limits["values"]:
        return f"{value!r} is not one of {', '.join(limits['values'])}.{did_you_mean(str(value), limits['values'])}"
    if not isinstance(value, (int, float)):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number."
    inside = {
        "at_least": lambda limit: value >= limit,
        "above": lambda limit: value > limit,
        "at_most": lambda limit: value <= limit,
        "below": lambda limit: value < limit,
    }
    wanted = [f"{name.replace('_', ' ')} {limits[name]:g}" for name in inside if name in limits]
    if all(inside[name](limits[name]) for name in inside if name in limits):
        return ""
    return f"{value} is out of range; it must be {' and '.join(wanted)}."


def check_ranges(node: Any) -> None:
    """Raise a ConfigError that names the first field of a dataclass outside its declared range."""
    for item in fields(node):
        problem = out_of_range(getattr(node, item.name), item.metadata)
        if problem:
            raise ConfigError(problem, key=item.name)


@dataclass
class Config:
    """The root: what stands beside the five groups. Stored in Hydra as the schema of conf/config.yaml."""

    experiment_name: str = "unnamed"
    """Names the folder of runs under outputs/."""
    experiment_version: str = "draft"
    """v1, v2, ... once released; see conf/experiment."""
    seed: int = 0
    """Seeds weights, data order and dropout; the corpus has a seed of its own."""
    stages: list[str] = field(default_factory=lambda: ["train", "evaluate"])
    """Any of prepare, train, evaluate; the data is prepared for whichever runs."""
    resume: str = choice("never", *RESUME)
    """auto goes on with an unfinished run: the one in hydra.run.dir where that is given, else the newest of the same experiment and
    configuration. One that has finished is left alone, and where there is none a new one begins."""
    dry_run: bool = False
    """Shows the command and the environment that would be started, and writes them into the run; needs no device, data or network."""
    rehearse: bool = False
    """Runs the real HPU path on a stand-in device, where there is no Gaudi: a few small layers with random weights, a few utterances of
    each shape, a few steps, at most 2 ranks. Says what would be compiled and what would fail; trains nothing that is worth keeping."""
    publish: bool = False
    """Pushes model/ to the Hugging Face hub after a good end: to trainer.args.hub_model_id, with the token in HF_TOKEN."""
    dataset: Any = None
    text: Any = None
    vocabulary: Any = None
    augment: Any = None
    batching: Any = None
    model: Any = None
    gaudi_config: Any = None
    trainer: Any = None
    topology: Any = None


def check_plain(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a value that config.yaml and run.json can't hold: not JSON's types, text that is none, huge numbers."""
    for key, value in leaves(config):
        if isinstance(value, str):
            if "\0" in value or (not value.isprintable() and _has_half_pair(value)):
                raise ConfigError("is no text: it holds a null byte or bytes that are not UTF-8.", key=key)
        elif isinstance(value, int):
            if abs(value) >= 2**63:
                raise ConfigError(f"{str(value)[:20]}... has more digits than a computer's integer.", key=key)
        elif value is not None and not isinstance(value, float):
            raise ConfigError(f"{str(value)!r} is of type {type(value).__name__}; put text in quotes.", key=key)


def _has_half_pair(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_root(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a root value out of range (seed, stages, names)."""
    known = {f.name: f for f in fields(Config)}
    hints = get_type_hints(Config)
    for key in config:
        if key not in known:
            raise ConfigError(f"there is no such key.{did_you_mean(str(key), dotted_keys(config))}", key=str(key))
    for key, item in known.items():
        if key not in config and key not in NODES and key not in LATER:
            raise ConfigError("is missing; is this file a part of a configuration only?", key=key)
        if key in config:
            _check_type(hints[key], config[key], key)
            problem = out_of_range(config[key], item.metadata)
            if problem:
                raise ConfigError(problem, key=key)
    stages = config["stages"]
    if not stages:
        raise ConfigError(f"is empty; choose from {', '.join(STAGES)}.", key="stages")
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"{stage!r} is not one of {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}", key="stages")
    problem = out_of_range(config.get("resume"), {"values": RESUME})
    if problem:
        raise ConfigError(problem, key="resume")
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"{config['seed']} is out of range; it must be at least 0 and below 2**32.", key="seed")
    for key in ("experiment_name", "experiment_version"):
        if Path(config[key]).name != config[key] or config[key] in ("", ".", "..") or not config[key].isprintable():
            raise ConfigError(f"{config[key]!r} can't name a folder; leave out slashes and control characters.", key=key)


def check_no_secrets(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a value that holds what a secret variable of the environment holds: it would be written."""
    for key, value in leaves(config):
        for name, secret in secrets.here().items():
            if isinstance(value, str) and secret in value:
                raise ConfigError(f"holds the value of ${name}; secrets come from the environment only and are never written.", key=key)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that isn't a container, with its dotted key; raise ConfigError for a key that is no text."""
    pairs = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in pairs:
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(config, Mapping) and not isinstance(key, str):
            raise ConfigError(f"the key {key!r} is not text; put it in quotes.", key=prefix)
        if isinstance(value, (Mapping, list, tuple)):
            yield from leaves(value, path)
        else:
            yield path, value


def check_targets(config: Mapping[str, Any], allowed: Sequence[str] = ("asr.",)) -> None:
    """Raise a ConfigError unless a configuration that comes from elsewhere makes objects of `allowed` packages alone.

    What is named must be a dataclass that a module there defines, not one that it imports; nothing else is imported to find out.
    Interpolations are refused too: a run's configuration is resolved, and one that isn't could carry a variable of the environment out.
    """
    every = list(leaves(config))
    targets = {key: value for key, value in every if key.rpartition(".")[2] == "_target_"}

    def outside(key: str) -> ConfigError:
        among = " or ".join(f"{name}*" for name in allowed)
        problem = (
            f"{targets[key]!r} is not a class of {among}: a run's configuration makes no other (--allow its package. if you trust it)."
        )
        return ConfigError(problem, key=key)

    for key, value in every:
        if isinstance(value, str) and "${" in value:
            raise ConfigError("holds an interpolation, which a run's configuration never does.", key=key)
        if key in targets and (not isinstance(value, str) or not value.startswith(tuple(allowed))):
            raise outside(key)
    for key, value in targets.items():  # all are named well: only now is one imported
        if not f"{import_target(value, key=key).__module__}.".startswith(tuple(allowed)):
            raise outside(key)


def import_target(path: str, *, key: str = "_target_") -> type:
    """Return the class that a `_target_` names, or raise a ConfigError that says what is missing."""
    module_name, _, class_name = str(path).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path!r} can't be imported ({error}); give package.module.Class.", key=key) from error
    if not (isinstance(target, type) and is_dataclass(target)):
        raise ConfigError(f"{path!r} is not a dataclass, so it has no schema.", key=key)
    return target


def instantiate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked root values and the objects that the nodes describe, by name.

    `config` is the composed configuration as plain containers. Objects are light: making them checks
    them (types by their schema, ranges here, the rest in their `__post_init__`) and loads nothing.
    """
    import hydra.utils

    try:
        check_plain(config)
    except RecursionError as error:
        raise ConfigError("the configuration is nested too deep.") from error
    check_root(config)
    check_no_secrets(config)
    built: dict[str, Any] = {k: config[k] for k in ("experiment_name", "experiment_version", "seed", "stages", "dry_run")}
    for name, default in (("rehearse", False), ("resume", "never"), ("publish", False)):  # a run of before there were these has no such key
        built[name] = config.get(name, default)
    for name in NODES:
        node = config.get(name)
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError("has no _target_; choose an option of its group.", key=name)
        try:
            target = import_target(node["_target_"])
            _check_keys(target, node)
            built[name] = hydra.utils.instantiate(dict(node), _convert_="all", _recursive_=False)
            check_ranges(built[name])
        except ConfigError as error:
            raise error.under(name) from error
        except hydra.errors.InstantiationException as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__.under(name) from error
            raise
    return built


def node_of(target: type, values: Mapping[str, Any]) -> Any:
    """Return the object of a dataclass that a free-form part of a node describes; raise ConfigError as for a node of its own."""
    _check_keys(target, values)
    made = target(**values)
    check_ranges(made)
    return made


def _check_keys(target: type, node: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(target) if f.init]
    for key in node:
        if key not in known and key != "_target_":
            raise ConfigError(f"{target.__name__} has no such key.{did_you_mean(str(key), known)}", key=str(key))
    for key in dotted_keys(node):
        if key.endswith("._target_"):
            raise ConfigError("only a group's own _target_ makes an object; nothing below it does.", key=key)
    hints = get_type_hints(target)
    for item in fields(target):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and node.get(item.name) in (None, "???"):
            raise ConfigError("is missing; give it a value.", key=item.name)
        if item.name in node:
            _check_type(hints[item.name], node[item.name], item.name)


def _check_type(hint: Any, value: Any, key: str) -> None:
    """Raise ConfigError for a value that isn't of its field's type: an interpolation brings any, and a run's config.yaml may be edited."""
    if not fits(hint, value):
        raise ConfigError(f"{value!r} is not of type {getattr(hint, '__name__', hint) if isinstance(hint, type) else hint}.", key=key)


def fits(hint: Any, value: Any) -> bool:
    """Say whether a plain value is of a type as dataclasses name it; an int is a float too, and of types unknown here all are.

    >>> fits(list[float] | None, [1, 0.5]), fits(dict[str, int], {"a": "b"})
    (True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(member, value) for member in inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(inner[0], item) for item in value if inner)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(inner[1], item) for item in value.values())
    if hint is None or hint is type(None):
        return value is None
    if hint in (bool, str, list, dict):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return True


def dotted_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key of nested mappings as a dotted path, parents included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


def cache_root(given: str | None, folder: str) -> Path:
    """Return the folder for made or downloaded data: `given`, else `folder` under ASR_CACHE or ~/.cache/asr."""
    if given:
        return Path(given).expanduser()
    base = os.environ.get("ASR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asr")
    return Path(base).expanduser() / folder
