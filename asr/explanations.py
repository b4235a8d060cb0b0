"""What the errors of Hydra, OmegaConf and YAML mean to a user: the key, what is wrong with it, and the nearest right one.

In: what they raise. Out: a ConfigError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr.config import dotted_keys
from asr.config_files import CONF, DEEPEST, UNFORESEEN, VERSION_BASE, one_line
from asr.errors import ConfigError, did_you_mean


@contextlib.contextmanager
def explained(overrides: Sequence[str], conf: Path = CONF, known: Callable[[str], Sequence[str]] | None = None) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise inside into a ConfigError with the key.

    `known` gives the keys that one which there isn't may have meant; without it those of the composition.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, overrides, conf, known or (lambda key: _known_keys(key, overrides, conf))) from error


@contextlib.contextmanager
def composing(overrides: Sequence[str], conf: Path = CONF, known: Callable[[str], Sequence[str]] | None = None) -> Iterator[None]:
    """As `explained`, and for whatever else Hydra raises while it reads overrides and files: nothing else happens there."""
    try:
        with explained(overrides, conf, known):
            yield
    except RecursionError as error:
        deep = [override for override in overrides if override.count("[") + override.count("{") > DEEPEST]
        raise ConfigError(
            "is nested too deep, or leads back to itself through an interpolation or a defaults list.", key=_first_key(deep or overrides)
        ) from error
    except UNFORESEEN as error:
        what = "" if isinstance(error, (ValueError, TypeError, OSError)) else f"{type(error).__name__}: "  # whose words alone say little
        raise ConfigError(f"{what}{one_line(error)}.") from error


@contextlib.contextmanager
def hydra_s_part(task: Callable[..., object]) -> Iterator[None]:
    """Turn what Hydra raises on its way to and from our task into a ConfigError: it doesn't check its own settings and flags."""
    try:
        yield
    except UNFORESEEN as error:
        if _passed_through(error.__traceback__, task):
            raise
        raise ConfigError(f"Hydra can't go on with its own settings ({type(error).__name__}: {one_line(error)}).", key="hydra") from error


def _passed_through(trace: TracebackType | None, function: Callable[..., object]) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is function.__code__:  # type: ignore[attr-defined]
            return True
        trace = trace.tb_next
    return False


def _first_key(overrides: Sequence[str]) -> str:
    return overrides[0].partition("=")[0] if len(overrides) == 1 else ""


def explain(error: BaseException, overrides: Sequence[str], conf: Path, known: Callable[[str], Sequence[str]]) -> ConfigError:
    """Return the ConfigError that says in a user's words what stopped Hydra or OmegaConf."""
    chained = list(_causes(error))
    for cause in chained:
        if isinstance(cause, ConfigError):
            return cause
    for cause in chained:
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return _unknown_choice(cause, [conf, *_searched(overrides)])
    for cause in chained:
        if isinstance(cause, OverrideParseException):
            key = cause.override.partition("=")[0] if "=" in cause.override else ""
            return ConfigError(
                f"{cause.override!r} can't be parsed; put a value with unusual characters in quotes: 'key=\"value\"'.", key=key
            )
    for cause in chained:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _wrong_value(cause, known)
    refused = re.search(r"Could not override '([^']+)'", str(error))
    if refused:
        return _unknown_key(refused.group(1), known)
    return ConfigError(" ".join(str(error).split()))


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _searched(overrides: Sequence[str]) -> list[Path]:
    """Return the folders of --config-dir and hydra.searchpath."""
    words = [word for word in overrides if word.startswith("hydra.searchpath=")]
    listed = [OverridesParser.create().parse_override(word).value() for word in words]
    names = chain.from_iterable(names if isinstance(names, list) else [names] for names in listed)
    return [Path(str(name).removeprefix("file://")) for name in names if "://" not in str(name).removeprefix("file://")]


def _unknown_choice(error: MissingConfigException, folders: Sequence[Path]) -> ConfigError:
    missing, conf = str(error.missing_cfg_file), folders[0]
    if missing.startswith("hydra/launcher/submitit_"):
        return ConfigError("hydra-submitit-launcher is not installed: pip install -e '.[slurm]'.", key="hydra.launcher")
    if missing == "hydra/launcher/joblib":
        return ConfigError("hydra-joblib-launcher is not installed: pip install -e '.[parallel]'.", key="hydra.launcher")
    listed = re.search(r"Available options in '([^']+)'", str(error))
    if listed is None:
        return ConfigError(f"there is no {missing}.yaml in {conf}.", key=missing.rpartition("/")[0])
    group = listed.group(1)
    name = missing.removeprefix(f"{group}/")
    options = set(error.options or [])
    for folder in folders:
        if (folder / group).resolve().is_relative_to(folder.resolve()):
            files = [path.relative_to(folder / group).with_suffix("") for path in (folder / group).rglob("*.yaml")]
            options |= {str(file) for file in files if group == "experiment" or file.parent == Path()}
    return ConfigError(f"there is no {name!r} in conf/{group}.{_nearest(name, options)} It has {', '.join(sorted(options))}.", key=group)


def _nearest(name: str, options: Collection[str]) -> str:
    """Return the hint at the nearest option: of a version of an experiment that there is, another version of it."""
    family = [option for option in options if option.startswith(f"{name.rpartition('/')[0]}/")] if "/" in name else []
    return did_you_mean(name, family) or did_you_mean(name, sorted(options))


def _wrong_value(error: OmegaConfBaseException, known: Callable[[str], Sequence[str]]) -> ConfigError:
    reason = str(error.msg or error).splitlines()[0]
    if re.search(r"not in (struct|'\w+')", reason):
        return _unknown_key(error.full_key or "", known)
    typed = re.search(r"Value '(.*)' of type '\w+' (?:could not be converted to|is not a subclass of) '?(\w+)'?", reason)
    if typed:
        reason = f"{typed.group(1)!r} is not of type {typed.group(2).lower()}."
    return ConfigError(reason, key=error.full_key or "")


def _unknown_key(key: str, known: Callable[[str], Sequence[str]]) -> ConfigError:
    return ConfigError(f"there is no such key.{did_you_mean(key, known(key))}", key=key)


def _known_keys(key: str, overrides: Sequence[str], conf: Path) -> list[str]:
    """Return the keys of the composition that the group choices among `overrides` lead to: Hydra's own where `key` is."""
    groups = [o for o in overrides if "=" in o and (o.startswith("hydra.searchpath=") or (conf / o.partition("=")[0].lstrip("+")).is_dir())]
    of_hydra = key.startswith("hydra.")
    try:
        with initialize_config_dir(str(conf), version_base=VERSION_BASE):
            composed = hydra_compose("config", overrides=groups, return_hydra_config=of_hydra)
            if of_hydra:
                return [f"hydra.{name}" for name in dotted_keys(OmegaConf.to_container(composed.hydra, resolve=False))]  # type: ignore[arg-type]
            known = OmegaConf.to_container(composed)
    except (HydraException, OmegaConfBaseException, ConfigError, *UNFORESEEN):
        return []
    return with_arguments(known)


def with_arguments(config: Any) -> list[str]:
    """Return every dotted key of a configuration, and of the training arguments that it might have."""
    from asr.argument_checks import argument_names

    return sorted({*dotted_keys(config), *(f"trainer.args.{name}" for name in argument_names())})
