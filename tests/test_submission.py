"""asr.submission: what becomes a job of Slurm, what is refused before, and how a job's end is told."""

import os
import pickle
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import OmegaConf
from test_supervision import until

from asr import command_line, composition, nodes, submission
from asr.errors import ConfigError, JobError, LaunchError
from asr.pipeline import Pipeline
from asr.topology import Topology

FAKES = ROOT / "tests" / "fakes" / "slurm"
GAUDI_SLURM = "hydra/launcher=gaudi_slurm"


@pytest.fixture
def slurm(monkeypatch):
    """Put the fakes of Slurm's programs on PATH."""
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")


@cache
def job(*overrides: str):
    return composition.compose([GAUDI_SLURM, *overrides], with_hydra=True)


def topology(composed) -> Topology:
    return Topology(**{k: v for k, v in OmegaConf.to_container(composed.topology, resolve=True).items() if k != "_target_"})


def check(*overrides: str, shared: tuple[str, ...] | None = None, dry_run: bool = False) -> None:
    composed = job(*overrides)
    submission.check(composed, topology(composed), shared=composed if shared is None else job(*shared), dry_run=dry_run)


def sbatch_file(monkeypatch, tmp_path: Path, *overrides: str) -> list[str]:
    """Return the lines of the file that the plugin's launcher and submitit's executor hand to sbatch."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    executors = []
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda self, *_: executors.append(self) or [])
    composed = job(f"hydra.sweep.dir={tmp_path}", *overrides)
    launcher = SlurmLauncher(**{key: composed.hydra.launcher[key] for key in composed.hydra.launcher if key != "_target_"})
    launcher.setup(hydra_context=None, task_function=None, config=composed)
    launcher.launch([[]], 0)
    return executors[0]._executor._make_submission_file_text("the command", "uid").splitlines()


def test_the_sbatch_file_of_several_servers(monkeypatch, tmp_path, slurm):
    lines = sbatch_file(monkeypatch, tmp_path, "topology=hpu_nodes", "topology.num_nodes=4", "hydra.launcher.partition=gaudi")
    for (
        option
    ) in "nodes=4 ntasks-per-node=1 gres=gpu:8 exclusive time=1440 signal=USR2@120 partition=gaudi job-name=spoken_digits_ctc".split():
        assert f"#SBATCH --{option}" in lines, option
    assert f"#SBATCH --output={tmp_path}/.submitit/%j/%j_0_log.out" in lines
    assert not [line for line in lines if "cpus" in line or "--error" in line]
    assert lines.index("export SLURM_WAIT=120") < lines.index(next(line for line in lines if line.startswith("srun ")))


def test_the_sbatch_file_of_a_part_of_a_server(monkeypatch, tmp_path, slurm):
    shared = ("~hydra.launcher.additional_parameters.exclusive", "hydra.launcher.cpus_per_task=16", "hydra.launcher.gres=hpu:1")
    lines = sbatch_file(monkeypatch, tmp_path, "topology=hpu1", *shared)
    assert {"#SBATCH --nodes=1", "#SBATCH --gres=hpu:1", "#SBATCH --cpus-per-task=16"} <= set(lines)
    assert not [line for line in lines if "exclusive" in line]
    assert not [line for line in sbatch_file(monkeypatch, tmp_path, "hydra.launcher.gres=null") if "gres" in line]


def test_a_site_s_own_launcher_adds_to_it(monkeypatch, tmp_path):
    folder = tmp_path / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "ours.yaml").write_text("defaults: [gaudi_slurm, _self_]\naccount: speech\n")
    composed = composition.compose([f"hydra.searchpath=['file://{tmp_path}']", "hydra/launcher=ours"], with_hydra=True)
    assert (composed.hydra.launcher.account, composed.hydra.launcher.gres) == ("speech", "gpu:1")
    assert submission.is_submitted(composed)


def test_without_the_plugin_the_message_names_the_extra(monkeypatch):
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "submitit_slurm.yaml")
    with pytest.raises(ConfigError, match=r"^hydra.launcher: hydra-submitit-launcher is not installed: pip install -e '.\[slurm\]'.$"):
        composition.compose([GAUDI_SLURM])


# --- what is a multirun --------------------------------------------------------------------------------------------------


BASIC = OmegaConf.create({"hydra": {"mode": None, "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}}})
BASIC_SWEEPER = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}


def with_mode(composed, mode: RunMode | None):
    return OmegaConf.create({"hydra": {"mode": mode, "launcher": {"_target_": composed.hydra.launcher._target_}, "sweeper": BASIC_SWEEPER}})


@pytest.mark.parametrize(
    ("action", "launcher", "mode", "expected", "told"),
    [
        ("run", BASIC, None, False, False),
        ("multirun", BASIC, None, True, False),
        ("run", BASIC, RunMode.MULTIRUN, True, False),
        ("run", None, None, True, True),
        ("run", None, RunMode.RUN, False, False),
    ],
)
def test_a_launcher_makes_a_multirun(monkeypatch, action, launcher, mode, expected, told):
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    asked = command_line.CommandLine(action, [[]], "config")
    assert command_line.ready_multirun(asked, with_mode(launcher or job(), mode)) is expected
    assert (sys.argv[-1] == "hydra.mode=MULTIRUN") is told


def test_a_run_of_the_default_launcher_is_none():
    composed = composition.compose(with_hydra=True)
    assert composed.hydra.launcher._target_ == BASIC.hydra.launcher._target_
    assert not submission.is_submitted(composed)


def test_the_folder_of_a_single_run_is_refused_for_jobs():
    asked = command_line.read_command_line([GAUDI_SLURM, "hydra.run.dir=mine"])
    with pytest.raises(ConfigError, match=r"hydra.run.dir: .* hydra.sweep.dir"):
        command_line.ready_multirun(asked, job())


# --- what can't become jobs ----------------------------------------------------------------------------------------------


def test_jobs_that_fit_are_let_through(slurm):
    check("topology=hpu_nodes")
    named = ("hydra.launcher.gres=gpu:8",)
    check("topology=hpu8_deepspeed", *named, shared=named)


@pytest.mark.parametrize(
    ("overrides", "shared", "message"),
    [
        (("topology=hpu_nodes",), (), "hydra.launcher.nodes: a job needs 2, but all .* submitted with 1"),
        (("hydra.launcher.nodes=2",), None, r"hydra.launcher.nodes: a job has 2 x 1 tasks .* needs 1\."),
        (("topology=hpu_nodes", "topology.launcher=deepspeed", "topology.hostfile=hosts"), None, "topology.launcher=deepspeed needs 1"),
    ],
)
def test_jobs_that_do_not_fit_are_refused(slurm, overrides, shared, message):
    with pytest.raises(ConfigError, match=message):
        check(*overrides, shared=shared)


def test_a_dry_run_is_not_submitted(slurm):
    with pytest.raises(ConfigError, match="dry_run: starts nothing"):
        check(dry_run=True)


def test_a_gaudi_is_needed_where_the_job_runs():
    pipeline = Pipeline.of(composition.to_container(job("topology=hpu_nodes")))
    pipeline.check_compatible(on_this_host=False)
    pipeline.check_reachable()
    with pytest.raises(ConfigError, match="habana_frameworks is not installed here"):
        pipeline.check_compatible()


def test_a_machine_without_slurm_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch is not on PATH"):
        check()


# --- in a job ------------------------------------------------------------------------------------------------------------


def test_one_server_ignores_slurm_s_variables(monkeypatch):
    monkeypatch.setenv("SLURM_NODEID", "3")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-4]")
    where = Topology(ranks_per_node=2)
    assert (where.node, where.meeting_host()) == (0, "127.0.0.1")


def test_several_servers_take_slurm_s_word(monkeypatch, slurm):
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "127.0.0.[2-3]")
    where = Topology(num_nodes=2)
    assert (where.node, where.meeting_host()) == (1, "127.0.0.2")


def test_a_job_takes_over_hydra_s_state():
    """submitit hands it to a process that hasn't imported it yet: what is registered in ours must not be refused there."""
    kept = "import sys, cloudpickle, asr.config_files; from hydra.core.singleton import Singleton; "
    kept += "sys.stdout.buffer.write(cloudpickle.dumps(Singleton.get_state()))"
    state = subprocess.run([sys.executable, "-c", kept], cwd=ROOT, capture_output=True, check=True).stdout
    taken = "import sys, cloudpickle; from hydra.core.singleton import Singleton; Singleton.set_state(cloudpickle.load(sys.stdin.buffer)); "
    taken += "from hydra._internal.sources_registry import SourcesRegistry; print(SourcesRegistry.instance().resolve('file').__module__)"
    done = subprocess.run([sys.executable, "-c", taken], cwd=ROOT, input=state, capture_output=True)
    assert done.stdout.decode().strip() == "asr.config_files", done.stderr.decode()[-500:]


