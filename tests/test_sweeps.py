"""The folder of a sweep: what is recorded, which one a launch goes on with, and what it refuses."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ENGINE
from hydra.types import RunMode

from asr import command_line, composition, preflight, runs, sessions, stops, sweeps
from asr.errors import ConfigError, DataError, JobError
from asr.sweeps import Sweep

GRID = ["seed=1,2", "trainer.args.learning_rate=1e-3,2e-3"]


def told(_sweep: Sweep) -> None:
    """Show nothing."""


def settings(folder: Path, number: int = 0, mode: RunMode = RunMode.MULTIRUN, overrides=("seed=1",)):
    """Return what is read of Hydra's node in a job."""
    return SimpleNamespace(
        mode=mode,
        runtime=SimpleNamespace(cwd=str(folder.parent)),
        sweep=SimpleNamespace(dir=folder.name),
        job=SimpleNamespace(num=number),
        overrides=SimpleNamespace(task=list(overrides)),
    )


def made(folder: Path, overrides=GRID, status="interrupted", **record) -> Path:
    """Write a sweep that has ended."""
    folder.mkdir(parents=True)
    command = [sys.executable, "launch.py", "-m", *overrides]
    sweep = {"schema": 1, "status": status, "command": command, "overrides": list(overrides), "cwd": str(folder.parent), **record}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return folder


def test_a_sweep_records_its_end(tmp_path):
    folder = tmp_path / "s"
    shown = []
    with sweeps.recorded(folder, GRID, shown.append):
        assert Sweep.load(folder).record["status"] == "running"
        with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .* is in use"):
            in_other_process(folder)
    record = Sweep.load(folder).record
    assert (record["status"], record["exit_code"], record["overrides"], record["sessions"]) == ("finished", 0, GRID, 1)
    assert [sweep.path for sweep in shown] == [folder]
    assert not (folder / ".lock").exists()


def in_other_process(folder: Path) -> None:
    """Hold the folder as another process would: a POSIX lock doesn't hold off its own."""
    import subprocess

    code = (
        "import sys, pathlib\nfrom asr import sessions\nfrom asr.errors import ConfigError\n"
        "try:\n    sessions.hold(pathlib.Path(sys.argv[1]), key='hydra.sweep.dir')\nexcept ConfigError as error:\n    sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=runs.CODE)
    if done.returncode:
        raise ConfigError(done.stderr.strip().partition(": ")[2], key="hydra.sweep.dir")


ENDS = {
    "a bad job": (JobError("s/1", 3), "failed", 3),
    "bad data": (DataError("no"), "failed", 3),
    "Ctrl-C": (KeyboardInterrupt(), "interrupted", 130),
    "preempted": (stops.Preempted("go on"), "preempted", 75),
    "a library": (RuntimeError("boom"), "failed", 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_however_a_sweep_ends_it_is_recorded_and_shown(tmp_path, name):
    raised, status, code = ENDS[name]
    shown = []
    with pytest.raises(type(raised)), sweeps.recorded(tmp_path / "s", GRID, shown.append):
        raise raised
    record = Sweep.load(tmp_path / "s").record
    assert (record["status"], record["exit_code"]) == (status, code)
    assert record["error"]
    assert len(shown) == 1


def test_a_wrong_configuration_leaves_no_sweep(tmp_path):
    with pytest.raises(ConfigError), sweeps.recorded(tmp_path / "s", GRID, told):
        raise ConfigError("no", key="seed")
    assert not (tmp_path / "s" / "sweep.json").exists()
    runs.check_can_hold_run(tmp_path / "s")


def test_jobs_are_recorded_as_they_end(tmp_path):
    folder = tmp_path / "s"
    run = SimpleNamespace(record={"error": "the split is empty"}, metrics={"eval_wer": 0.25})
    with sweeps.recorded(folder, GRID, told):
        with sweeps.job(settings(folder, 0), folder / "0", records=True) as job:
            assert Sweep.load(folder).jobs()[0].status == "running"
            job.ended(0, run)
        with pytest.raises(JobError), sweeps.job(settings(folder, 1, overrides=["seed=2"]), folder / "1", records=True) as job:
            job.ended(3, run)
        with pytest.raises(ConfigError), sweeps.job(settings(folder, 10), folder / "10", records=True):
            raise ConfigError("no", key="seed")
        with pytest.raises(KeyboardInterrupt), sweeps.job(settings(folder, 2), folder / "2", records=True):
            raise KeyboardInterrupt
    jobs = Sweep.load(folder).jobs()
    assert [(j.number, j.status, j.exit_code, j.value) for j in jobs] == [
        (0, "finished", 0, 0.25),
        (1, "failed", 3, None),
        (2, "interrupted", 130, None),
        (10, "failed", 2, None),
    ]
    assert (jobs[1].error, jobs[1].run_dir, jobs[1].overrides) == ("the split is empty", "1", ["seed=2"])


def test_what_is_no_job_leaves_no_record(tmp_path):
    with sweeps.job(settings(tmp_path / "s", mode=RunMode.RUN), tmp_path / "r", records=True) as job:
        assert job.shared is None
        job.ended(3, None)  # launch.py ends with the code itself
    with pytest.raises(JobError), sweeps.job(settings(tmp_path / "s"), tmp_path / "s" / "0", records=False) as job:
        job.ended(3, None)
    assert not (tmp_path / "s").exists()


def test_a_job_s_record_that_is_cut_is_passed_over(tmp_path, caplog):
    folder = made(tmp_path / "s")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "0.json").write_text('{"number": 0,')
    assert Sweep.load(folder).jobs() == []
    assert "0.json is passed over" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"overrides": 3, "command": []}', '{"overrides": [1], "command": []}', "\0"])
def test_a_sweep_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=r"sweep\.json"):
        Sweep.load(tmp_path)


