"""Training that stops when it doesn't get better, the best checkpoint, and the mean of several, each on a real run."""

import json

import pytest
import torch
from conftest import EVERY_ENGINE
from safetensors.torch import load_file
from test_trainer import built

from asr import early_stopping
from asr.errors import ConfigError
from asr.trainer import CTCTraining

WER = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.1, 10: 0.1, 12: 0.1}
"""What evaluations say, by step: the third is the second in a row that isn't better than the first."""
STEPS = [f"trainer.args.{phase}_{what}" for phase in ("eval", "save") for what in ("strategy=steps", "steps=2")]
RUN = [*STEPS, "trainer.args.metric_for_best_model=wer", "trainer.args.per_device_train_batch_size=4", "trainer.args.save_total_limit=null"]


def trained(folder, *overrides, steps=10, resume=None):
    """Train, with evaluations that say what WER says."""
    made, _ = built(folder, *RUN, f"trainer.args.max_steps={steps}", *overrides)
    made.compute_metrics = lambda _, compute_result: {"wer": WER[made.state.global_step]} if compute_result else {}
    made.train(resume_from_checkpoint=resume and str(folder / "checkpoints" / f"checkpoint-{resume}"))
    return made


def weights(made):
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def stored(folder, step):
    return load_file(folder / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")


def same(ours, theirs):
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
def test_patience_lasts_over_a_resume(tmp_path):
    whole = trained(tmp_path, "trainer.early_stopping_patience=2")
    assert (whole.state.global_step, early_stopping.stopped_at(whole)) == (6, 6)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["EarlyStopping"]["attributes"] == {"early_stopping_patience_counter": 1, "stopped_at_step": None}
    for step in (4, 6):  # killed after the first bad evaluation, and after all was decided
        again = trained(tmp_path, "trainer.early_stopping_patience=2", resume=step)
        assert (again.state.global_step, early_stopping.stopped_at(again)) == (6, 6)
        assert same(weights(again), weights(whole))
    whole.compute_metrics = lambda _, compute_result: {"wer": 1.0}
    whole.evaluate()  # the stage after it counts for nothing
    assert early_stopping.stopped_at(whole) == 6


@pytest.mark.slow
def test_an_end_that_was_planned_is_not_early(tmp_path):
    made = trained(tmp_path, "trainer.early_stopping_patience=2", steps=6)
    assert (made.state.global_step, early_stopping.stopped_at(made)) == (6, None)
    assert early_stopping.stopped_at(trained(tmp_path / "without", "trainer.args.save_strategy=no", steps=2)) is None


@pytest.mark.slow
def test_the_best_weights_come_back_also_after_the_run_has_moved(tmp_path):
    """The wer is lowest at step 2; transformers alone would take a greater one for better."""
    best = "trainer.args.load_best_model_at_end=true"
    made = trained(tmp_path / "here", best, "trainer.args.save_total_limit=1", steps=4)
    assert made.state.best_global_step == 2
    assert same(weights(made), stored(tmp_path / "here", 2))
    trained(tmp_path / "whole", best, steps=6)
    (tmp_path / "whole").rename(tmp_path / "moved")
    again = trained(tmp_path / "moved", best, steps=6, resume=4)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoints" / "checkpoint-2")
    assert same(weights(again), stored(tmp_path / "moved", 2))
    assert not same(weights(again), stored(tmp_path / "moved", 6))


@pytest.mark.parametrize(("by", "steps"), [("best", [2, 6]), ("last", [4, 6])])
def test_averaged_checkpoints_are_kept_and_become_the_weights(tmp_path, by, steps):
    asked = ["trainer.average_checkpoints=2", f"trainer.average_by={by}", "trainer.args.save_total_limit=2"]
    made = trained(tmp_path, *asked, steps=6)
    assert made.averaging.apply(made) == [f"checkpoint-{step}" for step in steps]
    mine, (first, last) = weights(made), (stored(tmp_path, step) for step in steps)
    for name, value in last.items():
        torch.testing.assert_close(mine[name], (first[name] + value) / 2, rtol=1e-6, atol=1e-7)
    assert not same(mine, last)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"eval_strategy": "epoch"}, "say by what with trainer.args.metric_for_best_model"),
        ({"metric_for_best_model": "wer"}, "there are none: set trainer.args.eval_strategy"),
        ({"metric_for_best_model": "wer", "eval_strategy": "epoch"}, None),
    ],
)
def test_what_the_callback_would_fail_on_is_said_at_launch(engine, args, said):
    if said is None:
        CTCTraining(engine=engine, args=args, early_stopping_patience=1)
        return
    with pytest.raises(ConfigError) as refused:
        CTCTraining(engine=engine, args=args, early_stopping_patience=1)
    assert refused.value.key == "early_stopping_patience"
    assert said in refused.value.problem
