"""Runs that are stopped and gone on with: test_resume.py runs this file in a process of its own, from which runs are forked."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENGINE, ROOT
from safetensors.torch import load_file

from asr import checkpoints
from asr.runs import Run

sys.path.insert(0, str(ROOT / "benchmarks"))
import killing

STEPS = 9


@pytest.fixture(scope="session", autouse=True)
def libraries():
    killing.import_libraries()


@pytest.fixture(scope="session")
def config():
    def compose(*overrides):
        return killing.composed([*killing.SHORT, *ENGINE, *overrides])

    return compose


@pytest.fixture(scope="session")
def never_stopped(config, tmp_path_factory):
    """The run that the others must equal."""
    run_dir = tmp_path_factory.mktemp("never stopped") / "run"
    assert killing.run(config(), run_dir)[0] == 0, said(run_dir)
    return run_dir


def said(run_dir: Path) -> str:
    return run_dir.with_suffix(".said").read_text(encoding="utf-8")


def saved(run_dir: Path, step: int):
    """Say when a run has a checkpoint."""
    return lambda: (run_dir / "checkpoints" / f"checkpoint-{step}").exists()


def goes_on(config, run_dir: Path) -> Run:
    code, _ = killing.run(config, run_dir)
    assert code == 0, said(run_dir)
    return Run.load(run_dir)


def assert_equal(run_dir: Path, other: Path):
    assert killing.differences(killing.results(other), killing.results(run_dir)) == []


def test_killed_within_an_epoch_it_goes_on_as_if_nothing_had_been(config, never_stopped, tmp_path, monkeypatch):
    from asr import cli

    run_dir = tmp_path / "a run"
    assert killing.run(config(), run_dir, until=saved(run_dir, 2))[0] == 137
    assert Run.load(run_dir).record["status"] == "running"  # nobody was left to record its end
    monkeypatch.setattr(sys, "argv", ["asr", "resume", str(run_dir)])
    code, _ = killing.run(config(), run_dir, story=cli.app)
    assert code == 0, said(run_dir)
    run = Run.load(run_dir)
    assert run.record["status"] == "finished"
    assert run.record["resumed_from"] in ("checkpoint-2", "checkpoint-3")
    assert [session["status"] for session in run.record["sessions"]] == ["running"]
    assert_equal(run_dir, never_stopped)


def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(config, never_stopped, tmp_path):
    run_dir = tmp_path / "run"
    killing.run(config(), run_dir, until=saved(run_dir, 5))
    newest, before = reversed(checkpoints.every(run_dir / "checkpoints")[-2:])
    weights = newest.path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    run = goes_on(config("resume=auto"), run_dir)
    assert run.record["resumed_from"] == before.path.name
    assert f"model.safetensors of {newest.path.name} has" in said(run_dir)
    assert_equal(run_dir, never_stopped)


@pytest.mark.slow
def test_killed_after_training_it_evaluates(config, never_stopped, tmp_path):
    run_dir = tmp_path / "run"
    killing.run(config(), run_dir, until=lambda: (run_dir / "model").exists())
    run = goes_on(config("resume=auto"), run_dir)
    assert run.record["resumed_from"] == f"checkpoint-{STEPS}"
    assert_equal(run_dir, never_stopped)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_preempted_it_saves_that_step_and_goes_on(config, never_stopped, tmp_path, number):
    run_dir = tmp_path / "run"
    never = "trainer.args.save_steps=100"  # but for the end, and what a preemption saves
    first_step = lambda: run_dir.with_suffix(".said").exists() and "first optimizer step done" in said(run_dir)  # noqa: E731
    code, _ = killing.run(config(never), run_dir, until=first_step, number=number)
    record = Run.load(run_dir).record
    assert (code, record["status"], record["exit_code"]) == (75, "preempted", 75), said(run_dir)
    (saved_one,) = checkpoints.every(run_dir / "checkpoints")
    assert f"preempted ({number.name}) after step {saved_one.step}, which is saved; resume=auto goes on from there" in record["error"]
    run = goes_on(config(never, "resume=auto"), run_dir)
    assert run.record["resumed_from"] == saved_one.path.name
    assert_equal(run_dir, never_stopped)


@pytest.mark.slow
def test_a_time_limit_ends_each_session_after_a_step(config, never_stopped, tmp_path):
    run_dir = tmp_path / "run"
    limited = config("trainer.max_hours=1e-9", "resume=auto")
    codes = [killing.run(limited, run_dir)[0] for _ in range(STEPS + 1)]
    assert codes == [75] * STEPS + [0]
    assert_equal(run_dir, never_stopped)


def test_one_that_has_finished_is_left_alone(config, never_stopped):
    before = {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*") if path.is_file()}
    assert killing.run(config("resume=auto"), never_stopped)[0] == 0
    assert "has finished: there is nothing to resume" in said(never_stopped)
    assert {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*") if path.is_file()} == before


def test_a_run_s_own_configuration_makes_no_objects_of_others(config, never_stopped, tmp_path, monkeypatch):
    from asr import cli

    run_dir = Run.create(tmp_path / "run", config(), command=[], overrides=[]).path
    planted = (run_dir / "config.yaml").read_text().replace("_target_: asr.text.TextRules", "_target_: subprocess.Popen")
    (run_dir / "config.yaml").write_text(planted)
    monkeypatch.setattr(sys, "argv", ["asr", "resume", str(run_dir)])
    assert killing.run(config(), run_dir, story=cli.app)[0] == 2
    assert "error: text._target_: 'subprocess.Popen' is not a class of asr.*" in said(run_dir)


ROOM_BYTES = 4_000_000  # for the weights, and not for the optimizer's states


def room(pid: int, size: int) -> None:
    """Let a process write files of so many bytes at most, which then fails as on a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_checkpoint_that_can_t_be_written_does_not_end_the_training(config, never_stopped, tmp_path):
    run_dir = tmp_path / "run"

    def make_room_after_two_failures(pid: int) -> None:
        failed = said(run_dir).count("can't be written") if run_dir.with_suffix(".said").exists() else 0
        room(pid, ROOM_BYTES if failed < 2 else resource.RLIM_INFINITY)

    code, _ = killing.run(config(), run_dir, meanwhile=make_room_after_two_failures)
    assert code == 0, said(run_dir)
    assert "checkpoint-1 can't be written into " in said(run_dir)
    assert "training goes on, and the next save tries again (2 failed in a row). Make room on the disk." in said(run_dir)
    assert_equal(run_dir, never_stopped)


