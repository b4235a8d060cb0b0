"""A command line of launch.py: Hydra's flags, overrides and the jobs of a sweep, checked before Hydra acts on them.

In: words. Out: a CommandLine with the override lists to compose; a ConfigError for what can't be parsed, is no grid, or tells a secret.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from asr import secrets
from asr.config_files import CONF
from asr.errors import ConfigError
from asr.explanations import composing

CHECKED_WHOLE = 16  # jobs of a sweep that are all composed before it starts, at a fifth of a second each
MOST_JOBS = 10_000
"""Of one sweep. Hydra makes a list of all jobs before the first starts."""
LONGEST_WORD = 10_000
"""Characters of an override: parsing takes time and memory that grow faster than it."""


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


def help_text(conf: Path = CONF) -> str:
    """Return what --help prints. Hydra says the same from the same file, but takes a second to list the groups."""
    choices: dict[str, list[str]] = {}
    for path in sorted(conf.rglob("*/*.yaml")):
        choices.setdefault(str(path.parent.relative_to(conf)), []).append(path.stem)
    listed = [f"{group}: {', '.join(names)}" for group, names in sorted(choices.items()) if not group.startswith("hydra")]
    template = yaml.safe_load((conf / "hydra" / "help" / "asr.yaml").read_text(encoding="utf-8"))["template"]
    return str(template).replace("$APP_CONFIG_GROUPS", "\n".join(listed) + "\n")
