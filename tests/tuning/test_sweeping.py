"""Sweeps by Optuna with a launcher that only computes: what is asked, told, kept, and gone on with after whatever ended it."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import open_dict

from asr import composition, sessions
from asr.errors import ConfigError, JobError, LaunchError, TrainingError
from asr.tuning import studies, sweeping

pytest.importorskip("optuna")

RATE = "trainer.args.learning_rate=tag(log, interval(1e-4, 1e-1))"
SIZE = "trainer.args.per_device_train_batch_size=choice(4, 8, 16)"
GRID = [RATE, SIZE]

RECORD = {"experiment": "e", "status": "finished", "started": "2026-01-01"}
"""What every run.json has."""


def value_of(overrides) -> float:
    """A WER that is least at a rate of 0.01 and a batch of 8."""
    given = dict(word.partition("=")[::2] for word in overrides)
    rate, size = float(given["trainer.args.learning_rate"]), int(given["trainer.args.per_device_train_batch_size"])
    return abs(math.log10(rate) + 2) + abs(size - 8) / 8


class Launcher:
    """Runs jobs as a launcher does: a job whose `ends` has an exception fails with it, or stops the sweep with a BaseException."""

    def __init__(self, folder: Path, **ends) -> None:
        self.folder, self.ends = folder, {int(number.removeprefix("job")): end for number, end in ends.items()}
        self.jobs: dict[int, list[str]] = {}
        self.batches: list[list[int]] = []

    def launch(self, job_overrides, initial_job_idx):
        self.batches.append(list(range(initial_job_idx, initial_job_idx + len(job_overrides))))
        return [self.job(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]

    def job(self, number, overrides):
        self.jobs[number] = overrides
        end = self.ends.get(number, value_of(overrides))
        if isinstance(end, BaseException) and not isinstance(end, Exception):
            raise end
        run = self.folder / str(number)
        if not isinstance(end, ConfigError):  # which leaves no run
            run.mkdir(parents=True, exist_ok=True)
            record = {**RECORD, "overrides": overrides, "exit_code": getattr(end, "exit_code", 0)}
            (run / "run.json").write_text(json.dumps(record))
        done = JobReturn(overrides=overrides, status=JobStatus.FAILED if isinstance(end, Exception) else JobStatus.COMPLETED)
        done.return_value = end
        return done


@lru_cache(maxsize=1)
def composed():
    return composition.compose(["hydra/sweeper=asr_optuna"], with_hydra=True)


def sweep(launcher: Launcher, *overrides: str, params=GRID, resume=False, trials=6, **settings):
    """Sweep as launch.py would; `settings` are keys of hydra.sweeper."""
    config = copy.deepcopy(composed())
    with open_dict(config):
        config.hydra.sweep.dir = str(launcher.folder)
        config.hydra.sweeper.n_trials = trials
        config.resume = "auto" if resume else "never"
        for key, value in settings.items():
            config.hydra.sweeper[key.rstrip("_")] = value
    return sweeping.sweep(config, launcher, None, [*params, *overrides, *(["resume=auto"] if resume else [])])


def results(folder: Path):
    return yaml.safe_load((folder / "optimization_results.yaml").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Launcher:
    """A sweep of 8 trials that nothing stopped: what one that was stopped has to come to as well."""
    launcher = Launcher(tmp_path_factory.mktemp("whole"))
    sweep(launcher, trials=8)
    return launcher


def test_trials_are_jobs_in_order_and_the_best_is_written(whole):
    assert list(whole.jobs) == list(range(8))
    values = {number: value_of(overrides) for number, overrides in whole.jobs.items()}
    best = min(values, key=values.get)
    found = results(whole.folder)
    assert list(found)[:3] == ["name", "best_params", "best_value"]
    assert (found["name"], found["best_value"], found["best_trial"]) == ("optuna", values[best], best)
    assert found["best_overrides"] == whole.jobs[best]
    assert isinstance(found["best_params"]["trainer.args.per_device_train_batch_size"], int)
    assert found["trials"] == {"complete": 8, "fail": 0, "running": 0}


def test_the_same_sweep_has_the_same_values_and_another_seed_others(whole, tmp_path):
    for seed, same in ((0, True), (1, False)):
        again = Launcher(tmp_path / str(seed))
        sweep(again, trials=8, sampler={**composed().hydra.sweeper.sampler, "seed": seed})
        assert (again.jobs == whole.jobs) is same


def test_optuna_finds_better_values_than_it_began_with(tmp_path):
    launcher = Launcher(tmp_path / "s")
    sweep(launcher, trials=20)
    values = [value_of(overrides) for overrides in launcher.jobs.values()]
    assert min(values[5:]) < 0.3 * min(values[:5])


def test_maximize(tmp_path):
    launcher = Launcher(tmp_path / "s")
    sweep(launcher, direction="maximize")
    assert results(tmp_path / "s")["best_value"] == max(map(value_of, launcher.jobs.values()))


@pytest.mark.parametrize("sampler", ["random", pytest.param("gp", marks=pytest.mark.slow)])
def test_other_samplers(tmp_path, sampler):
    if sampler == "gp":
        pytest.importorskip("scipy")
    launcher = Launcher(tmp_path / "s")
    arguments = {"n_startup_trials": 2} if sampler == "gp" else {}
    sweep(launcher, trials=4, sampler={"name": sampler, "seed": 0, **arguments})
    assert len({tuple(job) for job in launcher.jobs.values()}) == 4


def test_jobs_are_chosen_together_where_a_launcher_runs_several(tmp_path):
    launcher = Launcher(tmp_path / "s")
    sweep(launcher, n_jobs=4, trials=10)
    assert launcher.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len({tuple(job) for job in launcher.jobs.values()}) == 10


def test_the_command_line_goes_before_what_is_saved(tmp_path):
    launcher = Launcher(tmp_path / "s")
    saved = {
        "trainer.args.learning_rate": "interval(0.5,0.6)",
        "trainer.args": {"per_device_train_batch_size": "choice(2,32)"},
        "seed": None,
    }
    sweep(launcher, params=[RATE, "trainer.args.per_device_train_batch_size=16"], trials=3, params_=saved)
    for job in launcher.jobs.values():
        assert job[0] == "trainer.args.per_device_train_batch_size=16"
        assert float(job[1].partition("=")[2]) <= 0.1
    assert list(results(tmp_path / "s")["best_params"]) == ["trainer.args.learning_rate"]


# --- jobs that fail --------------------------------------------------------------------------------------------------


def test_one_bad_job_is_reported_at_the_end_and_the_others_go_on(tmp_path):
    launcher = Launcher(tmp_path / "s", job0=JobError("s/0", 3))
    with pytest.raises(JobError, match=r"s/0 ended with exit code 3"):
        sweep(launcher)
    assert list(launcher.jobs) == list(range(6))
    assert results(tmp_path / "s")["trials"] == {"complete": 5, "fail": 1, "running": 0}
    with pytest.raises(JobError) as again:  # it is still there, and isn't run again
        sweep(Launcher(tmp_path / "s"), resume=True)
    assert again.value.exit_code == 3


def test_the_first_failure_of_several_is_raised(tmp_path):
    launcher = Launcher(tmp_path / "s", job1=JobError("s/1", 1), job2=ConfigError("no", key="x"))
    with pytest.raises(JobError, match="s/1"):
        sweep(launcher)
    with pytest.raises(JobError, match="s/1"):
        sweep(Launcher(tmp_path / "s"), resume=True)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5"])
def test_a_job_without_a_finite_wer_has_failed(tmp_path, value):
    launcher = Launcher(tmp_path / "s", job1=value)
    sweep(launcher)
    assert results(tmp_path / "s")["trials"] == {"complete": 5, "fail": 1, "running": 0}
    assert results(tmp_path / "s")["best_trial"] != 1


def test_a_sweep_whose_jobs_all_fail_stops_early(tmp_path):
    launcher = Launcher(tmp_path / "s", **{f"job{i}": JobError(f"s/{i}", 1) for i in range(6)})
    with pytest.raises(JobError, match="s/0"):
        sweep(launcher)
    assert list(launcher.jobs) == [0, 1, 2]
    assert not (tmp_path / "s" / "optimization_results.yaml").exists()


@pytest.mark.parametrize(("rate", "jobs"), [(0, 1), (0.25, 2), (1, 6)])
def test_max_failure_rate(tmp_path, rate, jobs):
    launcher = Launcher(tmp_path / "s", **{f"job{i}": JobError(f"s/{i}", 1) for i in range(6)})
    with pytest.raises(JobError):
        sweep(launcher, max_failure_rate=rate)
    assert len(launcher.jobs) == jobs


def test_no_value_at_all_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match=r"no trial in .* has a WER"):
        sweep(Launcher(tmp_path / "s", job0=None, job1=None), trials=2)


# --- sweeps that are stopped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_sweep_stopped_by_ctrl_c_goes_on_with_the_same_trial_and_comes_to_the_same(whole, tmp_path, at):
    stopped = Launcher(tmp_path / "s", **{f"job{at}": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        sweep(stopped, trials=8)
    again = Launcher(tmp_path / "s")
    sweep(again, trials=8, resume=True)
    assert list(again.jobs) == list(range(at, 8))
    assert again.jobs[at] == [*stopped.jobs[at][:-2], "resume=auto", *stopped.jobs[at][-2:]]
    assert results(tmp_path / "s") == results(whole.folder)


def test_a_batch_that_was_stopped_goes_on_whole(tmp_path):
    stopped = Launcher(tmp_path / "s", job5=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep(stopped, n_jobs=4, trials=8)
    again = Launcher(tmp_path / "s")
    sweep(again, n_jobs=4, trials=8, resume=True)
    assert again.batches == [[4, 5, 6, 7]]  # 4 has its run, which gives its value at once


def test_trials_that_don_t_follow_each_other_are_launched_by_their_numbers(tmp_path):
    stopped = Launcher(tmp_path / "s", job1=JobError("s/1", 75), job3=JobError("s/3", 143))
    with pytest.raises(JobError) as first:
        sweep(stopped, n_jobs=4, trials=4)
    assert first.value.exit_code == 75
    again = Launcher(tmp_path / "s")
    sweep(again, n_jobs=4, trials=6, resume=True)
    assert again.batches == [[1], [3, 4, 5]]
    assert again.jobs[1][-2:] == stopped.jobs[1][-2:]


def test_a_preempted_job_is_unfinished_and_has_not_failed(tmp_path):
    with pytest.raises(JobError) as preempted:
        sweep(Launcher(tmp_path / "s", job2=JobError("s/2", 75)))
    assert preempted.value.exit_code == 75
    assert results(tmp_path / "s")["trials"] == {"complete": 5, "fail": 0, "running": 1}
    again = Launcher(tmp_path / "s")
    sweep(again, resume=True)
    assert list(again.jobs) == [2]


def test_a_trial_that_can_t_be_taken_up_stays_unfinished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(Launcher(tmp_path / "s", job1=KeyboardInterrupt()), trials=3)
    with pytest.raises(ConfigError, match="in use"):
        sweep(Launcher(tmp_path / "s", job1=ConfigError("s/1 is in use")), trials=3, resume=True)
    again = Launcher(tmp_path / "s")
    sweep(again, trials=3, resume=True)
    assert list(again.jobs) == [1]


def test_more_trials_may_follow(whole, tmp_path):
    sweep(Launcher(tmp_path / "s"), trials=5)
    more = Launcher(tmp_path / "s")
    sweep(more, trials=8, resume=True)
    assert list(more.jobs) == [5, 6, 7]
    assert results(tmp_path / "s") == results(whole.folder)


def test_a_folder_with_a_study_is_not_overwritten(tmp_path):
    sweep(Launcher(tmp_path / "s"), trials=2)
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .* holds a study already: resume=auto goes on with it"):
        sweep(Launcher(tmp_path / "s"), trials=2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"params": [RATE.replace("1e-1", "1e-2"), SIZE]}, r"^hydra\.sweeper\.params: is .*, and was .* when this sweep began"),
        ({"params": [RATE]}, r"^hydra\.sweeper\.params: "),
        ({"direction": "maximize"}, r"^hydra\.sweeper\.direction: is maximize, and was minimize"),
        ({"params": [*GRID, "trainer.args.max_steps=7"]}, r"^command line: is trainer\.args\.max_steps=7, and was without overrides"),
    ],
)
def test_another_sweep_does_not_go_on_in_this_one_s_folder(tmp_path, other, message):
    sweep(Launcher(tmp_path / "s"), trials=2)
    with pytest.raises(ConfigError, match=message):
        sweep(Launcher(tmp_path / "s"), **other, trials=3, resume=True)


def test_what_changes_no_result_may_be_another_when_a_sweep_goes_on(tmp_path):
    sweep(Launcher(tmp_path / "s"), trials=2)
    more = Launcher(tmp_path / "s")
    sweep(more, "topology.threads_per_rank=1", sampler={"name": "tpe", "n_startup_trials": 1}, trials=3, resume=True)
    assert list(more.jobs) == [2]


# --- storage ---------------------------------------------------------------------------------------------------------


def journal(folder: Path) -> Path:
    return folder / "study" / "journal.jsonl"


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from asr import sessions;"
        f"sessions.hold(Path({str(tmp_path / 's' / 'study')!r})); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*study is in use: another launch works there"):
            sweep(Launcher(tmp_path / "s"), resume=True)
        other.kill()
    sweep(Launcher(tmp_path / "s"), trials=2, resume=True)  # it goes with the process


def test_the_folder_is_let_go_at_the_end(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(Launcher(tmp_path / "s", job0=KeyboardInterrupt()))
    assert (tmp_path / "s" / "study" / ".lock").resolve() not in sessions._HELD
    assert [path.name for path in (tmp_path / "s" / "study").iterdir()] == ["journal.jsonl"]


def test_a_lock_that_a_killed_sweep_left_costs_no_time(tmp_path):
    sweep(Launcher(tmp_path / "s"), trials=2)
    os.symlink(journal(tmp_path / "s"), f"{journal(tmp_path / 's')}.lock")
    began = time.monotonic()
    sweep(Launcher(tmp_path / "s"), trials=3, resume=True)
    assert time.monotonic() - began < 10


def test_a_journal_cut_short_anywhere_heals_from_the_runs(whole, tmp_path):
    content = journal(whole.folder).read_bytes()
    lines = content.splitlines(keepends=True)
    middle = len(b"".join(lines[: len(lines) // 2]))
    cuts = {0, len(lines[0]) - 1, len(lines[0]), middle, middle + 40}
    for cut in sorted(cuts):
        folder = tmp_path / str(cut)
        shutil.copytree(whole.folder, folder)
        journal(folder).write_bytes(content[:cut])
        again = Launcher(folder)
        sweep(again, trials=8, resume=True)
        assert [job[-2:] for job in again.jobs.values()] == [whole.jobs[number] for number in again.jobs], cut
        assert results(folder) == results(whole.folder), cut


def test_a_journal_cut_short_is_said(whole, tmp_path, capsys):
    shutil.copytree(whole.folder, tmp_path / "s")
    with journal(tmp_path / "s").open("rb+") as file:
        file.truncate(journal(whole.folder).stat().st_size - 5)
    sweep(Launcher(tmp_path / "s"), trials=8, resume=True)
    assert "journal.jsonl was cut short: its last line is left out" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"not JSON\n", b"\xff\xfe\n"])
def test_a_journal_damaged_in_the_middle_is_refused_with_the_mend(whole, tmp_path, damage):
    shutil.copytree(whole.folder, tmp_path / "s")
    lines = journal(whole.folder).read_bytes().splitlines(keepends=True)
    journal(tmp_path / "s").write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
    with pytest.raises(ConfigError, match=r"journal\.jsonl:4 is damaged, and lines follow it\. Move the file away"):
        sweep(Launcher(tmp_path / "s"), trials=8, resume=True)
    journal(tmp_path / "s").unlink()
    again = Launcher(tmp_path / "s")
    sweep(again, trials=8, resume=True)
    assert results(tmp_path / "s") == results(whole.folder)


@pytest.mark.parametrize("content", [b"{}\n", b'{"op_code": 99}\n', b'{"op_code": 4}\n', b'{"op_code": 0, "worker_id": 1}\n'])
def test_a_journal_of_something_else_is_refused(tmp_path, content):
    sweep(Launcher(tmp_path / "s"), trials=2)
    journal(tmp_path / "s").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^hydra\.sweeper\.storage: .*journal\.jsonl can't be used \(.*\): move it away"):
        sweep(Launcher(tmp_path / "s"), trials=3, resume=True)


def test_a_run_of_something_else_in_a_job_s_folder_is_refused(tmp_path):
    (tmp_path / "s" / "0").mkdir(parents=True)
    (tmp_path / "s" / "0" / "run.json").write_text(json.dumps({**RECORD, "overrides": ["trainer.args.learning_rate=5"]}))
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*s/0 holds a run that isn't one of this sweep's trials"):
        sweep(Launcher(tmp_path / "s"), resume=True)


def test_a_full_disk_in_the_middle_is_an_error_and_the_sweep_goes_on_later(tmp_path, monkeypatch):
    from optuna.storages.journal import JournalFileBackend

    real, written = JournalFileBackend.append_logs, []

    def full(self, logs):
        written.append(logs)
        if len(written) > 6:
            raise OSError(28, "No space left on device")
        real(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(LaunchError, match=r"can't be used \(.*No space left on device\): see to it, and go on with resume=auto"):
        sweep(Launcher(tmp_path / "s"))
    monkeypatch.setattr(JournalFileBackend, "append_logs", real)
    sweep(Launcher(tmp_path / "s"), resume=True)
    assert results(tmp_path / "s")["trials"] == {"complete": 6, "fail": 0, "running": 0}


@pytest.mark.slow
def test_a_database_elsewhere(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    monkeypatch.setenv("ASR_OPTUNA_STORAGE", address)
    with pytest.raises(KeyboardInterrupt):
        sweep(Launcher(tmp_path / "s", job1=KeyboardInterrupt()), trials=3)
    again = Launcher(tmp_path / "s")
    sweep(again, trials=3, resume=True)
    assert list(again.jobs) == [1, 2]
    assert not journal(tmp_path / "s").exists()
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*, and was .*/s when this sweep began"):
        sweep(Launcher(tmp_path / "t"), study_name=str(tmp_path / "s"), trials=4, resume=True)
    content = (tmp_path / "studies.db").read_bytes()
    (tmp_path / "studies.db").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"the storage that \$ASR_OPTUNA_STORAGE names can't be used \(.*\): see whether"):
        sweep(Launcher(tmp_path / "s"), trials=4, resume=True)


@pytest.mark.slow
def test_a_database_that_another_program_has_locked(tmp_path):
    import sqlite3

    address = f"sqlite:///{tmp_path / 'studies.db'}?timeout=0.1"
    sweep(Launcher(tmp_path / "s"), trials=1, storage=address)
    with sqlite3.connect(tmp_path / "studies.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage names can't be used \(.*database is locked.*\): see whether"):
            sweep(Launcher(tmp_path / "s"), trials=2, resume=True, storage=address)


def test_a_password_is_said_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ASR_OPTUNA_STORAGE", "nosuch://me:sesame-opens@host/db")
    with pytest.raises(ConfigError) as refused:
        sweep(Launcher(tmp_path / "s"))
    assert "sesame" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []  # a sweep that is refused leaves nothing


def test_one_line_of_the_journal_is_a_whole_trial(whole):
    created = [entry for entry in map(json.loads, journal(whole.folder).read_text().splitlines()) if "distributions" in entry]
    assert len(created) == 8
    assert all(len(entry["params"]) == 2 for entry in created)
    assert journal(whole.folder).name == studies.JOURNAL
