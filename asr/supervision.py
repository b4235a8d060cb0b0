"""The parent's part of a run in other processes: start them, show what they say, end them together.

In: the command of a launcher and a run directory. Out: one exit code and its reason, read from the ranks' own records.
A rank that ends badly, a server that falls silent and Ctrl-C end the run on every server within seconds; SIGTERM and
Slurm's warnings end it once the ranks have saved a checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from asr.launchers import Launch
from asr.nodes import Nodes
from asr.rank_output import Output
from asr.ranks import DRAIN_SECONDS, TICK_SECONDS, RankRecord, ask_to_stop, asked_to_stop, parent_path, read_records, write_record
from asr.stops import PREEMPTED, PREEMPTING, End, Preempted, Terminated, end_with_parent, ended_by, exit_code_of
from asr.topology import Topology

log = logging.getLogger(__name__)

SHOWN_LINES = 8
LAST_LINES = "Its last lines:"
GUARD_SECONDS = 5.0
"""So much longer than its guard we wait before we kill a rank ourselves."""
_ASKING = [number.name for number in PREEMPTING]
CAUSE_SECONDS = 2.0
"""Ranks that end so shortly after each other ended for one reason."""


def supervise(launch: Launch, run_dir: Path, topology: Topology, *, node: int = 0) -> End:
    """Run a launch to its end. Ctrl-C and signals (`stops.listen`) end every rank and are raised again."""
    (run_dir / "ranks").mkdir(exist_ok=True)
    write_record(parent_path(run_dir, node), {"host": socket.gethostname(), "pid": os.getpid()})
    with _started(launch) as process:
        watch = _Watch(launch, run_dir, topology, node, process)
        try:
            return watch.until_the_end()
        except (KeyboardInterrupt, Terminated) as stop:
            end = ended_by(stop)
            number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signal
            watch.stop(number, f"stopped by {number.name} on {socket.gethostname()}")
            watch.until_the_end()
            if end.exit_code == PREEMPTED:
                raise Preempted(watch.preempted(end.error or "")) from None
            raise
        finally:  # also a second Ctrl-C
            watch.kill()


@contextmanager
def _started(launch: Launch) -> Iterator[subprocess.Popen[bytes]]:
    """Start a launcher in a session of its own, so that a terminal's Ctrl-C comes to us alone; leave nothing of it behind."""
    process = subprocess.Popen(
        launch.command,
        env={**os.environ, **launch.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_detached,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _detached() -> None:
    """Ready a launcher's process: it ends with us, and passes over Slurm's warnings, which come to every process.

    SIGUSR1 would kill torchrun and leave its ranks behind. Guards, which inherit that, listen to them.
    """
    end_with_parent()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Watch:
    """Watches the ranks of a run from one server."""

    launch: Launch
    run_dir: Path
    topology: Topology
    node: int
    process: subprocess.Popen[bytes]
    stopping: bool = False
    kill_at: float = float("inf")
    failed: RankRecord | None = None
    lost_node: str | None = None

    def __post_init__(self) -> None:
        assert self.process.stdout is not None
        self.output = Output(self.run_dir, self.process.stdout, self.topology, self.node)
        self.nodes = Nodes(self.run_dir, self.topology, self.node) if self.topology.started_on_each_node else None

    def until_the_end(self) -> End:
        open_ = True
        while self.process.poll() is None:
            open_ = open_ and self.output.forward(TICK_SECONDS)
            if not open_:
                time.sleep(TICK_SECONDS)
            self._look()
        drained_at = time.monotonic() + DRAIN_SECONDS
        while open_ and time.monotonic() < drained_at and self.output.forward(0):
            pass
        return self._end()

    def _look(self) -> None:
        """See whether the run has to end, and whether what has to end takes too long."""
        if not self.stopping:
            self.failed = next(iter(_failures(read_records(self.run_dir))), None)
            self.lost_node = self.nodes.lost() if self.nodes else None
            asked = asked_to_stop(self.run_dir)
            if self.failed is not None:  # preempted ones have agreed: the others end as they do
                self.stop(signal.SIGTERM if self.failed.is_preempted else signal.SIGHUP, f"rank {self.failed.rank} has ended")
            elif self.lost_node is not None:
                self.stop(signal.SIGHUP, self.lost_node)
            elif asked is not None:  # from another server
                self.stop(signal.Signals(asked["signal"]), asked["reason"])
        elif self.kill_at < float("inf") and any(record.ended is not None for record in read_records(self.run_dir).values()):
            self.kill_at = min(self.kill_at, time.monotonic() + self.topology.stop_seconds + GUARD_SECONDS)  # all have saved, or none will
        if time.monotonic() > self.kill_at:
            self.kill_at = float("inf")
            self.kill()

    def kill(self) -> None:
        """Kill what is left of the launcher, and the guards and ranks here: torchrun's have sessions of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for record in self._here():
            for pid in self._alive(record):
                with suppress(ProcessLookupError, PermissionError):
                    (os.killpg if pid == record.pid else os.kill)(pid, signal.SIGKILL)  # a rank with its loader workers

    def stop(self, number: signal.Signals, reason: str) -> None:
        """Ask every rank of the run to stop. They hear it from their guards; what is left after a while is killed."""
        if self.stopping:  # a second Ctrl-C: at once
            self.kill_at = 0.0
        else:
            begun = bool(self._here())  # a launcher that still waits for other servers has no rank that could save
            saves = number in PREEMPTING and self.failed is None and begun  # else they have saved
            seconds = self.topology.preempt_seconds if saves else self.topology.stop_seconds
            if saves:
                log.info("%s: the ranks save and end, within %.0f s (topology.preempt_seconds); a second one kills them", reason, seconds)
            try:
                ask_to_stop(self.run_dir, number, reason, seconds=seconds)
            except OSError as error:  # the folder has gone, or its disk is full: through the launcher then
                log.error("the ranks can't be asked to stop: %s", error)
                self.process.terminate()
            self.stopping, self.kill_at = True, time.monotonic() + seconds + GUARD_SECONDS

    def preempted(self, asked: str) -> str:
        """Return how a run ended that was asked to end and to save: as its ranks say, with what went wrong on that way."""
        records = read_records(self.run_dir)
        said = _first_preempted(records)
        ended = [record for record in records.values() if record.exit_code is not None]
        killed = [record for record in self._here() if record.exit_code is None]
        wrong = [_briefly(r) for r in (*ended, *killed) if r.exit_code not in (0, PREEMPTED) and r.killed_by not in _ASKING]
        return "; ".join([said.error or "" if said else asked, *wrong])

    def _end(self) -> End:
        """Say how the run ended, once no rank of this server is left."""
        give_up_at = time.monotonic() + self.topology.stop_seconds + GUARD_SECONDS
        while any(self._alive(record) for record in self._here()) and time.monotonic() < give_up_at:
            time.sleep(TICK_SECONDS)  # their launcher was killed, and they end with it
        records = read_records(self.run_dir)
        if self.nodes is not None:
            self.nodes.leave(self.process.returncode)
        self.output.close()
        failures = _failures(records)
        here = self._here()
        silent = [record for record in here if record.ended is None]
        if silent and (failures or not self.stopping) and all(failure.stopped_by == "signal" for failure in failures):
            lost = "; ".join(f"rank {r.rank}: the process that watched it is gone, {r.guard} on {r.host}" for r in silent)
            return End(1, f"{lost}. It was killed, or could write no record into {self.run_dir / 'ranks'}")
        if failures and failures[0].is_preempted:
            return End(PREEMPTED, self.preempted(""))
        if failures:
            return End(_contract_s(failures[0]), self._explained(failures[0]))
        if len(here) == self.topology.processes_here and all(record.exit_code == 0 for record in here):
            return End(0)
        asked = asked_to_stop(self.run_dir)
        if asked is not None and asked["signal"] in PREEMPTING and not self.lost_node:
            return End(PREEMPTED, self.preempted(asked["reason"]))
        if asked is not None:
            return End(1 if self.lost_node else 128 + asked["signal"], asked["reason"])
        if not (self.run_dir / "ranks").is_dir():
            return End(1, f"{self.run_dir} was removed while the run computed")
        missing = self.topology.processes_here - len(here)
        what = f"{missing} of {self.topology.processes_here} ranks never started" if missing else "a rank left no record of its end"
        said = _indented(_without_torchrun_s_table(self.output.of_launcher))
        code = exit_code_of(self.process.returncode)
        return End(1, f"{what}; {Path(self.launch.command[0]).name} ended with exit code {code}. {said}")

    def _here(self) -> list[RankRecord]:
        each = self.topology.processes_here
        return [record for record in read_records(self.run_dir).values() if record.rank // each == self.node]

    def _alive(self, record: RankRecord) -> list[int]:
        """Return which of a rank and its guard are there: a zombie has no command line, a newer process of its number another."""
        alive = []
        for pid in (record.pid, record.guard) if record.ended is None else ():
            with suppress(OSError):
                if os.fsencode(self.run_dir) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    alive.append(pid)
        return alive

    def _explained(self, failure: RankRecord) -> str:
        """Return what is known of a rank's bad end; its last lines where nobody has seen them."""
        name = f"rank {failure.rank}" if self.topology.num_processes > 1 else "the worker"
        if failure.exit_code in (2, 3) and failure.error:  # a user's mistake, in a message of ours
            return failure.error
        if failure.stopped_by == "signal":
            what = (
                f"{name} was told to end by {failure.killed_by}, with its launcher or its server: process {failure.pid} on {failure.host}"
            )
        elif failure.error is None and failure.killed_by:
            hint = " (by the system, if it ran out of memory)" if failure.killed_by == "SIGKILL" else ""
            what = f"{name} was killed by {failure.killed_by}{hint}: process {failure.pid} on {failure.host}"
        else:
            what = f"{name} ended with exit code {failure.exit_code}: {failure.error or 'it left no message'}"
        if _WAITED.search(f"{failure.error} {' '.join(failure.last_lines)}"):
            what += ". The ranks waited for each other longer than trainer.args.ddp_timeout seconds"
        gone = self.lost_node or (self.nodes.silent() if self.nodes and failure.rank in {r.rank for r in self._here()} else None)
        if gone:
            what += f". {gone}"
        seen = self.topology.num_processes == 1 or self.topology.shown_ranks == "all" or failure.rank == 0
        return what if seen else f"{what}. {_indented(failure.last_lines[-SHOWN_LINES:])}"


_WAITED = re.compile(r"(?i)timed out waiting|collective operation timeout|watchdog caught")


def _failures(records: Mapping[int, RankRecord]) -> list[RankRecord]:
    """Return the ranks that ended badly of their own accord, the likely cause first.

    Others fail because the first is gone, a moment later: a rank that was killed comes before a rank that complains.
    """
    bad = sorted((r for r in records.values() if r.exit_code and r.stopped_by != "run"), key=lambda r: r.ended or 0.0)

    def comes_later(record: RankRecord) -> tuple[bool, float]:
        at_once = (record.ended or 0.0) - (bad[0].ended or 0.0) < CAUSE_SECONDS
        return not (record.killed_by and record.stopped_by is None and at_once), record.ended or 0.0

    return sorted(bad, key=comes_later)


def _first_preempted(records: Mapping[int, RankRecord]) -> RankRecord | None:
    """Return the rank that speaks for those which ended as preempted: one that did so of its own accord, then the lowest."""
    found = [record for record in records.values() if record.is_preempted]
    return min(found, key=lambda record: (record.stopped_by is not None, record.rank), default=None)


def _briefly(record: RankRecord) -> str:
    if record.exit_code is None:
        return f"rank {record.rank} had to be killed"
    if record.killed_by:
        return f"rank {record.rank} was killed by {record.killed_by}"
    return f"rank {record.rank} ended with exit code {record.exit_code}: {record.error or 'it left no message'}"


def _contract_s(failure: RankRecord) -> int:
    """Return the run's exit code: a rank's own, unless it is one that means something else coming from elsewhere than our code."""
    code = failure.exit_code or 1
    return code if failure.error is not None or code > 128 else 1


def _without_torchrun_s_table(lines: Iterable[str]) -> list[str]:
    """Return the lines before the table in which torchrun lists its failures: what a rank said stands above it."""
    listed = list(lines)
    table = next((i for i, line in enumerate(listed) if line.endswith(" FAILED")), len(listed))
    return listed[:table][-SHOWN_LINES:]


def _indented(lines: Iterable[str]) -> str:
    shown = [line for line in lines if line.strip()]
    return "\n".join([LAST_LINES, *(f"    {line}" for line in shown)]) if shown else ""
