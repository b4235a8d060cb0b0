"""history.jsonl: the course of a training, kept at each save and at the end, and its curves."""

import json
import math
from types import SimpleNamespace

import pytest
from conftest import composed

from asr import history, stages
from asr.errors import ConfigError, TrainingError
from asr.runs import Run


def trainer_of(*events):
    return SimpleNamespace(state=SimpleNamespace(log_history=list(events)), after_save=[])


def test_a_save_keeps_what_was_logged_until_then(tmp_path):
    trainer = trainer_of({"loss": 2.0, "step": 1})
    history.keep(trainer, tmp_path)
    for after_save in trainer.after_save:
        after_save(None)
    trainer.state.log_history.append({"loss": 1.0, "step": 2})
    assert history.load(tmp_path) == [{"loss": 2.0, "step": 1}]
    history.save(trainer, tmp_path)
    assert history.load(tmp_path) == trainer.state.log_history


def test_what_is_not_finite_is_null(tmp_path):
    history.save(trainer_of({"eval_loss": math.nan, "grad_norm": math.inf, "step": 1}), tmp_path)
    assert json.loads((tmp_path / "history.jsonl").read_text()) == {"eval_loss": None, "grad_norm": None, "step": 1}


def test_a_trainer_that_never_logged_leaves_no_file_and_takes_none_away(tmp_path):
    history.save(trainer_of(), tmp_path)
    assert history.load(tmp_path) == []
    history.save(trainer_of({"loss": 2.0, "step": 1}), tmp_path)
    history.save(trainer_of(), tmp_path)
    assert len(history.load(tmp_path)) == 1


def test_a_full_disk_costs_the_history_alone(tmp_path, caplog):
    history.save(trainer_of({"loss": 2.0, "step": 1}), tmp_path / "gone")
    assert "history.jsonl can't be written" in caplog.text


def test_a_curve_is_in_the_order_of_steps_and_has_one_value_a_step():
    events = [
        {"step": 4, "eval_wer": 0.5},
        {"step": 2, "eval_wer": 0.9, "loss": 3.0},
        {"step": 4, "eval_wer": 0.4},
        {"step": 6, "eval_wer": None},
        {"step": 8, "eval_wer": "0.3"},
        {"eval_wer": 0.2},
    ]
    assert history.curve(events, "eval_wer") == ([2, 4], [0.9, 0.4])
    assert history.curve(events, "learning_rate") == ([], [])


def test_a_line_cut_short_is_named(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ConfigError, match=r"history\.jsonl, line 2, can't be read"):
        history.load(tmp_path)


def test_a_training_that_fails_midway_leaves_what_was_logged(tmp_path, monkeypatch):
    import torch

    run = Run.create(tmp_path / "r", composed(), command=[], overrides=[])
    trainer = trainer_of()
    trainer.model, trainer.args, trainer.forwarded = torch.nn.Linear(1, 1), SimpleNamespace(device="cpu"), {}

    def train(*_):
        trainer.state.log_history.append({"loss": 2.0, "step": 1})
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(stages, "build", lambda *_: (trainer, None))
    monkeypatch.setattr(stages, "train", train)
    with pytest.raises(TrainingError):
        stages.work(run)
    assert history.load(run.path) == [{"loss": 2.0, "step": 1}]


def test_a_run_has_its_history(run_dir):
    events = history.load(run_dir)
    steps, losses = history.curve(events, "loss")
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(loss > 0 for loss in losses)
    assert history.curve(events, "learning_rate")[0] == steps
    assert history.curve(events, "eval_wer")[0][-1] == 6
