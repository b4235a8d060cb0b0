"""Jobs that hydra-submitit-launcher submits, to Slurm or to processes of this machine: their two ends.

In, where they are submitted: the composed jobs of a command line. Out: a ConfigError for what can't become jobs, and
what the jobs need of their environment. In a job: signals and failures, so that Slurm, submitit and run.json tell the same.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from asr import launchers, stops
from asr.errors import AsrError, ConfigError, JobError, LaunchError
from asr.explanations import explained
from asr.topology import Topology

PLUGIN = "hydra_plugins.hydra_submitit_launcher."
NAMES = ("submitit_folder", "name", "comment")
"""Keys of hydra.launcher that say how jobs are called, not what they get."""


def is_submitted(composed: DictConfig) -> bool:
    """Whether the jobs of this configuration run elsewhere: another machine has the devices and the ports."""
    return str(composed.hydra.launcher._target_).startswith(PLUGIN)


def check(composed: DictConfig, topology: Topology, *, shared: DictConfig, dry_run: bool) -> None:
    """Raise ConfigError for a job that can't be submitted as it is; `shared` is composed without what a sweep varies.

    Hydra resolves its launcher once, before the sweep: every job is submitted with those resources.
    """
    launcher = composed.hydra.launcher
    if dry_run:
        raise ConfigError("starts nothing, so it can't be submitted; leave hydra/launcher out, or the dry run.", key="dry_run")
    if launcher._target_.endswith(".SlurmLauncher"):
        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise ConfigError(f"{program} is not on PATH: submit from a machine of the Slurm cluster.", key="hydra.launcher")
    for key in launcher:
        with explained(()):
            needed, given = launcher[key], shared.hydra.launcher[key]
        if key not in NAMES and needed != given:
            raise ConfigError(
                f"a job needs {needed}, but all jobs of a sweep are submitted with {given}, which is composed without what "
                "the sweep varies. Name the value, or start a sweep for each.",
                key=f"hydra.launcher.{key}",
            )
    tasks, servers = launcher.nodes * launcher.tasks_per_node, len(topology.started_nodes())
    if tasks != servers:
        raise ConfigError(
            f"a job has {launcher.nodes} x {launcher.tasks_per_node} tasks (nodes, tasks_per_node), each of which runs launch.py, but "
            f"topology.num_nodes={topology.num_nodes} with topology.launcher={topology.launcher} needs {servers}.",
            key="hydra.launcher.nodes",
        )


def prepare_environment() -> None:
    """Let the jobs, which get our environment, import this code: they aren't started as launch.py is."""
    os.environ["PYTHONPATH"] = launchers.python_path()


@contextmanager
def reported() -> Iterator[None]:
    """Turn what submitit raises, where jobs were submitted, into a message."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit."):
            raise
        said = str(error).partition("Error stream produced:")[0]  # the whole log, which lies beside the result
        raise LaunchError(f"submitit: {' '.join(said.split()) if type(error).__name__ == 'UncompletedJobError' else said}") from error


def is_requeued(run_dir: str | None = None) -> bool:
    """Whether a scheduler starts this process, of a job whose run directory is `run_dir`, again after it was preempted.

    Slurm counts (SLURM_RESTART_COUNT in sbatch's manual), also for a batch script of one's own. submitit's local executor starts a
    task again with the same environment (local.py:369 of 1.5.4); it has one server, so what lies in the job's folder is from before.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
        return True
    return run_dir is not None and os.environ.get("SUBMITIT_EXECUTOR") == "local" and (Path(run_dir) / "run.json").exists()


def in_job() -> bool:
    """Whether this process is a task of a submitted job."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def job(run_dir: str) -> Iterator[None]:
    """Run a task of a job, so that its end is told well; nothing outside of one.

    A stop becomes an error that submitit hands to whoever submitted the job, unless the job is requeued: then the submitter waits
    on. The process ends with the contract's exit code: Hydra keeps an exception for the submitter and submitit exits with 0, which
    Slurm would show as COMPLETED.
    """
    if not in_job():
        yield
        return
    import submitit

    logging.getLogger("submitit").propagate = False  # it has a handler of its own, and "Job completed" whatever the run's end
    here = submitit.JobEnvironment()
    log = str(here.paths.stdout)
    answer = signal.getsignal(here._usr_sig())  # submitit's, which we have only from there
    stops.listen_in_job()
    try:
        yield
    except (KeyboardInterrupt, stops.Terminated) as stop:
        code = stops.ended_by(stop).exit_code
        if code == stops.PREEMPTED:
            _requeue(answer, run_dir, keeps_exit_code=here.cluster == "local")
        atexit.register(_exit, code)
        raise JobError(run_dir, code, log) from None
    except Exception as error:
        atexit.register(_exit, error.exit_code if isinstance(error, AsrError) else 1)
        if isinstance(error, JobError):
            raise JobError(run_dir, error.exit_code, log) from None
        print(f"error: {error}", file=sys.stderr)  # Hydra keeps it for the submitter, who may have gone
        raise


def _requeue(answer: Any, run_dir: str, *, keeps_exit_code: bool) -> None:
    """Let submitit answer the scheduler's warning now that our run has saved and recorded itself; return where the job isn't requeued.

    It requeues a job that is preempted, and one whose time is over hydra.launcher.max_num_timeout times (0), then exits
    (job_environment.py:200 of submitit 1.5.4). SIGTERM alone may come from scancel: that job is to stay away.
    """
    warning = stops.warned_by()
    why = "it was told to end, and not warned of its time limit" if warning is None else "submitit doesn't answer the warning"
    if warning is not None and callable(answer):
        stops.ignore()  # a job that is requeued is ended
        try:
            answer(warning, None)
            return  # in tasks other than the first, which answers for all
        except SystemExit:
            if not keeps_exit_code:  # by which the local executor knows that it has to start the task again
                atexit.register(_exit, stops.PREEMPTED)
            raise
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            why = str(error)
    print(f"the job is not requeued ({why}): `asr resume {run_dir}` goes on with its run", file=sys.stderr)


def _exit(code: int) -> None:
    """End this process with an exit code once all else, the job's result included, is written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
