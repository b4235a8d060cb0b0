"""What Hydra composes from: schemas, which are classes' signatures, and YAML files, whose errors name the file and line.

In: the name of a class, or a file of conf/. Out: typed nodes; a ConfigError for a file that can't be read. Importing it registers both
with Hydra. Imports no torch.
"""

from __future__ import annotations

import builtins
import copy
from contextvars import ContextVar
from dataclasses import field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr.config import Config, import_target
from asr.errors import ConfigError
from hydra_plugins import asr_optuna

CONF = Path(__file__).resolve().parent.parent / "conf"
VERSION_BASE = "1.3"
LOCAL = "local"
"""The group of one machine's own values."""
MOST_VALUES, DEEPEST = 100_000, 100
"""Of a YAML file, its aliases followed, and nested in each other: OmegaConf copies what an alias stands for."""
UNFORESEEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What Hydra and OmegaConf raise, beside their own errors, for settings, overrides and files that they don't check."""


def one_line(error: object) -> str:
    """Return what an error says, in one line without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def schema_of(target: str) -> DictConfig:
    """Return the typed node whose keys and types are the signature of the class that `target` names."""
    return copy.deepcopy(_schema_of(import_target(target), target))


@lru_cache(maxsize=256)
def _schema_of(cls: type, target: str) -> DictConfig:
    named = make_dataclass(f"{cls.__name__}Schema", [("_target_", str, field(default=target))], bases=(cls,), kw_only=True)
    node: DictConfig = OmegaConf.structured(cls if cls is Config else named)
    for item in fields(cls):
        if item.metadata.get("free_form"):  # its keys are checked by whoever reads it, with a did-you-mean
            node._get_node(item.name)._set_flag("struct", False)  # type: ignore[union-attr]
    return node


class SchemaSource(ConfigSource):
    """Answers `/schema/package.module.Class` in a defaults list with the schema of that class.

    So any dataclass can stand in a YAML file, a team's own included, without being registered first.
    """

    @staticmethod
    def scheme() -> str:
        return "schema"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") == "schema"

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith("schema/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        return []  # classes, not choices: nothing to show in --help

    def load_config(self, config_path: str) -> ConfigResult:
        target = config_path.removeprefix("schema/").removesuffix(".yaml")
        return ConfigResult(self.provider, f"schema://{target}", schema_of(target), header={"package": None})


_READ: dict[tuple[Any, ...], ConfigResult] = {}
"""Files as they were read, by their state: a sweep composes each of its jobs from the same ones."""
without_local: ContextVar[bool] = ContextVar("without_local", default=False)


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, which names the file that is wrong, and reads none that grows when it is read.

    It goes by Hydra's name for it: a submitted job is handed ours before it registers Hydra's own, which is passed over where one of
    the same name is there, and refused otherwise (hydra 1.3, _internal/sources_registry.py).
    """

    def is_config(self, config_path: str) -> bool:
        return not (without_local.get() and config_path.startswith(f"{LOCAL}/")) and super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.exists():
            return self._read(path, config_path)
        state = path.stat()
        key = (self.provider, self.path, config_path, state.st_mtime_ns, state.st_size, state.st_ino)
        if key not in _READ:
            check_yaml(path)
            _READ[key] = self._read(path, config_path)
        return copy.deepcopy(_READ[key])

    def _read(self, path: Path, config_path: str) -> ConfigResult:
        try:
            return super().load_config(config_path)
        except (*UNFORESEEN, OmegaConfBaseException, yaml.YAMLError) as error:
            if isinstance(error, MissingConfigException):
                raise
            raise ConfigError(f"{path} can't be read as a configuration ({one_line(error)}).") from error


def check_yaml(path: Path) -> None:
    """Raise ConfigError for a file that can't be read, is no UTF-8 or YAML, or is larger than it looks (nested, or by its aliases)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    try:
        for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=loader):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                if not opened and isinstance(event, yaml.SequenceStartEvent):
                    raise ConfigError(f"{path}:{_line_of(event)}: a file of the configuration holds keys, not a list.")
                opened.append((anchor, count))
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                anchor, before = opened.pop()
                sizes |= {anchor: count - before} if anchor else {}
            elif isinstance(event, yaml.AliasEvent):
                if anchor not in sizes and any(anchor == name for name, _ in opened):
                    raise ConfigError(f"{path}:{_line_of(event)}: *{anchor} stands for what holds it; write it out.")
                count += sizes.get(anchor or "", 1)
            else:
                count += isinstance(event, yaml.ScalarEvent)
            if count > MOST_VALUES or len(opened) > DEEPEST:
                what = f"holds more than {MOST_VALUES} values" if count > MOST_VALUES else f"is nested more than {DEEPEST} deep"
                raise ConfigError(f"{path}:{_line_of(event)}: {what}, aliases counted as what they stand for.")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {one_line(error.problem or error)}.") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read ({one_line(error)}).") from error


def _line_of(event: Any) -> int:
    return int(event.start_mark.line) + 1


class SchemaSearchPath(SearchPathPlugin):
    """Puts SchemaSource on every search path, a user's own hydra.searchpath included."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("asr", "schema://")


Plugins.instance().register(SchemaSource)
Plugins.instance().register(SchemaSearchPath)
Plugins.instance().register(asr_optuna.OptunaSweeper)  # Hydra's scan doesn't see what an editable installation maps, or another cwd
SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource  # `register` would keep the one that is there


def _unless_streaming(value: Any, otherwise: Any = None, *, _root_: DictConfig) -> Any:
    """Return what a default is: `value`, or `otherwise` for a stream, which has no epochs. Whatever a user writes in its place is meant."""
    return otherwise if OmegaConf.select(_root_, "dataset.streaming", default=False) else value


OmegaConf.register_new_resolver("unless_streaming", _unless_streaming, replace=True)
