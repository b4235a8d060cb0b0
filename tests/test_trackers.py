"""Trackers: known, installed, and told where their files go."""

import pytest
from conftest import composed

from asr import trackers
from asr.errors import ConfigError
from asr.pipeline import Pipeline


def with_trackers(value):
    return Pipeline.of(composed(f"trainer.args.report_to={value}"))


@pytest.mark.parametrize("value", ["[wandb]", "mlflow", "[tensorboard, wandb]", "none", "all", "[]"])
def test_what_transformers_knows_is_taken(value):
    assert with_trackers(value).trainer.args["report_to"] is not None


@pytest.mark.parametrize(("value", "near"), [("[wandv]", "wandb"), ("tensorbord", "tensorboard")])
def test_another_name_is_refused_with_the_nearest(value, near):
    with pytest.raises(ConfigError, match=rf"^trainer\.args\.report_to: .* is not one of azure_ml, .*{near}\?"):
        with_trackers(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorboard, wandb]", r"wandb is not installed: pip install 'asr-gaudi\[wandb\]', or take it from the list"),
        ("mlflow", r"mlflow is not installed: pip install 'asr-gaudi\[mlflow\]'"),
        ("[clearml]", "clearml is not installed: install clearml"),
    ],
)
def test_one_that_is_not_installed_is_refused_before_anything_is_written(value, message, monkeypatch):
    found = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name in ("wandb", "mlflow", "clearml") else found(name))
    with pytest.raises(ConfigError, match=rf"^trainer\.args\.report_to: {message}"):
        with_trackers(value).check_host()


def test_the_installed_transformers_knows_every_name_of_ours():
    assert set(trackers.PACKAGES) <= set(trackers._of_transformers()) | {"neptune", "azure_ml", "codecarbon"}
    assert "wandb" in trackers._of_transformers()


def test_mlflow_s_run_takes_the_evaluation_after_training_too():
    """The rest of its callback, and other trackers, hear what they heard before."""
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def __init__(self):
            self.heard = []

        def on_train_end(self, *_, **__):
            self.heard.append("train end")

        def on_log(self, *_, **__):
            self.heard.append("log")

    class MLflowCallback(Ends):
        pass

    callbacks = [MLflowCallback(), Ends()]
    trackers.keep_open(callbacks)
    for callback in callbacks:
        callback.on_train_end(None, None, None)
        callback.on_log(None, None, None)
    assert [callback.heard for callback in callbacks] == [["log"], ["train end", "log"]]


def test_projects_are_called_as_the_experiment_unless_their_user_says_otherwise(monkeypatch, tmp_path):
    for variable in ("WANDB_DIR", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    trackers.apply_environment(["tensorboard"], tmp_path, "digits")
    assert "WANDB_DIR" not in trackers.os.environ
    trackers.apply_environment(["wandb", "mlflow"], tmp_path, "digits")
    assert {name: trackers.os.environ[name] for name in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME")} == {
        "WANDB_DIR": str(tmp_path),
        "WANDB_PROJECT": "mine",
        "MLFLOW_EXPERIMENT_NAME": "digits",
    }
