"""Hydra's composition as a function: from overrides to the configuration, or a ConfigError.

In: the folder of YAML files and overrides. Out: the composed configuration, resolved, with absolute paths, or with overrides over a run's.
Imports no torch; composing takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from asr.command_line import check_words
from asr.config import NODES, leaves
from asr.config_files import CONF, VERSION_BASE, FileConfigSource, schema_of, without_local
from asr.errors import ConfigError
from asr.explanations import composing, with_arguments

MOST_FRAMES = 200
"""Of Python's stack that composing may take; it needs under 80. A defaults list that leads back to its own file grows at each turn: to
Python's own limit takes a minute."""
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
"""The name of a resolver in a value such as ${oc.env:HOME}."""
PURE = ("unless_streaming", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.select")
"""Resolvers that give the same on every machine and at any time."""


def compose(overrides: Sequence[str] = (), *, conf: Path = CONF, config_name: str = "config", with_hydra: bool = False) -> DictConfig:
    """Return the composed configuration, on request with Hydra's own node; raise ConfigError when it can't be composed."""
    with composing(overrides, conf), _bounded_depth(), initialize_config_dir(str(conf), version_base=VERSION_BASE):
        composed = hydra_compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)
    if with_hydra:
        _check_hydra_node(composed)
    return composed


def _check_hydra_node(composed: DictConfig) -> None:
    """Raise ConfigError unless Hydra's own node has what is read of it before Hydra does."""
    for key in ("hydra.launcher._target_", "hydra.sweeper._target_"):
        with composing(()):
            value = OmegaConf.select(composed, key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"is {value!r}, not the name of a class; choose an option of its group.", key=key)


@contextlib.contextmanager
def _bounded_depth() -> Iterator[None]:
    """Let what runs inside nest MOST_FRAMES calls at most."""
    before, frame, depth = sys.getrecursionlimit(), sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    sys.setrecursionlimit(min(before, depth + MOST_FRAMES))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def compose_everywhere(overrides: Sequence[str], *, conf: Path = CONF) -> DictConfig:
    """Return what every machine composes at any time: without conf/local; raise ConfigError where the environment or the time decides."""
    with same_everywhere():
        composed = compose(overrides, conf=conf)
    for key, value in leaves(OmegaConf.to_container(composed, resolve=False)):  # type: ignore[arg-type]
        for name in RESOLVER.findall(value) if isinstance(value, str) else ():
            if name not in PURE:
                raise ConfigError(f"{value!r} isn't the same on every machine; write the value itself.", key=key)
    return composed


@contextlib.contextmanager
def same_everywhere() -> Iterator[None]:
    """Compose without conf/local inside; raise ConfigError for a defaults list that reads the environment."""
    before = without_local.set(True)
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        without_local.reset(before)


def _refuse_environment(name: str, *default: Any) -> NoReturn:
    raise ConfigError(f"a defaults list chooses by the variable {name} of the environment; write the choice itself.")


