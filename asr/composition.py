"""Hydra's side of the configuration: schemas from signatures, composing, and what its errors mean to a user.

In: the folder of YAML files and command-line overrides. Out: the composed configuration, or a ConfigError
that names the key and the nearest right one. Imports no torch; composing takes a tenth of a second.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copy
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache
from itertools import chain, islice, product
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from asr import secrets
from asr.config import NODES, Config, dotted_keys, import_target, leaves
from asr.errors import ConfigError, did_you_mean
from hydra_plugins import asr_optuna

CONF = Path(__file__).resolve().parent.parent / "conf"
VERSION_BASE = "1.3"
CHECKED_WHOLE = 16  # jobs of a sweep that are all composed before it starts, at a fifth of a second each
MOST_JOBS = 10_000
"""Of one sweep. Hydra makes a list of all jobs before the first starts."""
LONGEST_WORD = 10_000
"""Characters of an override: parsing takes time and memory that grow faster than it."""
MOST_FRAMES = 200
"""Of Python's stack that composing may take; it needs under 80. A defaults list that leads back to its own file grows at each turn: to
Python's own limit takes a minute."""
MOST_VALUES, DEEPEST = 100_000, 100
"""Of a YAML file, its aliases followed, and nested in each other: OmegaConf copies what an alias stands for."""
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
"""The name of a resolver in a value such as ${oc.env:HOME}."""
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


