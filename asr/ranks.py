"""One rank of a run: who it is, how it is watched, and the record of its end.

In: the variables of whichever launcher started this process, and the run directory. Out: the rank's work in a child
process, its output with the rank's name before each line, and ranks/<n>.json, which says how it ended whatever ended it.

Two kinds of stops reach a rank. SIGTERM, SIGUSR1 and SIGUSR2 ask a rank that trains to save a checkpoint first, and leave it
`preempt_seconds`. Any other, and SIGHUP for a run that has failed, ends it as it is, within `stop_seconds`.

torchrun turns a rank's exit 75 into 1 and leaves ranks behind when SIGUSR1 kills it, mpirun and DeepSpeed have ways of their
own. So each process that a launcher starts is a guard: it forks before anything heavy is imported, the child works, the
guard passes signals and the run's stop on to it and writes down how it ended. The launcher's exit code says nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asr.rank_output import Lines
from asr.stops import (
    PREEMPTED,
    PREEMPTING,
    WARNINGS,
    End,
    adopt_orphans,
    end_with_parent,
    exit_code_of,
    is_alive,
    kill_orphans,
    show_training,
)

TICK_SECONDS = 0.1
DRAIN_SECONDS = 2.0
"""How long what ended processes have said is read: one that outlives them, and goes on, keeps their pipe open."""
ERROR_CHARACTERS = 5000
"""Of a rank's error message: it goes through a pipe that nobody reads until the rank has ended."""
LOOK_SECONDS = 0.5
"""How often a guard looks whether the run is to stop."""


@dataclass(frozen=True)
class Rank:
    """Which process of a run this is."""

    number: int = 0
    world_size: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Rank:
        """Read torchrun's or DeepSpeed's variables, or Open MPI's; without any it is the only one."""
        if "RANK" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        elif "OMPI_COMM_WORLD_RANK" in environment:
            names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        else:
            return cls()
        return cls(*(int(environment[name]) for name in names))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what a run writes once."""
        return self.number == 0

    def variables(self) -> dict[str, str]:
        """Return the variables that torch.distributed reads; mpirun doesn't set them. None for a process alone."""
        if self.world_size == 1:
            return {}
        return {"RANK": str(self.number), "WORLD_SIZE": str(self.world_size), "LOCAL_RANK": str(self.local)}


@dataclass
class RankRecord:
    """The content of ranks/<n>.json."""

    rank: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = 0
    guard: int = field(default_factory=os.getpid)
    """The process that watches it, and writes this."""
    started: float = field(default_factory=time.time)
    """Seconds since 1970, as `ended`."""
    ended: float | None = None
    exit_code: int | None = None
    """By the contract: 128+n for a rank killed by signal n."""
    error: str | None = None
    stopped_by: str | None = None
    """Who told it to end: `run`, for whichever reason the run had, or `signal`, by a launcher that ends itself."""
    last_lines: list[str] = field(default_factory=list)

    @property
    def killed_by(self) -> str | None:
        """The name of the signal that ended it, if one did."""
        code = self.exit_code or 0
        return signal.Signals(code - 128).name if code - 128 in signal.Signals._value2member_map_ else None

    @property
    def is_preempted(self) -> bool:
        """Whether it ended in good order because it was asked to, or its time was over."""
        return self.exit_code == PREEMPTED and self.error is not None

    def write(self, run_dir: Path) -> None:
        write_record(run_dir / "ranks" / f"{self.rank}.json", asdict(self))


def read_records(run_dir: Path) -> dict[int, RankRecord]:
    """Return the records that the ranks of a run have written, by rank."""
    found = (read_record(path) for path in (run_dir / "ranks").glob("[0-9]*.json"))
    records = (RankRecord(**content) for content in found if content is not None)
    return {record.rank: record for record in records}


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file that another process, maybe of another server, writes; None while there is none to read.

    A network file system shows files that are replaced as stale or empty for a moment.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def write_record(path: Path, content: Any) -> None:
    """Write a JSON file that others read while it is rewritten."""
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)


def ask_to_stop(run_dir: Path, number: int, reason: str, *, seconds: float) -> None:
    """Tell every rank of a run, wherever it runs, to end as by signal `number` within so many seconds. The first to ask is heard."""
    if asked_to_stop(run_dir) is None:
        write_record(run_dir / "ranks" / "stop.json", {"signal": int(number), "reason": reason, "seconds": seconds})


def asked_to_stop(run_dir: Path) -> dict[str, Any] | None:
    """Return the signal, the reason and the time of a stop that was asked for."""
    return read_record(run_dir / "ranks" / "stop.json")


def set_aside(run_dir: Path) -> None:
    """Move the records of a run's last session away, its stop among them: a run that goes on begins with none. Keeps the latest."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(run_dir / "ranks.before")
    with contextlib.suppress(FileNotFoundError):
        (run_dir / "ranks").rename(run_dir / "ranks.before")


def parent_path(run_dir: Path, node: int) -> Path:
    """Return where the parent on a server says who it is."""
    return run_dir / "ranks" / f"parent-{node}.json"


def has_lost_parent(run_dir: Path) -> bool:
    """Say whether the first server's parent, which records how the run ends, is known to be gone; ask on that server."""
    parent = read_record(parent_path(run_dir, 0))
    return parent is not None and parent["host"] == socket.gethostname() and not is_alive(parent["pid"])


