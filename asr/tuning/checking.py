"""What is looked at before a sweep by Optuna starts.

In: the composed configuration of a command line. Out: override lists to compose and check like jobs, or a ConfigError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

from asr.errors import ConfigError
from asr.tuning import settings, space, studies


@dataclass
class Options:
    """Lists the options of a group for glob(...), as Hydra's own loader will when it runs."""

    conf: Path

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = None) -> list[str]:
        return sorted(path.stem for path in (self.conf / group_name).glob("*.yaml"))


def overrides_to_check(composed: DictConfig, overrides: Sequence[str], conf: Path) -> list[list[str]]:
    """Return override lists that try every parameter at its bounds; raise ConfigError for what can't be optimised.

    `composed` has Hydra's node; `overrides` are the command line's, sweeps included; `conf` is the folder of YAML files.
    """
    studies.require()
    asked = settings.read(composed)
    settings.jobs_at_once(composed, asked)
    for key in ("dry_run", "rehearse"):
        if composed.get(key):
            raise ConfigError("gives no WER to optimise; leave it out, or the sweeper.", key=key)
    if "evaluate" not in composed.stages:
        raise ConfigError("gives no WER to optimise: add evaluate.", key="stages")
    parameters, fixed = space.read(asked.params, overrides, Options(conf))
    space.check(parameters)
    studies.sampler_of(asked)
    return space.overrides_to_check(parameters, fixed)