# --- going on ----------------------------------------------------------------------------------------------------------


def test_a_folder_holds_one_sweep(tmp_path):
    folder = made(tmp_path / "s")
    sweeps.check(folder, [*GRID, "resume=auto", f"hydra.sweep.dir={folder}", "hydra/launcher=joblib"], resume=True)
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*s already holds a sweep; choose another, or go on with it: resume=auto"):
        sweeps.check(folder, GRID, resume=False)
    with pytest.raises(ConfigError, match=r"holds a sweep of `seed=1,2 .*`, not of `seed=1,2,3`"):
        sweeps.check(folder, ["seed=1,2,3"], resume=True)


def test_the_newest_unfinished_sweep_of_the_same_kind_goes_on(tmp_path):
    made(tmp_path / "a", session_started="2026-01-01")
    made(tmp_path / "b", session_started="2026-01-03")
    made(tmp_path / "c", session_started="2026-01-04", status="finished")
    made(tmp_path / "d", ["seed=1,2,3"], session_started="2026-01-05")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "sweep.json").write_text("{")
    assert sweeps.newest_unfinished(tmp_path, [*GRID, "resume=auto"]) == tmp_path / "b"
    assert sweeps.newest_unfinished(tmp_path, ["seed=7,8"]) is None


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    """Return a function that checks a command line as launch.py does, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def check(*words: str) -> Path | None:
        monkeypatch.setattr(sys, "argv", ["launch.py", *words])
        return preflight.check(command_line.read_command_line([*words, *ENGINE]))

    return check


def test_hydra_is_told_which_sweep_goes_on(arguments, tmp_path):
    folder = made(tmp_path / "outputs" / "spoken_digits_ctc" / "it's-sweep", [*GRID, *ENGINE], session_started="1")
    assert arguments("-m", *GRID, "resume=auto") == folder
    assert sys.argv[-1] == r"hydra.sweep.dir='outputs/spoken_digits_ctc/it\'s-sweep'"
    assert composition.compose([sys.argv[-1]], with_hydra=True).hydra.sweep.dir == "outputs/spoken_digits_ctc/it's-sweep"
    fresh = arguments("-m", *GRID)
    assert fresh.parent == folder.parent
    assert fresh != folder
    assert arguments("-m", *GRID, "dry_run=true") is None
    assert arguments("seed=1") is None


def test_a_saved_sweep_is_checked_value_by_value(arguments, tmp_path):
    (tmp_path / "more" / "sweep").mkdir(parents=True)
    for name, rates in {"good": "1e-3,2e-3", "bad": "1e-3,-2e-3"}.items():
        text = f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      trainer.args.learning_rate: {rates}\n"
        (tmp_path / "more" / "sweep" / f"{name}.yaml").write_text(text)
    assert arguments("--config-dir", "more", "+sweep=good").name.endswith("-sweep")
    with pytest.raises(ConfigError, match=r"^trainer\.args\.learning_rate: -0\.002 is out of range"):
        arguments("--config-dir", "more", "+sweep=bad")
    assert arguments("--config-dir", "more", "+sweep=bad", "trainer.args.learning_rate=1e-4,1e-5")  # as Hydra takes it
    with pytest.raises(ConfigError, match=r"^sweep: there is no 'lr_batsh' in conf/sweep\. Did you mean lr_batch\?"):
        arguments("+sweep=lr_batsh")


def test_the_saved_sweep_varies_rates_and_batch_sizes():
    asked = command_line.read_command_line(["+sweep=lr_batch"])
    jobs = command_line.jobs_of_sweep(asked, composition.compose(asked.jobs[0], with_hydra=True))
    assert len(jobs) == 6
    assert {word.partition("=")[0] for word in jobs[0][:2]} == {"trainer.args.learning_rate", "trainer.args.per_device_train_batch_size"}


@pytest.mark.parametrize("word", ["hydra.launcher.setup=[rm]", "+x._target_=os.system", "--config-dir=x", "model.trust_remote_code=true"])
def test_asr_resume_starts_no_code_that_a_sweep_json_names(tmp_path, word):
    folder = made(tmp_path / "s", [*GRID, word])
    with pytest.raises(ConfigError, match=r"which may run code: start it yourself, .*resume=auto"):
        sweeps.command_to_resume(folder)


def test_asr_resume_starts_the_same_sweep(tmp_path):
    folder = made(tmp_path / "s's", [*GRID, "hydra.sweep.dir=x", "resume=never"])
    command, cwd = sweeps.command_to_resume(folder)
    assert command[1:] == [str(runs.CODE / "launch.py"), "-m", *GRID, command_line.override("hydra.sweep.dir", str(folder)), "resume=auto"]
    assert cwd == tmp_path
    asked = command_line.read_command_line(command[2:])
    assert composition.compose(asked.shared, with_hydra=True).hydra.sweep.dir == str(folder)
    made(tmp_path / "t", cwd="/nowhere/at/all")
    with pytest.raises(ConfigError, match="isn't there"):
        sweeps.command_to_resume(tmp_path / "t")


def test_a_sweep_and_its_jobs_hold_different_locks(tmp_path):
    with sweeps.recorded(tmp_path / "s", GRID, told):
        sessions.hold(tmp_path / "s" / "0")
        sessions.let_go(tmp_path / "s" / "0")
        assert (tmp_path / "s" / ".lock").exists()