@pytest.mark.slow
def test_a_checkpoint_that_can_t_be_written_may_end_the_training(config, never_stopped, tmp_path):
    run_dir = tmp_path / "run"
    stops = config("trainer.on_save_error=stop")
    code, _ = killing.run(stops, run_dir, meanwhile=lambda pid: room(pid, ROOM_BYTES) if saved(run_dir, 3)() else None)
    assert code == 1
    assert "Make room and resume, or go on without with trainer.on_save_error=continue." in Run.load(run_dir).record["error"]
    left = checkpoints.every(run_dir / "checkpoints")
    assert [one.problem() for one in left] == [None] * len(left)
    assert not (run_dir / "checkpoints" / checkpoints.SAVING).exists()
    goes_on({**stops, "resume": "auto"}, run_dir)
    assert_equal(run_dir, never_stopped)


@pytest.mark.slow
def test_the_best_checkpoint_is_one_that_could_be_written(config, tmp_path):
    """The loss falls at each of the first steps, and there is room for none of the checkpoints but the first two and the last."""
    run_dir = tmp_path / "run"
    best = config(*BEST, "trainer.args.learning_rate=1e-3", "trainer.args.save_total_limit=9")

    def little_room(pid: int) -> None:
        room(pid, ROOM_BYTES if saved(run_dir, 2)() else resource.RLIM_INFINITY)

    code, _ = killing.run(best, run_dir, meanwhile=little_room)
    assert code == 0, said(run_dir)
    left = checkpoints.every(run_dir / "checkpoints")
    assert left[-1].step in (2, 3)  # the limit may come while the third is written
    model, checkpoint = (load_file(folder / "model.safetensors") for folder in (run_dir / "model", left[-1].path))
    assert all(torch.equal(model[name], checkpoint[name]) for name in model)


@pytest.mark.slow
def test_a_disk_that_is_full(config, tmp_path):
    """A real one, of 14 MB: the first checkpoint has room, the second hasn't while the first is there."""
    run_dir = tmp_path / "disk" / "run"
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(tmp_path / "disk")], capture_output=True).returncode:
        pytest.skip("mounting needs the right to")
    try:
        code, _ = killing.run(config("trainer.on_save_error=stop"), run_dir)
        assert code == 1, said(run_dir)
        assert "No space left on device" in said(run_dir)
        assert [one.problem() for one in checkpoints.every(run_dir / "checkpoints")] == [None]
        assert Run.load(run_dir).record["status"] == "failed"
        subprocess.run(["mount", "-o", "remount,size=60m", str(tmp_path / "disk")], check=True)
        assert goes_on(config("trainer.on_save_error=stop", "resume=auto"), run_dir).record["resumed_from"] == "checkpoint-1"
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


BEST = [
    *("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1", "trainer.args.load_best_model_at_end=true"),
    *("trainer.args.metric_for_best_model=loss", "trainer.args.learning_rate=0.05", "trainer.args.save_total_limit=1"),
]
"""The loss falls and rises again: the best is not the last."""


