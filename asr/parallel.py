"""Jobs of a sweep at the same time on this server, through hydra-joblib-launcher: their signals, and the end of all.

In, in the process that the user started: a sweep's jobs as joblib runs them. Out: a stop that every job has heard, and that no new one
begins after. In a job: a stop told as the job's end, so that the others' ends are told too.

joblib would kill its processes, with all that they have started, at the first exception: no checkpoint, and no record of the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from asr import launchers, stops
from asr.errors import ConfigError, JobError, LaunchError
from asr.explanations import explained
from asr.topology import Topology

PLUGIN = "hydra_plugins.hydra_joblib_launcher."
PARENT = "ASR_PARALLEL_PARENT"
"""Tells joblib's processes who their parent is."""
WORKER = b"loky.backend.popen_loky_posix"
"""On the command line of each of joblib's processes."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *stops.WARNINGS)
LOOK_SECONDS = 0.1
_stopped: list[int] = []
"""The exit code of a stop that this process has heard: it begins no more jobs."""
_at_work = threading.Event()
"""Set while a job runs in this process."""


def is_parallel(composed: DictConfig) -> bool:
    """Whether jobs run at the same time in processes of joblib's."""
    return str(composed.hydra.launcher._target_).startswith(PLUGIN)


def check(composed: DictConfig, topology: Topology) -> None:
    """Raise ConfigError for a job that can't be one of several on this server."""
    with explained(()):
        number = composed.hydra.launcher.n_jobs
    if not isinstance(number, int) or number == 0 or number < -1:
        raise ConfigError(f"{number!r} is no number of jobs at a time; -1 takes as many as there are CPUs.", key="hydra.launcher.n_jobs")
    if topology.num_nodes > 1:
        raise ConfigError("parallel jobs share one server; take hydra/launcher=gaudi_slurm for several.", key="topology.num_nodes")


def prepare() -> None:
    """Let joblib's processes import this code, and know their parent."""
    os.environ["PYTHONPATH"] = launchers.python_path()
    os.environ[PARENT] = str(os.getpid())


# --- the process that the user started ---------------------------------------------------------------------------------


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Hand stops on to the jobs while joblib runs them, and raise them once all have ended; nothing where it runs none."""
    if os.environ.get(PARENT) != str(os.getpid()):
        yield
        return
    core: Any = import_module(f"{PLUGIN}_core")
    launch = core.launch

    def and_listen(launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        relay = _Relay()
        with relay.installed():
            try:
                returns = launch(launcher, job_overrides, initial_job_idx)
            except RuntimeError as error:
                if not type(error).__module__.startswith("joblib."):
                    raise
                why = "one of joblib's processes has died (killed by the system, if memory ran out), and joblib has killed the others"
                raise LaunchError(f"{why}. The same command with hydra.sweep.dir and resume=auto goes on.") from error
        if relay.heard is not None:
            relay.end()  # before a sweeper draws conclusions, or begins the next jobs
        return returns

    core.launch = and_listen  # hydra-joblib-launcher 1.2.0 looks it up at each call (joblib_launcher.py:45)
    try:
        yield
    finally:
        core.launch = launch
        del os.environ[PARENT]


class _Relay:
    """Hears stops in the place of the process, and hands the first on; a second one ends it at once, and joblib kills the jobs."""

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        self.over = threading.Event()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in STOPS}
        ours = [number for number in STOPS if before[number] is not signal.SIG_IGN]  # nohup's
        for number in ours:
            signal.signal(number, self.hear)
        try:
            yield
        finally:
            self.over.set()
            for number in ours:
                signal.signal(number, before[number])

    def hear(self, number: int, _frame: FrameType | None) -> None:
        sent = signal.Signals(number)
        if self.heard is not None and sent in stops.WARNINGS:
            return
        if self.heard is not None or not _workers():
            self.heard = sent
            self.end()
        self.heard = sent
        os.write(2, f"{sent.name}: the jobs are told to end; a second one kills them\n".encode())
        threading.Thread(target=self._hand_on, args=(sent,), daemon=True).start()

    def _hand_on(self, number: signal.Signals) -> None:
        """Send it to each worker once, as soon as that has a job: before, it would die of it, and joblib kill the others."""
        told: set[int] = set()
        while not self.over.is_set():
            for pid in _workers() - told:
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(pid) == pid:
                        os.kill(pid, number)
                        told.add(pid)
            self.over.wait(LOOK_SECONDS)

    def end(self) -> None:
        """Raise the stop that was heard."""
        assert self.heard is not None
        if self.heard is signal.SIGINT:
            raise KeyboardInterrupt
        raise stops.Terminated(self.heard)


def _workers() -> set[int]:
    """Return joblib's processes of this one."""
    found = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread, or a process, that has ended meanwhile
            for pid in listed.read_text(encoding="ascii").split():
                if WORKER in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


# --- a job -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def job(run_dir: str) -> Iterator[None]:
    """Run a job in one of joblib's processes, so that a stop is its end and no exception of joblib's; nothing elsewhere."""
    parent = os.environ.get(PARENT)
    if parent is None or int(parent) == os.getpid():
        yield
        return
    _at_work.set()
    _get_ready(int(parent))
    try:
        if _stopped:
            raise stops.Terminated(signal.SIGINT)
        yield
    except (KeyboardInterrupt, stops.Terminated) as stop:
        code = stops.ended_by(stop).exit_code
        with contextlib.suppress(OSError):
            Path(run_dir).rmdir()  # Hydra has made it, and no run has begun there
        _stopped.append(code)
        if os.getppid() != int(parent):
            os._exit(code)  # nobody waits for it
        raise JobError(run_dir, _stopped[0]) from None
    finally:
        _at_work.clear()


def _get_ready(parent: int) -> None:
    """Hear stops from the parent alone, which hands a terminal's on: in a process group of one's own. And end when it is gone."""
    if os.getpgid(0) == os.getpid():
        return
    # loky makes its own the default (backend/spawn.py of joblib 1.6), by a name that Python's spawned processes don't know
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stops.listen()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.setpgid(0, 0)  # which says that it can be told to stop


def _end_with(parent: int) -> None:
    """Stop this process' job when its parent has gone. Linux would tell it when the parent's thread ends that started it."""
    while os.getppid() == parent:
        time.sleep(1)
    if not _at_work.is_set():
        os._exit(1)
    ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under nohup
    os.kill(os.getpid(), signal.SIGINT if ignores else signal.SIGHUP)