def has_lost_its_parent_here(run_dir: Path) -> bool:
    """Say whether a parent on this server is known to be gone."""
    parents = [record for path in (run_dir / "ranks").glob("parent-*.json") if (record := read_record(path))]
    return any(parent["host"] == socket.gethostname() and not is_alive(parent["pid"]) for parent in parents)


def for_launcher(exit_code: int) -> int:
    """Return a rank's exit code as its launcher sees it: one that ended as preempted is no failure.

    For a failure launchers kill the other guards, mpirun before those have written their records.
    """
    return 0 if exit_code == PREEMPTED else exit_code


def guard(rank: Rank, run_dir: Path, story: Callable[[], End], *, stop_seconds: float, preempt_seconds: float) -> int:
    """Tell the story in a child process, watch it, record its end, and return its exit code.

    Call it before anything with threads is imported. The child is killed so many seconds after it was asked to stop.
    """
    end_with_parent(signal.SIGHUP)  # a launcher that dies asks for nothing
    out_read, out_write = os.pipe()
    end_read, end_write = os.pipe()
    guard_pid = os.getpid()
    training = mmap.mmap(-1, 1)  # shared with the child
    child = os.fork()
    if child == 0:
        end_with_parent(signal.SIGKILL)
        if os.getppid() != guard_pid:  # it died before we asked to die with it
            os._exit(128 + signal.SIGKILL)
        os.setpgid(0, 0)  # its loader workers belong to it
        show_training(training)
        for number in WARNINGS:  # its launcher ignores them, and none may be lost before the story listens
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out_write, 1)
        os.dup2(out_write, 2)
        end = story()
        os.write(end_write, json.dumps(end.error and end.error[:ERROR_CHARACTERS]).encode())
        atexit._run_exitfuncs()  # trackers flush, loaders end their workers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.exit_code)  # nothing is torn down: a destructor of torch's may wait for ever for a thread of its own
    os.close(out_write)
    os.close(end_write)
    adopt_orphans()
    return _Guard(run_dir, RankRecord(rank.number, pid=child), out_read, training, stop_seconds, preempt_seconds).watch(end_read)


class _Guard:
    """Watches one rank: its output, its end, and who wants it to stop."""

    def __init__(
        self, run_dir: Path, record: RankRecord, out: int, training: mmap.mmap, stop_seconds: float, preempt_seconds: float
    ) -> None:
        self.run_dir, self.record, self.out, self.training = run_dir, record, out, training
        self.stop_seconds, self.preempt_seconds = stop_seconds, preempt_seconds
        self.lines = Lines(record.rank)
        self.stopped_by: str | None = None
        self.kill_at = float("inf")
        for number in (*PREEMPTING, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, _: self.stop(n, by="signal"))
        record.write(run_dir)  # listening already: who reads it may end this process, and a last record is due

    def watch(self, end: int) -> int:
        """Return the rank's exit code once it has ended and its record is written; `end` is where it says why."""
        status, look_at, open_ = None, 0.0, True
        while status is None:
            if open_ and select.select([self.out], [], [], TICK_SECONDS)[0]:
                open_ = self.lines.forward(self.out)
            elif not open_:
                time.sleep(TICK_SECONDS)
            status = self._ended()
            if time.monotonic() > look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                if asked := asked_to_stop(self.run_dir):
                    self.stop(asked["signal"], by="run")
            if time.monotonic() > self.kill_at:
                self._kill()
        self._kill()  # loader workers that it couldn't end itself
        kill_orphans()
        drained_at = time.monotonic() + DRAIN_SECONDS
        while open_ and time.monotonic() < drained_at and select.select([self.out], [], [], 0)[0]:
            open_ = self.lines.forward(self.out)
        self.lines.flush()
        said = os.read(end, 1 << 16) if select.select([end], [], [], 0)[0] else b""
        self.record.error = json.loads(said) if said else None
        self.record.exit_code = exit_code_of(os.waitstatus_to_exitcode(status))
        self.record.ended = time.time()
        self.record.stopped_by = self.stopped_by
        self.record.last_lines = list(self.lines.last)
        self.record.write(self.run_dir)
        return self.record.exit_code

    def stop(self, number: int, *, by: str) -> None:
        """Pass a stop on to the rank, and count down to its kill. Once, but for the run's own stop after a signal."""
        if self.stopped_by in (by, "run"):
            return
        asked = asked_to_stop(self.run_dir)
        if asked is not None:  # a launcher that ends its ranks may be faster than we look: the run's stop is the reason
            number, by, seconds = asked["signal"], "run", asked["seconds"]
        elif self._stopped_by_death(number):
            number, seconds = signal.SIGHUP, self.stop_seconds
        else:
            seconds = self.preempt_seconds if number in PREEMPTING else self.stop_seconds
        if not self.training[0]:  # nothing to save: it ends at once, or hangs in a library that waits for other ranks
            seconds = min(seconds, self.stop_seconds)
        is_new = self.stopped_by is None or number not in PREEMPTING
        self.stopped_by = by
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)
        if is_new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.record.pid, number)

    def _stopped_by_death(self, number: int) -> bool:
        """Whether we hear this because the parent has died: nobody records the run, and another may go on with it already."""
        return number in PREEMPTING and has_lost_its_parent_here(self.run_dir)

    def _ended(self) -> int | None:
        pid, status = os.waitpid(self.record.pid, os.WNOHANG)
        return status if pid else None

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.record.pid, signal.SIGKILL)
