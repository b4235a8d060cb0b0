"""asr.parallel: what may run at the same time, and how a job tells a stop; tests/e2e/test_parallel_jobs.py runs real ones."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import ENGINE, ROOT, composed
from test_leases import HOLDS

from asr import command_line, experiment, leases, parallel, preflight, stops
from asr.errors import ConfigError, JobError, LaunchError
from asr.pipeline import Pipeline
from asr.stops import End

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *ENGINE]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(parallel.PARENT, raising=False)
    monkeypatch.setattr("sys.argv", ["launch.py"])
    return tmp_path


def test_the_launcher_is_known_and_made_ready(here, monkeypatch):
    monkeypatch.setenv(parallel.PARENT, "")  # put back afterwards
    preflight.check(command_line.read_command_line(["-m", "seed=1,2", *JOBLIB]))
    assert os.environ[parallel.PARENT] == str(os.getpid())
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.launcher.n_jobs=0"], r"^hydra\.launcher\.n_jobs: 0 is no number of jobs at a time"),
        (["topology=cpu2", "topology.num_nodes=2", "topology.node_rank=0", "topology.master_addr=x"], "parallel jobs share one server"),
        (["topology.device=hpu", "topology.world_size=1,4"], "4 processes, but this host has 3 hpus"),
    ],
)
def test_jobs_that_can_t_be_are_refused_before_any_starts(here, monkeypatch, overrides, said):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1,2")
    monkeypatch.setattr(Pipeline, "check_compatible", lambda *_, **__: None)  # there is no Gaudi here
    with pytest.raises(ConfigError, match=said):
        preflight.check(command_line.read_command_line(["-m", *JOBLIB, *overrides]))
    assert list(here.iterdir()) == []
    assert parallel.PARENT not in os.environ


def test_without_the_plugin_the_extra_is_named():
    code = f"""
import importlib.util, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["hydra_plugins.hydra_joblib_launcher"] = None
from hydra.core.config_store import ConfigStore
from asr import command_line, composition
ConfigStore.instance().repo.get("hydra", {{}}).get("launcher", {{}}).pop("joblib.yaml", None)
try:
    composition.compose({JOBLIB!r}, with_hydra=True)
except composition.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "hydra.launcher: hydra-joblib-launcher is not installed: pip install -e '.[parallel]'.\n", done.stderr


# --- jobs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_worker(monkeypatch, tmp_path):
    """This process as one of joblib's, whose parent is its own."""
    monkeypatch.setenv(parallel.PARENT, str(os.getppid()))
    monkeypatch.setattr(parallel, "_get_ready", lambda _: None)
    monkeypatch.setattr(parallel, "_stopped", [])
    return tmp_path / "s" / "0"


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (stops.Terminated(signal.SIGTERM), 75), (stops.Preempted("saved"), 75), (stops.Terminated(1), 129)],
)
def test_a_stop_is_the_job_s_end_and_no_other_begins(in_worker, stop, code):
    in_worker.mkdir(parents=True)
    (in_worker / "run.json").touch()
    with pytest.raises(JobError) as ended, parallel.job(str(in_worker)):
        assert parallel._at_work.is_set()
        raise stop
    assert ended.value.exit_code == code
    assert not parallel._at_work.is_set()
    later = in_worker.with_name("1")
    later.mkdir()  # as Hydra makes it
    with pytest.raises(JobError) as ended, parallel.job(str(later)):
        pytest.fail("it begins")
    assert ended.value.exit_code == code
    assert (in_worker.exists(), later.exists()) == (True, False)


def test_a_failure_is_the_job_s_own_matter(in_worker):
    with pytest.raises(JobError, match="exit code 3"), parallel.job(str(in_worker)):
        raise JobError(in_worker, 3)
    with parallel.job(str(in_worker)):
        pass


@pytest.mark.parametrize("parent", [None, "this process"])
def test_elsewhere_a_stop_is_a_stop(monkeypatch, parent):
    monkeypatch.delenv(parallel.PARENT, raising=False)
    if parent:
        monkeypatch.setenv(parallel.PARENT, str(os.getpid()))
    with pytest.raises(KeyboardInterrupt), parallel.job("x"):
        raise KeyboardInterrupt


# --- the parent ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def core(monkeypatch):
    from hydra_plugins.hydra_joblib_launcher import _core

    monkeypatch.setenv(parallel.PARENT, str(os.getpid()))
    return _core


def test_without_workers_a_stop_is_raised_at_once(core, monkeypatch):
    monkeypatch.setattr(core, "launch", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stops.Terminated), parallel.listening():
        core.launch(None, [], 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_hear_the_first_stop_once_they_are_ready_and_the_sweep_ends_by_it(core, monkeypatch):
    ready = subprocess.Popen(["sleep", "60"], start_new_session=True)
    early = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(parallel, "_workers", lambda: {ready.pid, early.pid})
    ended = threading.Event()

    def launch(*_):
        signal.raise_signal(signal.SIGTERM)
        assert ready.wait(timeout=10) == -signal.SIGTERM
        assert early.poll() is None
        ended.set()
        return ["returned"]

    monkeypatch.setattr(core, "launch", launch)
    with pytest.raises(stops.Terminated) as stop, parallel.listening():
        core.launch(None, [], 0)
    assert (stop.value.signal, ended.is_set()) == (signal.SIGTERM, True)
    assert core.launch is launch
    early.kill()
    early.wait()


def test_a_second_stop_ends_it_at_once(core, monkeypatch):
    monkeypatch.setattr(parallel, "_workers", lambda: {os.getpid()})  # which is no leader of its group, or is
    monkeypatch.setattr(parallel.os, "getpgid", lambda _: 0)

    def launch(*_):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)  # Slurm may say it twice
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")

    monkeypatch.setattr(core, "launch", launch)
    with pytest.raises(KeyboardInterrupt), parallel.listening():
        core.launch(None, [], 0)


def test_a_worker_that_died_is_told(core, monkeypatch):
    died = type("TerminatedWorkerError", (RuntimeError,), {"__module__": "joblib.externals.loky.process_executor"})

    def launch(*_):
        raise died("...")

    monkeypatch.setattr(core, "launch", launch)
    with pytest.raises(LaunchError, match="one of joblib's processes has died"), parallel.listening():
        core.launch(None, [], 0)


# --- a job's devices -------------------------------------------------------------------------------------------------------


def test_a_job_s_processes_get_the_leased_device_and_its_parent_keeps_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "3,5")
    monkeypatch.setenv(leases.FOLDER, str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(Pipeline, "check_host", lambda self: self.topology.check_host())
    monkeypatch.setattr("asr.preparing.prepare", lambda *_: None)
    seen = []

    def supervise(launch, run_dir, topology, *, node):
        topology.check_host()  # counts them all
        seen.append((launch.environment["HABANA_VISIBLE_MODULES"], os.environ["HABANA_VISIBLE_MODULES"]))
        return End()

    monkeypatch.setattr("asr.supervision.supervise", supervise)
    other = subprocess.Popen([sys.executable, "-c", HOLDS, "1", "-1", "x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "has 3\n"
    code, run = experiment.start(composed("topology.device=hpu"), tmp_path / "run", overrides=[], in_child=True)
    other.communicate()
    assert (code, seen) == (0, [("5", "3,5")])
    assert run.record["devices"] == {"device": "hpu", "ids": ["5"], "waited_seconds": run.record["devices"]["waited_seconds"]}
    assert run.record["devices"]["waited_seconds"] < 1
    assert " HABANA_VISIBLE_MODULES=5 " in (tmp_path / "run" / "run.log").read_text()