DROPOUT = [f"model.decoder.{name}=0.1" for name in ("dropout", "attention_dropout")]
GENERATING = {
    "encoder-decoder": [
        *("trainer=seq2seq", "model=digits_encoder_decoder", "model.max_length=12", "model.num_beams=2", *DROPOUT),
        *("model.encoder_layerdrop=0.1", "model.encoder_mask_time_prob=0.2", "model.encoder_mask_feature_prob=0.1"),
    ],
    "whisper": [
        *("trainer=seq2seq", "model=digits_whisper", "trainer.args.generation_max_length=16", "model.dropout=0.1"),
        *("model.apply_spec_augment=true", "model.mask_time_prob=0.2", "model.decoder_layerdrop=0.1", "model.encoder_layerdrop=0.1"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", GENERATING.values(), ids=GENERATING)
def test_a_model_that_generates_killed_at_any_step(tmp_path, overrides):
    asked = [*killing.NINE_STEPS, *ENGINE, "augment.speed_factors=[0.9,1.0,1.1]", *overrides]
    whole = tmp_path / "whole"
    assert killing.run(killing.composed(asked), whole)[0] == 0, said(whole)
    equal = 0
    for step in (1, 2, 5, 8):
        run_dir = tmp_path / f"killed at {step}"
        code, _ = killing.run(killing.composed(asked), run_dir, until=saved(run_dir, step))
        goes_on(killing.composed([*asked, "resume=auto"]), run_dir)
        assert_equal(run_dir, whole)
        equal += code == 137
    assert equal, "no run was killed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        BEST,
        ["trainer.args.eval_strategy=epoch", "trainer.args.save_strategy=epoch", "trainer.args.logging_strategy=epoch"],
        ["trainer.args.eval_strategy=epoch", "trainer.args.save_steps=3", "trainer.args.lr_scheduler_type=cosine"],
        ["trainer.args.max_steps=5", "trainer.args.save_steps=2", "trainer.args.num_train_epochs=1"],
        ["batching=longest", "trainer.args.group_by_length=true", "trainer.args.gradient_accumulation_steps=1"],
        ["trainer.args.dataloader_num_workers=2", "trainer.args.dataloader_persistent_workers=true", "trainer.args.bf16=true"],
        [*BEST, "trainer.args.load_best_model_at_end=true", "trainer.early_stopping_patience=2", "trainer.args.num_train_epochs=8"],
    ],
    ids=["best", "epochs", "epoch ends", "max_steps", "longest", "workers", "early stopping"],
)
def test_killed_at_any_step(config, tmp_path, overrides):
    whole = tmp_path / "whole"
    assert killing.run(config(*overrides), whole)[0] == 0, said(whole)
    steps = sorted({*range(1, STEPS + 1, 2), STEPS})
    equal = 0
    for step in steps:
        run_dir = tmp_path / f"killed at {step}"
        code, _ = killing.run(config(*overrides), run_dir, until=saved(run_dir, step))
        goes_on(config(*overrides, "resume=auto"), run_dir)
        assert_equal(run_dir, whole)
        equal += code == 137
    assert equal, "no run was killed"


@pytest.mark.slow
def test_lora_goes_on_as_if_nothing_had_been(config, never_stopped, tmp_path):
    adapted = [f"model.name_or_path={never_stopped / 'model'}", "model.lora.r=4", "model.lora.dropout=0.1"]
    whole, run_dir = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    assert killing.run(config(*adapted), whole)[0] == 0, said(whole)
    killing.run(config(*adapted), run_dir, until=saved(run_dir, 4))
    goes_on(config(*adapted, "resume=auto"), run_dir)
    assert_equal(run_dir, whole)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (never_stopped, whole)]
    assert weights[0].keys() == weights[1].keys()
    moved = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert moved == {name for name in weights[0] if name.endswith(("linear_q.weight", "linear_v.weight"))}


@pytest.mark.slow
def test_without_a_folder_the_newest_unfinished_run_of_this_configuration_is_found(config, never_stopped, tmp_path):
    from asr import sessions

    home = tmp_path / "outputs" / "spoken_digits_ctc"
    for name, overrides in (("old", ()), ("other", ("seed=8",)), ("new", ()), ("done", ())):
        run = Run.create(home / name, config(*overrides), command=[], overrides=[])
        run.save(
            session_started=f"2026-01-0{1 + len(list(home.iterdir()))}T00:00:00+00:00", status="failed" if name != "done" else "finished"
        )
    found = sessions.newest_unfinished(config("resume=auto"), home / "2026-11-23_00-00-00")
    assert found is not None
    assert found.path == home / "new"
    assert sessions.newest_unfinished(config("seed=9"), home / "x") is None


def test_another_configuration_does_not_go_on_with_it(config, never_stopped):
    record = (never_stopped / "run.json").read_text()
    code, _ = killing.run(config("resume=auto", "trainer.args.learning_rate=0.5"), never_stopped)
    assert code == 2
    assert "trainer.args.learning_rate: is 0.5, and 0.0025 in the run to resume" in said(never_stopped)
    assert (never_stopped / "run.json").read_text() == record


@pytest.mark.slow
def test_two_launches_cannot_share_a_folder(config, tmp_path):
    run_dir = tmp_path / "run"
    results = []

    def second_launch() -> bool:
        if saved(run_dir, 1)():
            results.append(killing.run(config("resume=auto"), run_dir)[0])
            return True
        return False

    killing.run(config(), run_dir, until=second_launch)
    assert results == [2]
    assert f"hydra.run.dir: {run_dir} is in use: process " in said(run_dir)
    assert json.loads((run_dir / "run.json").read_text())["sessions"] == []
