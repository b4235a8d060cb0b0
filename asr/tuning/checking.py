"""What is looked at before a sweep by Optuna starts.

In: the composed configuration of a command line. Out: override lists to compose and check like jobs, or a ConfigError.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from asr.errors import ConfigError
from asr.tuning import settings, space, studies


def overrides_to_check(composed: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """Return override lists that try every parameter at its bounds; raise ConfigError for what can't be optimised.

    `composed` has Hydra's node; `overrides` are the command line's, sweeps included.
    """
    studies.require()
    asked = settings.read(composed)
    settings.jobs_at_once(composed, asked)
    for key in ("dry_run", "rehearse"):
        if composed.get(key):
            raise ConfigError("gives no WER to optimise; leave it out, or the sweeper.", key=key)
    if "evaluate" not in composed.stages:
        raise ConfigError("gives no WER to optimise: add evaluate.", key="stages")
    parameters, fixed = space.read(asked.params, overrides)
    space.check(parameters)
    studies.sampler_of(asked)
    return space.overrides_to_check(parameters, fixed)