LOCAL = "local"
"""The group of one machine's own values."""
PURE = ("unless_streaming", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.select")
"""Resolvers that give the same on every machine and at any time."""
_without_local: ContextVar[bool] = ContextVar("without_local", default=False)
_READ: dict[tuple[Any, ...], ConfigResult] = {}
"""Files as they were read, by their state: a sweep composes each of its jobs from the same ones."""


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, which names the file that is wrong, and reads none that grows when it is read.

    It goes by Hydra's name for it: a submitted job is handed ours before it registers Hydra's own, which is passed over where one of
    the same name is there, and refused otherwise (hydra 1.3, _internal/sources_registry.py).
    """

    def is_config(self, config_path: str) -> bool:
        return not (_without_local.get() and config_path.startswith(f"{LOCAL}/")) and super().is_config(config_path)

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
            raise ConfigError(f"{path} can't be read as a configuration ({_line(error)}).") from error


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
        raise ConfigError(f"{path}{line} is not YAML: {_line(error.problem or error)}.") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read ({_line(error)}).") from error


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


def compose(overrides: Sequence[str] = (), *, conf: Path = CONF, config_name: str = "config", with_hydra: bool = False) -> DictConfig:
    """Return the composed configuration, on request with Hydra's own node; raise ConfigError when it can't be composed."""
    with composing(overrides, conf), _bounded_depth(), initialize_config_dir(str(conf), version_base=VERSION_BASE):
        composed = hydra_compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)
    if with_hydra:
        _check_hydra_node(composed)
    return composed


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
    before = _without_local.set(True)
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        _without_local.reset(before)


def _refuse_environment(name: str, *default: Any) -> NoReturn:
    raise ConfigError(f"a defaults list chooses by the variable {name} of the environment; write the choice itself.")


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks of Hydra; `jobs` has one override list for each configuration to check.

    `action` is run, multirun, show (--cfg, by Hydra after our warnings), help (plain --help, which `help_text` answers) or
    other, which Hydra does alone. A run turns out to be a multirun where the configuration says so (`ready_multirun`).
    `shared` is what a sweep doesn't vary, `overrides` all that was given.
    """

    action: str
    jobs: Sequence[Sequence[str]]
    config_name: str
    conf: Path = CONF
    shared: Sequence[str] = ()
    overrides: Sequence[str] = ()


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse Hydra's own flags and overrides; raise ConfigError for what can't be parsed."""
    check_words(arguments)
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    options: argparse.Namespace = parser.parse_args(list(arguments))
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun unpickles a file, which can run anything; start from a run's config.yaml instead.")
    overrides = list(options.overrides)
    for flag, named in (("--config-dir", options.config_dir), ("--config-path", options.config_path)):
        where = Path.cwd() if flag == "--config-dir" else CONF.parent
        if named is not None and not (named and (where / named).is_dir()):
            raise ConfigError(f"{flag}: there is no folder {named!r} in {where}.")
    if options.config_dir:
        overrides.append(searching(Path(options.config_dir)))
    name = options.config_name or "config"
    conf = CONF.parent / options.config_path if options.config_path else CONF  # relative to launch.py, as Hydra takes it
    if options.cfg and options.multirun:
        raise ConfigError("--cfg shows one configuration; leave --multirun out.")
    if options.help and not overrides:
        return CommandLine("help", [], name)
    if options.cfg in ("job", "all") and not (options.help or options.hydra_help or options.info or options.shell_completion):
        return CommandLine("show", [overrides], name, conf)
    if options.help or options.cfg or options.hydra_help or options.info or options.shell_completion:
        return CommandLine("other", [], name)
    with composing(overrides, conf):
        shared = [str(o.input_line) for o in OverridesParser.create().parse_overrides(overrides) if not o.is_sweep_override()]
        return CommandLine("multirun" if options.multirun else "run", sweep_variants(overrides), name, conf, shared, overrides)


def quoted(value: str) -> str:
    """Return a text as a value of Hydra's override grammar.

    >>> print(quoted("it's"))
    'it\\'s'
    """
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def override(key: str, value: str) -> str:
    """Return the override that gives a key a text."""
    return f"{key}={quoted(value)}"


def searching(folder: Path) -> str:
    """Return the override by which files of another folder are found beside those of conf/."""
    return f"hydra.searchpath=[{quoted(f'file://{folder.resolve()}')}]"


def check_words(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a word of a command line that is too long, no text, or tells a secret."""
    for word in arguments:
        if len(word) > LONGEST_WORD or "\0" in word:
            what = "holds a null byte" if "\0" in word else f"is {len(word)} characters long; put so much into a file of conf/"
            raise ConfigError(f"{word[:40]!r}... {what}.")
    _check_no_secrets(arguments)


def _check_no_secrets(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a secret on the command line, which every user of this host can read, and which run.json keeps."""
    for word in arguments:
        shown = word.partition("=")[0]
        for name, secret in secrets.here().items():
            if secret in word:
                raise ConfigError(f"holds the value of ${name}; secrets come from the environment only.", key=secrets.redacted(shown))
        if "hydra.job.env_set" in word:
            for name in re.findall(r"(\w+)\s*[=:]", word):
                if secrets.SECRET_NAME.search(name):
                    raise ConfigError(f"sets {name} for all to see; export it in your shell instead.", key="hydra.job.env_set")


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; `python launch.py --help` explains.")


def _check_hydra_node(composed: DictConfig) -> None:
    """Raise ConfigError unless Hydra's own node has what is read of it before Hydra does."""
    for key in ("hydra.launcher._target_", "hydra.sweeper._target_"):
        with composing(()):
            value = OmegaConf.select(composed, key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"is {value!r}, not the name of a class; choose an option of its group.", key=key)


def folder_in(composed: DictConfig, key: str) -> Path:
    """Return the folder that a key of Hydra's node names; raise ConfigError when it names none."""
    with composing(()):
        value = OmegaConf.select(composed, key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} is no folder.", key=key)
    return Path(value)


def ready_multirun(asked: CommandLine, composed: DictConfig) -> bool:
    """Whether Hydra runs jobs: by -m, by hydra.mode, or by a launcher or sweeper, which Hydra uses for jobs alone. Tell Hydra of these."""
    with composing(()):
        plugins, mode = (composed.hydra.launcher._target_, composed.hydra.sweeper._target_), composed.hydra.mode
    by_plugin = mode is None and not all(plugin.startswith("hydra._internal.core_plugins.basic_") for plugin in plugins)
    if not (asked.action == "multirun" or mode == RunMode.MULTIRUN or by_plugin):
        return False
    if any(word.startswith("hydra.run.dir=") for word in asked.shared):
        raise ConfigError(
            "is the folder of a run outside of a sweep; a job's is hydra.sweep.dir with hydra.sweep.subdir.", key="hydra.run.dir"
        )
    if by_plugin:
        sys.argv.append("hydra.mode=MULTIRUN")
    return True


def jobs_of_sweep(asked: CommandLine, composed: DictConfig) -> Sequence[Sequence[str]]:
    """Return the override lists to check a sweep by, with what the configuration itself varies (hydra.sweeper.params of Hydra's sweeper).

    What the command line says of a key counts, as it does for Hydra. Raises ConfigError for what Hydra's sweeper can't list.
    """
    if composed.hydra.sweeper._target_ != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper":
        return asked.jobs
    with composing(asked.overrides, asked.conf):
        params = OmegaConf.to_container(composed.hydra.sweeper, resolve=True).get("params") or {}  # type: ignore[union-attr]
        if not isinstance(params, dict):
            raise ConfigError(f"{params!r} isn't keys with the values that a sweep gives them.", key="hydra.sweeper.params")
        given = {item.get_key_element() for item in OverridesParser.create().parse_overrides(list(asked.overrides))}
        varied = [f"{key}={value}" for key, value in params.items() if key not in given]
        check_grid([*varied, *asked.overrides])
        return sweep_variants([*varied, *asked.overrides]) if varied else asked.jobs


def version_taken(composed: DictConfig) -> str:
    """Return the version that `experiment=<name>` among the overrides has led to; empty where a version is named, or no experiment."""
    name = OmegaConf.select(composed, "hydra.runtime.choices.experiment")
    version = f"{name}/{OmegaConf.select(composed, 'experiment_version')}"
    if f"experiment={name}" not in composed.hydra.overrides.task:
        return ""
    folders = (Path(source.path) for source in composed.hydra.runtime.config_sources if source.schema == FileConfigSource.scheme())
    return version if any((folder / "experiment" / f"{version}.yaml").is_file() for folder in folders) else ""


def help_text(conf: Path = CONF) -> str:
    """Return what --help prints. Hydra says the same from the same file, but takes a second to list the groups."""
    choices: dict[str, list[str]] = {}
    for path in sorted(conf.rglob("*/*.yaml")):
        choices.setdefault(str(path.parent.relative_to(conf)), []).append(path.stem)
    listed = [f"{group}: {', '.join(names)}" for group, names in sorted(choices.items()) if not group.startswith("hydra")]
    template = yaml.safe_load((conf / "hydra" / "help" / "asr.yaml").read_text(encoding="utf-8"))["template"]
    return str(template).replace("$APP_CONFIG_GROUPS", "\n".join(listed) + "\n")


def to_container(composed: DictConfig) -> dict[str, Any]:
    """Return the configuration resolved, as plain containers without Hydra's node.

    Raises ConfigError for a value that is missing or an interpolation that leads nowhere.
    """
    with composing(()):
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def sweep_variants(overrides: Sequence[str]) -> list[list[str]]:
    """Return override lists to check a sweep by: every job of a small one, every value at least once of a large one.

    A large grid of a by b values takes a + b - 1 lists rather than a times b. A glob(...) is left to Hydra.
    Raises ConfigError for more than MOST_JOBS, unless a sweeper is named: what isn't a grid has fewer.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    columns = [_values_of(item) for item in parsed if item.value_type != ValueType.GLOB_CHOICE_SWEEP]
    jobs = math.prod(map(len, columns))
    if jobs > MOST_JOBS and not any(item.key_or_group in ("hydra/sweeper", "sweep") for item in parsed):
        raise ConfigError(f"the sweep has {jobs} jobs; at most {MOST_JOBS} can be started by one command.")
    if jobs <= CHECKED_WHOLE:
        return [list(job) for job in product(*columns)]
    first = [column[0] for column in columns]
    others = ([*first[:i], value, *first[i + 1 :]] for i, column in enumerate(columns) for value in column[1:])
    return [first, *others]


def _values_of(item: Override) -> list[str]:
    """Return the override for each value that one of a sweep takes; raise ConfigError for more than MOST_JOBS."""
    if not item.is_sweep_override():
        return [str(item.input_line)]
    key, swept = item.get_key_element(), item.value()
    if isinstance(swept, IntervalSweep):  # for Optuna: the ends
        return [f"{key}={end!r}" for end in dict.fromkeys((swept.start, swept.end))]
    if isinstance(swept, RangeSweep) and swept.shuffle:  # Hydra lists a range to shuffle it, whatever its length
        swept.shuffle = False
    values = list(islice(item.sweep_string_iterator(), MOST_JOBS + 1))
    if len(values) > MOST_JOBS:
        raise ConfigError(f"a sweep of more than {MOST_JOBS} values is more than can be started by one command.", key=key)
    if not values:
        raise ConfigError("is a sweep over nothing; give it a value.", key=key)
    return [f"{key}={value}" for value in values]


def check_grid(overrides: Sequence[str]) -> None:
    """Raise ConfigError for what Hydra's own sweeper can't list: an interval, or more jobs than MOST_JOBS."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for item in parsed:
        if item.is_interval_sweep():
            raise ConfigError(
                "an interval is no list of values: name some, or range(...), or let Optuna choose (hydra/sweeper=asr_optuna).",
                key=item.get_key_element(),
            )
    sweep_variants([str(item.input_line) for item in parsed if item.key_or_group not in ("hydra/sweeper", "sweep")])


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
        raise ConfigError(f"{what}{_line(error)}.") from error


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


@contextlib.contextmanager
def hydra_s_part(task: Callable[..., object]) -> Iterator[None]:
    """Turn what Hydra raises on its way to and from our task into a ConfigError: it doesn't check its own settings and flags."""
    try:
        yield
    except UNFORESEEN as error:
        if _passed_through(error.__traceback__, task):
            raise
        raise ConfigError(f"Hydra can't go on with its own settings ({type(error).__name__}: {_line(error)}).", key="hydra") from error


def _passed_through(trace: TracebackType | None, function: Callable[..., object]) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is function.__code__:  # type: ignore[attr-defined]
            return True
        trace = trace.tb_next
    return False


def _line(error: object) -> str:
    """Return what an error says, in one line without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _first_key(overrides: Sequence[str]) -> str:
    return overrides[0].partition("=")[0] if len(overrides) == 1 else ""


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
    with composing(overrides, known=lambda _key: _with_arguments(OmegaConf.to_container(typed))), _bounded_depth():
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


def _with_arguments(config: Any) -> list[str]:
    """Return every dotted key of a configuration, and of the training arguments that it might have."""
    from asr.argument_checks import argument_names

    return sorted({*dotted_keys(config), *(f"trainer.args.{name}" for name in argument_names())})


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
    return _with_arguments(known)
