"""What hydra.sweeper may say for a sweep by Optuna.

In: the composed node. Out: checked settings, or a ConfigError with the key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from omegaconf import DictConfig, OmegaConf

from asr import config
from asr.command_line import MOST_JOBS
from asr.config import bounded, choice, free_form
from asr.errors import ConfigError
from asr.explanations import composing
from asr.secrets import SECRET_NAME

KEY = "hydra.sweeper"
PLUGIN = "hydra_plugins.asr_optuna."
STORAGE_VARIABLE = "ASR_OPTUNA_STORAGE"
"""Names the storage where hydra.sweeper.storage doesn't: the place for an address with a password."""
SEQUENTIAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher."


@dataclass(kw_only=True)
class Settings:
    """The keys of conf/hydra/sweeper/asr_optuna.yaml, which are hydra-optuna-sweeper's where they mean the same."""

    direction: str = choice("minimize", "minimize", "maximize")
    """Of what a job returns: eval_wer."""
    n_trials: int = bounded(20, at_least=1, at_most=MOST_JOBS)
    """Trials of the whole sweep: those that failed, and those of earlier sessions, count."""
    n_jobs: int | None = bounded(None, at_least=1)
    """How many are chosen and run together. null: as many as the launcher runs at once, where it says so; 1 without a parallel launcher."""
    max_failure_rate: float = bounded(0.5, at_least=0, at_most=1)
    """The sweep stops when more than this share of the trials since it was started has failed; fewer than 4 count as 4. 0: at the first."""
    storage: str | None = None
    """The address of a database, such as sqlite:////data/studies.db. null: $ASR_OPTUNA_STORAGE, else a file in the sweep's folder."""
    study_name: str | None = None
    """null: the sweep's folder."""
    sampler: dict[str, Any] = free_form()
    """`name` (tpe, random or gp), `seed`, and any argument of Optuna's class. With a seed, the same results lead to the same values."""
    params: dict[str, Any] = free_form()
    """What is varied: key: "Hydra's sweep grammar". The command line's sweeps go before."""

    def __post_init__(self) -> None:
        if self.storage is not None:
            _check_storage(self.storage)

    @property
    def address(self) -> str | None:
        """The storage's address; None for the file in the sweep's folder."""
        return self.storage or os.environ.get(STORAGE_VARIABLE) or None


def is_optuna(composed: DictConfig) -> bool:
    """Whether Optuna chooses the jobs of this configuration."""
    return str(composed.hydra.sweeper._target_).startswith(PLUGIN)


def read(composed: DictConfig) -> Settings:
    """Return the settings of a composed configuration with Hydra's node; raise ConfigError for what is wrong with them."""
    with composing(()):
        node = OmegaConf.to_container(composed.hydra.sweeper, resolve=True, throw_on_missing=True)
    assert isinstance(node, dict)
    with config.under(KEY):
        settings: Settings = config.node_of(Settings, {str(key): value for key, value in node.items() if key != "_target_"})
        _check_address(settings.address)
    return settings


def jobs_at_once(composed: DictConfig, settings: Settings) -> int:
    """Return how many jobs are handed to the launcher together; raise ConfigError where nobody says."""
    if settings.n_jobs is not None:
        return settings.n_jobs
    launcher = composed.hydra.launcher
    if launcher._target_ == SEQUENTIAL:
        return 1
    at_once = launcher.get("n_jobs") if str(launcher._target_).startswith(JOBLIB) else None
    if isinstance(at_once, int) and at_once > 0:
        return at_once
    raise ConfigError("say how many jobs run at once: Optuna chooses so many together.", key=f"{KEY}.n_jobs")


def _check_storage(address: str) -> None:
    """Raise ConfigError for a storage that is named where others read it, with a password. Its message doesn't repeat it."""
    try:
        parts = urlsplit(address)
        held = parts.password is not None or any(SECRET_NAME.search(name) for name, _ in parse_qsl(parts.query))
    except ValueError:  # such as a bracket that isn't closed
        held = True
    if held:
        raise ConfigError(
            f"holds a password, which would be written into the run: leave it null and export {STORAGE_VARIABLE} instead.", key="storage"
        )


def _check_address(address: str | None) -> None:
    if address is not None and "://" not in address:
        raise ConfigError(
            f"is no address of a database (${STORAGE_VARIABLE} or hydra.sweeper.storage), such as sqlite:////data/studies.db; "
            "null keeps the study in the sweep's folder.",
            key="storage",
        )
