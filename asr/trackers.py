"""Where losses and rates are followed as they come: TensorBoard, and Weights & Biases, MLflow and others by trainer.args.report_to.

In: the names that report_to has. Out: a ConfigError for one that transformers doesn't know, or whose package isn't installed; the
environment by which they name the project as the experiment.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, did_you_mean

KEY = "report_to"
PACKAGES = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""The trackers of transformers 4.55 (integrations/integration_utils.py:2475) and the module of each (ibid., 100-260)."""
EXTRAS = ("mlflow", "wandb")
"""Trackers that are extras of this package; for others their own package is installed."""
NO_NAMES = ("all", "none")


def names(report_to: Any) -> list[str]:
    """Return the trackers that report_to names; none for all that are installed, and for none.

    >>> names(["wandb"]), names("none"), names(None)
    (['wandb'], [], [])
    """
    given = [report_to] if isinstance(report_to, str) else list(report_to or ())
    return [str(name) for name in given if name not in NO_NAMES]


def check_names(report_to: Any) -> None:
    """Raise ConfigError for a name that transformers doesn't know: it would say so only after the data is prepared."""
    for name in names(report_to):
        if name not in PACKAGES and name not in _of_transformers():
            known = [*PACKAGES, *NO_NAMES]
            raise ConfigError(f"{name!r} is not one of {', '.join(known)}.{did_you_mean(name, known)}", key=f"args.{KEY}")


def _of_transformers() -> list[str]:
    """Return the trackers of the installed transformers, read from its source: another version may have more."""
    package = importlib.util.find_spec("transformers")
    source = Path(str(package.origin)).parent / "integrations" / "integration_utils.py" if package else Path()
    if not source.is_file():
        return []
    table = re.search(r"^INTEGRATION_TO_CALLBACK = {(.*?)^}", source.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(r'"(\w+)":', table[1]) if table else []


def check_installed(report_to: Any) -> None:
    """Raise ConfigError for a tracker whose package isn't installed here."""
    for name in names(report_to):
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            how = f"pip install 'asr-gaudi[{name}]'" if name in EXTRAS else f"install {PACKAGES[name]}"
            raise ConfigError(f"{name} is not installed: {how}, or take it from the list.", key=f"trainer.args.{KEY}")


def apply_environment(report_to: Sequence[str] | str | None, run_dir: Path, experiment: str) -> None:
    """Have trackers call the project as the experiment, and W&B keep its files in the run directory, where their user says nothing else.

    transformers 4.55 reads WANDB_PROJECT (integration_utils.py:893) and MLFLOW_EXPERIMENT_NAME (1404), wandb itself WANDB_DIR.
    """
    ours: dict[str, dict[str, str]] = {
        "wandb": {"WANDB_DIR": str(run_dir), "WANDB_PROJECT": experiment},
        "mlflow": {"MLFLOW_EXPERIMENT_NAME": experiment},
    }
    for name in names(report_to):
        for variable, value in ours.get(name, {}).items():
            os.environ.setdefault(variable, value)


def keep_open(callbacks: Iterable[Any]) -> None:
    """Have MLflow's run go on after training, until the process ends: transformers 4.55 ends it with the last step
    (integration_utils.py:1504), and the evaluation that follows would begin another, without a name. Theirs ends it when it goes (1519).
    """
    for callback in callbacks:
        if type(callback).__name__ == "MLflowCallback":
            callback.on_train_end = lambda *_, **__: None