def to_container(composed: DictConfig) -> dict[str, Any]:
    """Return the configuration resolved, as plain containers without Hydra's node.

    Raises ConfigError for a value that is missing or an interpolation that leads nowhere.
    """
    with composing(()):
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def overridden(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a resolved configuration with overrides over it, typed by the schemas of the classes that it names; raise ConfigError.

    A run's configuration is one whole: it has no groups, and an option of conf/ would be today's.
    """
    check_words(overrides)
    with composing(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    for item in parsed:
        _check_overrides_a_key(item)
    typed = _typed(config)
    with composing(overrides, known=lambda _key: with_arguments(OmegaConf.to_container(typed))), _bounded_depth():
        ConfigLoaderImpl._apply_overrides_to_config(parsed, typed)
    return to_container(typed)


def _typed(config: Mapping[str, Any]) -> DictConfig:
    """Return a configuration typed by the schemas of its classes; keys that it doesn't have yet have their defaults."""
    schemas = {name: schema_of(config[name]["_target_"]) for name in NODES if isinstance(config.get(name), Mapping)}
    with composing((), known=lambda _key: []):
        return OmegaConf.merge(schema_of("asr.config.Config"), schemas, dict(config))  # type: ignore[return-value]


def _check_overrides_a_key(item: Override) -> None:
    """Raise ConfigError for an override that isn't one of a key: a group's option, Hydra's own part, several values."""
    key = item.get_key_element().lstrip("+~")
    if item.is_hydra_override():
        mend = "--into FOLDER says where the run lies" if key == "hydra.run.dir" else "leave it out"
        raise ConfigError(f"is Hydra's, which has no part in this; {mend}.", key=key)
    if item.is_sweep_override():
        raise ConfigError("has several values, and this is one run; give one.", key=key)
    group = item.key_or_group
    if item.package is not None or "/" in group or ((CONF / group).is_dir() and not isinstance(item.value(), dict)):
        raise ConfigError(
            f"chooses an option of conf/, and a run's configuration is one whole: name the keys to change (such as {group}.<key>=...), "
            "or start `python launch.py` with the option.",
            key=key,
        )


def folder_in(composed: DictConfig, key: str) -> Path:
    """Return the folder that a key of Hydra's node names; raise ConfigError when it names none."""
    with composing(()):
        value = OmegaConf.select(composed, key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} is no folder.", key=key)
    return Path(value)


def names_folder(hydra: Any) -> bool:
    """Whether a user chose the folder of a run or sweep, rather than the time; `hydra` is Hydra's own node, a HydraConf."""
    node = hydra.sweep if hydra.mode == RunMode.MULTIRUN else hydra.run
    return "${now:" not in str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]


def check_names_one_folder(composed: DictConfig, key: str) -> None:
    """Raise ConfigError for a run folder named by the time: each server of a run would make one of its own."""
    raw = OmegaConf.to_container(composed.hydra.run, resolve=False)
    if "${now:" in str(raw["dir"]):  # type: ignore[index, call-overload]
        raise ConfigError(
            "each server would make a folder of its own: name one that they share, the same on each, such as "
            "hydra.run.dir=/shared/outputs/my_run.",
            key=key,
        )


def version_taken(composed: DictConfig) -> str:
    """Return the version that `experiment=<name>` among the overrides has led to; empty where a version is named, or no experiment."""
    name = OmegaConf.select(composed, "hydra.runtime.choices.experiment")
    version = f"{name}/{OmegaConf.select(composed, 'experiment_version')}"
    if f"experiment={name}" not in composed.hydra.overrides.task:
        return ""
    folders = (Path(source.path) for source in composed.hydra.runtime.config_sources if source.schema == FileConfigSource.scheme())
    return version if any((folder / "experiment" / f"{version}.yaml").is_file() for folder in folders) else ""


def with_absolute_paths(config: dict[str, Any], cwd: Path) -> dict[str, Any]:
    """Return the configuration with local paths made absolute: a run is read elsewhere, and hydra.job.chdir changes `cwd`."""
    local = [(config["model"], key) for key in ("name_or_path", "encoder_name_or_path", "decoder_name_or_path")]
    local += [(config["vocabulary"], "tokenizer_name_or_path")]
    local += [(config["dataset"], key) for key in ("root", "path")]
    local += [(config["topology"], "hostfile"), (config["batching"], "plan_file")]
    local += [(config["augment"], key) for key in ("noise_folder", "reverberation_folder")]
    local += [(config.get("decoder") or {}, key) for key in ("lm", "lexicon")]
    local += [(part, "path") for part in config["dataset"].get("parts") or () if isinstance(part, dict)]
    for node, key in local:
        value = node.get(key)
        if value and isinstance(value, str) and (cwd / Path(value).expanduser()).exists():
            node[key] = str((cwd / Path(value).expanduser()).resolve())
    for node in (config["model"], config["dataset"]):  # a cache needn't be there yet
        if node.get("cache_dir"):
            node["cache_dir"] = str((cwd / Path(node["cache_dir"]).expanduser()).resolve())
    metrics = config["trainer"].get("eval_metrics")
    if metrics:
        config["trainer"]["eval_metrics"] = [str((cwd / m).resolve()) if str(m).endswith(".py") else m for m in metrics]
    return config
