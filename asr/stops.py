"""How processes end: Ctrl-C, a signal, the end of their parent, and the exit code that each means.

In: signals and return codes. Out: one exception that nothing swallows, and ends in the contract's exit codes. A training
may take a first request to end as a note instead, save a checkpoint, and end as preempted.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from asr.secrets import redacted


@dataclass(frozen=True)
class End:
    """How a run or a process of it ended: the contract's exit code, and the reason unless that is 0."""

    exit_code: int = 0
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:  # it is written into run.json and ranks/<n>.json
            object.__setattr__(self, "error", redacted(self.error))


PREEMPTED = 75
"""The exit code of what was stopped and can go on: EX_TEMPFAIL of sysexits.h, "try again later"."""
PREEMPTING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for the machine back. Slurm's warnings are among them, and its preemption begins with SIGTERM."""
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_ALL = (*PREEMPTING, signal.SIGHUP, signal.SIGINT)


class Terminated(BaseException):
    """A signal that ends the process arrived. No Exception, so that nothing on its way up swallows it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


class Preempted(Terminated):
    """The run was asked to end and has saved what it takes to go on, or its ranks have. `message` says how to go on."""

    def __init__(self, message: str) -> None:
        super().__init__(signal.SIGTERM)
        self.message = message


@dataclass
class Asked:
    """Which signal has asked a training to save and end, if one has."""

    number: signal.Signals | None = None


@dataclass
class _Process:
    """What a process has heard. Its forked children have copies, which are about their parent: hence `pid`."""

    pid: int = 0
    is_rank: bool = False
    asked: Asked | None = None
    """Set while a training listens, which ends in good order by itself."""
    stopped: bool = False
    """A stop was raised: the process ends."""
    over: bool = False
    """It ends as preempted, and needs no more stops for that."""
    heard: set[signal.Signals] = field(default_factory=set)


_process = _Process()
_shown: mmap.mmap | None = None


def show_training(where: mmap.mmap) -> None:
    """Say in the first byte of memory that another process shares whether a training has stops `deferred` here."""
    global _shown
    _shown = where


def _show(listens: bool) -> None:
    if _shown is not None:
        _shown[0] = int(listens)


def listen() -> None:
    """Raise Terminated in the main thread when a signal asks this process to end; a training may have it `deferred`."""
    _process.pid = os.getpid()
    for number in (*PREEMPTING, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and a trainer may have handlers of its own
            signal.signal(number, _hear)


def listen_once() -> None:
    """Listen in a rank, to the first stop alone: its guard passes on what a terminal, Slurm or a launcher may send to all processes.

    Also to what nohup or a shell has made us ignore: a guard sends nothing by chance.
    """
    global _process
    _process = _Process(pid=os.getpid(), is_rank=True)
    for number in _ALL:
        signal.signal(number, _hear)


def listen_in_job() -> None:
    """Listen in a job that submitit runs, in its place: to SIGTERM, which it passes over, and to a scheduler's warning.

    submitit would answer the warning by starting the job anew at once, before the run has saved anything.
    """
    for number in PREEMPTING:
        signal.signal(number, signal.SIG_DFL)
    listen()


def listen_in_loader(_worker: int = 0) -> None:
    """Let a data loader's process end for nobody but its parent: Slurm sends SIGTERM to it too, and the step that is to be saved needs it.

    For `worker_init_fn`, before anything there has threads. torch ends such a process by SIGTERM if need be (dataloader.py:1678 of
    2.13), and it ends by itself once its parent has gone (worker.py:63).
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, PREEMPTING)  # threads that begin later have it from here

    def heed() -> None:
        while signal.sigwaitinfo(PREEMPTING).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=heed, daemon=True).start()


def warned_by() -> signal.Signals | None:
    """Return the scheduler's warning that this process has heard, if it has."""
    return next((number for number in WARNINGS if number in _process.heard), None)


@contextlib.contextmanager
def deferred() -> Iterator[Asked]:
    """Let a training take note of the first signal that asks for preemption, instead of being torn apart by it.

    It has to look at what this yields, save, and call `end_as_preempted`. A second SIGTERM, and any other stop, is raised as ever;
    so is the first one at the end, when training has ended without heeding it.
    """
    assert _process.asked is None, "a training listens already"
    asked = _process.asked = Asked()
    _show(True)
    try:
        yield asked
    finally:
        _process.asked = None
        _show(False)
    if asked.number is not None and not _process.over:
        _process.stopped = True
        if _process.is_rank:
            ignore()
        raise Terminated(asked.number)


def end_as_preempted(message: str) -> NoReturn:
    """End the run as preempted, now that all is saved; more signals that ask for it are passed over."""
    _process.over = True
    raise Preempted(message)


def ignore() -> None:
    """Pass over every stop from now on: the process ends, and another that ends it needn't."""
    for number in _ALL:
        signal.signal(number, signal.SIG_IGN)


def _hear(number: int, _frame: object) -> None:
    sent, here = signal.Signals(number), _process
    if here.pid != os.getpid():  # a forked child, of a loader say: warnings are for its parent
        if sent not in WARNINGS:
            _terminate(sent)
        return
    here.heard.add(sent)
    asked = here.asked
    if sent in PREEMPTING and asked is not None and asked.number is None and not here.stopped:
        asked.number = sent
        os.write(2, f"{sent.name}: a checkpoint is saved at the end of this step, then the run ends\n".encode())
        return
    asked_already = here.over or (asked is not None and asked.number is not None)
    if sent in WARNINGS and (asked_already or here.stopped):
        return  # Slurm sends SIGTERM and its warning when it preempts
    if here.over and (sent in PREEMPTING or here.is_rank):
        return
    if here.is_rank:
        if asked_already and sent in PREEMPTING:
            return  # once from outside, once from its guard
        ignore()
    here.stopped = True
    _terminate(sent)


def _terminate(number: int) -> NoReturn:
    """Raise Terminated, and again every second until `ended_by` is asked about it.

    An exception raised from a signal handler is lost when the signal arrives in a destructor or a callback from C.
    """
    signal.signal(signal.SIGALRM, lambda *_: _terminate(number))
    signal.setitimer(signal.ITIMER_REAL, 1)
    raise Terminated(number)


def ended_by(stop: KeyboardInterrupt | Terminated) -> End:
    """Return the end that a stop from outside makes; it has now been heard and need not come again."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if isinstance(stop, Preempted):
        return End(PREEMPTED, stop.message)
    if isinstance(stop, Terminated) and stop.signal in PREEMPTING:
        return End(PREEMPTED, f"preempted ({stop.signal.name})")
    if isinstance(stop, Terminated) and stop.signal != signal.SIGINT:
        return End(128 + stop.signal, f"terminated ({stop.signal.name})")
    return End(130, "interrupted (Ctrl-C)")


def exit_code_of(returned: int) -> int:
    """Return the contract's exit code for what subprocess or waitpid gives: -n, killed by signal n, is 128+n."""
    return 128 - returned if returned < 0 else returned


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # man 2 prctl


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when its parent dies, so that none is orphaned."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


def adopt_orphans() -> None:
    """Ask Linux for the descendants of this process whose parents die: daemons that a rank has started."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_orphans() -> None:
    """Kill every child of this process, and theirs as they become its own. For a process that needs none any more."""
    listed = Path("/proc/thread-self/children")
    while listed.exists() and (children := listed.read_text(encoding="ascii").split()):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(child), 0)


def is_alive(pid: int) -> bool:
    """Say whether a process of this host runs; one that has ended and isn't waited for yet doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
