"""Hydra's door to asr.tuning: Hydra takes sweepers from below the namespace package `hydra_plugins` alone (hydra 1.3, core/plugins.py:125).

In: hydra/sweeper=asr_optuna. Out: a sweep by asr.tuning. Every start of Hydra imports this, so it imports nothing of weight.
There is no hydra_plugins/__init__.py, which would hide the plugins of other distributions.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Asks Optuna for each job's overrides. Its settings are asr.tuning.settings.Settings."""

    def __init__(self, **_settings: Any) -> None:
        """Take what Hydra hands over; `sweep` reads it from the configuration, where it is typed."""
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        from asr.tuning import sweeping

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        return sweeping.sweep(self.config, self.launcher, self.hydra_context.config_loader, arguments)
