"""Which checkpoint is best, and what is refused where it couldn't be said."""

import json

import pytest
from conftest import EVERY_ENGINE

from asr import best
from asr.best import Best
from asr.checkpoints import Checkpoint
from asr.errors import ConfigError
from asr.trainer import CTCTraining


def checkpoint(folder, step, log):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return Checkpoint(path)


def evaluated(step, **values):
    return {"step": step, **{f"eval_{name}": value for name, value in values.items()}}


def test_the_best_come_first_by_what_was_measured_at_their_own_step(tmp_path):
    log = [{"step": 10, "loss": 1.0}, evaluated(10, wer=0.5, loss=3.0), evaluated(20, wer=0.4, loss=2.0), evaluated(30, wer=0.4, loss=1.0)]
    log.append(evaluated(40, wer=float("nan"), loss=4.0))
    made = [checkpoint(tmp_path, step, log) for step in (10, 20, 30, 40, 50)]  # the last was never evaluated
    (made[4].path.with_name("checkpoint-60")).mkdir()  # has no state at all
    every = [*made, Checkpoint(tmp_path / "checkpoint-60")]
    assert [each.step for each in Best("wer", False).order(every)] == [30, 20, 10]  # of equal ones the later
    assert [each.step for each in Best("wer", True).order(every)] == [10, 30, 20]
    assert [each.step for each in Best("loss", False).order(every)] == [30, 20, 10, 40]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("args", "metrics", "message"),
    [
        ({"metric_for_best_model": "wre"}, ["wer"], r"^args\.metric_for_best_model: .* Did you mean wer\?"),
        ({"metric_for_best_model": "cer"}, ["wer"], r"^args\.metric_for_best_model: 'cer' is not one of loss, wer\."),
        ({"metric_for_best_model": "wer", "greater_is_better": True}, ["wer"], r"^args\.greater_is_better: a lower wer is better"),
        ({"metric_for_best_model": "eval_wer"}, ["wer"], None),
        ({"metric_for_best_model": "loss", "greater_is_better": False}, ["wer"], None),
        ({"metric_for_best_model": "own"}, ["own.py"], r"^args\.greater_is_better: is a greater own better"),
        ({"metric_for_best_model": "own", "greater_is_better": True}, ["own.py"], None),
    ],
)
def test_what_best_means_is_said_at_launch(tmp_path, monkeypatch, engine, args, metrics, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    if message is None:
        CTCTraining(engine=engine, args=args, eval_metrics=metrics)
    else:
        with pytest.raises(ConfigError, match=message):
            CTCTraining(engine=engine, args=args, eval_metrics=metrics)


def test_a_lower_error_rate_is_better_whatever_transformers_takes_it_for(tmp_path):
    from transformers import TrainingArguments

    def taken(**args):
        library = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **args, **best.arguments(args))
        return Best.of(library)

    assert taken(metric_for_best_model="wer") == Best("wer", False)
    assert taken(metric_for_best_model="eval_loss") == Best("loss", False)
    assert taken(metric_for_best_model="own", greater_is_better=True) == Best("own", True)


STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}


@pytest.mark.parametrize(
    ("args", "fits"),
    [
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, True),
        ({"eval_strategy": "epoch", "save_strategy": "steps"}, False),
        ({"eval_strategy": "epoch"}, False),
        ({"eval_strategy": "steps"}, True),
        ({"eval_strategy": "steps", "save_strategy": "best"}, True),
        ({**STEPS, "eval_steps": 5, "save_steps": 10}, True),
        ({**STEPS, "eval_steps": 10, "save_steps": 5}, False),
        ({**STEPS, "eval_steps": 4, "save_steps": 10}, False),
        ({**STEPS, "eval_steps": 0.1, "save_steps": 0.3}, True),
        ({**STEPS, "eval_steps": 0.1, "save_steps": 10}, False),
        ({**STEPS, "logging_steps": 5, "save_steps": 10}, True),
        ({**STEPS, "logging_steps": 7, "save_steps": 10}, False),
    ],
)
def test_checkpoints_are_evaluated_where_transformers_says_so_too(tmp_path, args, fits):
    from transformers import TrainingArguments

    def accepted(check):
        try:
            check()
        except (ValueError, ConfigError):
            return False
        return True

    assert accepted(lambda: best.check_evaluated_when_saved(args, "k")) is fits
    metric = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    assert accepted(lambda: TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **metric, **args)) is fits