def test_a_job_s_error_survives_pickling():
    error = pickle.loads(pickle.dumps(JobError("s/0", 3, "a.log")))
    assert (error.exit_code, str(error)) == (3, "the job in s/0 ended with exit code 3; its log is a.log")
    error = pickle.loads(pickle.dumps(ConfigError("is wrong", key="a.b")))
    assert (error.exit_code, str(error)) == (2, "a.b: is wrong")


TASK = """
import os, signal, sys, time
from asr import submission
from asr.errors import ConfigError, JobError
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as submitit leaves it
try:
    with submission.job("s/0"):
        {0}
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise JobError('s/0', 3)", 3, "JobError the job in s/0 ended with exit code 3; its log is /f/12/12_0_log.out"),
        ("os.kill(os.getpid(), signal.SIGUSR2); time.sleep(9)", 75, "JobError the job in s/0 ended with exit code 75"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 75, "JobError the job in s/0 ended with exit code 75"),
        ("raise ConfigError('is wrong', key='a.b')", 2, "ConfigError a.b: is wrong"),
    ],
)
def test_a_task_ends_with_its_run_s_exit_code(body, code, said):
    job = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "12", "SUBMITIT_FOLDER": "/f/%j"}
    environment = {**os.environ, **job, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TASK.format(body)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(said)
    not_requeued = "the job is not requeued (it was told to end, and not warned of its time limit): `asr resume s/0` goes on with its run"
    assert (not_requeued in done.stderr) is ("SIGTERM" in body)


@pytest.mark.parametrize("cluster", ["slurm", pytest.param("local", marks=pytest.mark.slow)])
def test_a_job_that_was_warned_starts_again_once_it_has_saved(monkeypatch, tmp_path, slurm, cluster):
    """By submitit's own means, with its own count of how often; real processes, Slurm's programs as fakes."""
    import submitit

    monkeypatch.setenv("PYTHONPATH", f"{FAKES.parent}:{ROOT}")
    monkeypatch.syspath_prepend(FAKES.parent)
    from requeued_job import Job

    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    executor = submitit.AutoExecutor(tmp_path / "jobs" / "%j", cluster=cluster, **{f"{cluster}_max_num_timeout": 1})
    executor.update_parameters(timeout_min=5)  # so short that every warning counts as the end of its time
    job = executor.submit(Job(), tmp_path)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)
    assert job.result() == "saved", job.stdout()
    assert "(0 remaining timeouts)" in job.stdout()


def test_what_a_scheduler_starts_again_is_known_by_its_count(monkeypatch, tmp_path):
    (tmp_path / "run.json").touch()
    assert not submission.is_requeued(str(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert not submission.is_requeued(str(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert submission.is_requeued()


def test_a_server_that_takes_no_part_tells_the_others(tmp_path):
    where = Topology(num_nodes=2)
    (tmp_path / "run.json").write_text('{"status": "running"}')
    nodes.say_failed(tmp_path, where, 1, 2)
    assert "server 1" in (nodes.Nodes(tmp_path, where, 0).lost() or "")


def test_a_late_server_hears_why_the_run_is_over(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "failed", "error": "this host has 2 hpus"}')
    with pytest.raises(ConfigError, match=r"which has failed \(this host has 2 hpus\)"):
        nodes.wait_for_run(tmp_path, Topology(num_nodes=2))


def test_what_submitit_raises_becomes_a_message():
    from submitit.core.utils import FailedJobError, UncompletedJobError

    with (
        pytest.raises(LaunchError, match=r"^submitit: Job 7 \(task: 0\) has not produced any output \(state: NODE_FAIL\)$"),
        submission.reported(),
    ):
        raise UncompletedJobError(
            "Job 7 (task: 0)\nhas not produced any output (state: NODE_FAIL)\nError stream produced:\n---\na thousand lines"
        )
    with pytest.raises(LaunchError, match="invalid partition"), submission.reported():
        raise FailedJobError("sbatch: error: invalid partition specified: gaudi")
    with pytest.raises(RuntimeError, match=r"^other$"), submission.reported():
        raise RuntimeError("other")
