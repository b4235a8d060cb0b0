"""How processes end: Ctrl-C, a signal, the end of their parent, and the exit code that each means.

In: signals and return codes. Out: one exception that nothing swallows, and ends in the contract's exit codes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from asr.secrets import redacted


@dataclass(frozen=True)
class End:
    """How a run or a process of it ended: the contract's exit code, and the reason unless that is 0."""

    exit_code: int = 0
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:  # it is written into run.json and ranks/<n>.json
            object.__setattr__(self, "error", redacted(self.error))


class Terminated(BaseException):
    """A signal that ends the process arrived. No Exception, so that nothing on its way up swallows it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


def listen() -> None:
    """Raise Terminated in the main thread when a signal asks this process to end."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and a trainer may have handlers of its own
            signal.signal(number, _terminate)


def listen_once() -> None:
    """Listen in a rank, to the first stop alone: its guard passes on what a terminal, Slurm or a launcher may send to all processes."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _terminate_once)


def _terminate_once(number: int, frame: object) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    _terminate(number, frame)


def listen_in_job() -> None:
    """Listen in a job that submitit runs: SIGTERM, which it passes over, and a scheduler's warning end the run in good order.

    Slurm warns before the time limit; submitit would answer by starting the job anew in the same folder.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listen()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _take_warning)


def _take_warning(number: int, _frame: object) -> None:
    os.write(2, f"{signal.Signals(number).name}: the time limit is near, or others come first; the run ends\n".encode())
    _terminate(signal.SIGTERM, None)


def _terminate(number: int, _frame: object) -> None:
    """Raise Terminated, and again every second until `ended_by` is asked about it.

    An exception raised from a signal handler is lost when the signal arrives in a destructor or a callback from C.
    """
    signal.signal(signal.SIGALRM, lambda *_: _terminate(number, None))
    signal.setitimer(signal.ITIMER_REAL, 1)
    raise Terminated(number)


def ended_by(stop: KeyboardInterrupt | Terminated) -> End:
    """Return the end that a stop from outside makes; it has now been heard and need not come again."""
    signal.setitimer(signal.ITIMER_REAL, 0)
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
