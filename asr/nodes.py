"""Several servers of one run: each waits for the first to prepare it, and they watch each other.

In: the run directory, on a file system that the servers share. Out: what happened to a server that is gone.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, LaunchError
from asr.ranks import read_record, write_record
from asr.stops import exit_code_of
from asr.topology import Topology

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0


def wait_for_run(run_dir: Path, topology: Topology, *, resumes: bool = False) -> None:
    """Return once server 0 has begun the run; raise LaunchError when it doesn't, ConfigError when the folder holds another.

    `resumes`: the folder may hold the run's last session. What is new is known by server 0's beat, which a run that was
    killed has no more, whatever its record says.
    """
    begin = said = time.monotonic()
    record = run_dir / "run.json"  # empty at first, complete once config.yaml is
    first = _beat(run_dir)
    while (there := read_record(record)) is None or (resumes and (there["status"] != "running" or _beat(run_dir) in (None, first))):
        if time.monotonic() - begin > topology.join_seconds:
            raise LaunchError(
                f"server 0 has begun no run in {run_dir} within {topology.join_seconds:.0f} s (topology.join_seconds). "
                "Is it the same folder there, on a file system that the servers share?"
            )
        if resumes and there is not None and there["status"] == "finished":
            return  # nothing is left to do
        if time.monotonic() >= said:
            log.info("waiting for server 0 to begin the run in %s", run_dir)
            said = time.monotonic() + 60
        time.sleep(BEAT_SECONDS)
    if there["status"] != "running":
        reason = f" ({there['error']})" if "error" in there else ""
        raise ConfigError(f"{run_dir} already holds a run, which has {there['status']}{reason}; choose another.", key="hydra.run.dir")


def _beat(run_dir: Path) -> int | None:
    record = read_record(run_dir / "ranks" / "node-0.json")
    return None if record is None else record["beat"]


def say_failed(run_dir: Path, topology: Topology, node: int, exit_code: int) -> None:
    """Tell the other servers that this one takes no part: it may have stopped before it beat, and they would wait for its ranks."""
    (run_dir / "ranks").mkdir(exist_ok=True)
    Nodes(run_dir, topology, node).leave(exit_code)


class Nodes:
    """The servers of a run watch each other: each writes a beat into the run directory, which they share."""

    def __init__(self, run_dir: Path, topology: Topology, node: int) -> None:
        self.run_dir, self.node, self.count = run_dir, node, topology.num_nodes
        self.timeout_seconds = topology.node_timeout_seconds
        self.beat = 0
        self.beat_at = 0.0
        self.heard: dict[int, tuple[int, float]] = {}
        self.gathered: dict[int, int] = {}

    def lost(self) -> str | None:
        """Beat, listen, and return what happened to a server that is gone; a clock of another server is never read."""
        now = time.monotonic()
        if now < self.beat_at:
            return None
        self.beat_at = now + BEAT_SECONDS
        self.beat += 1
        self._write(ended=False)
        if self.node == 0:
            self.gather()
        for other in range(self.count):
            record = self._read(other)
            if other == self.node or record is None:
                continue
            if record["ended"] and record["exit_code"]:
                return f"server {other} ({record['host']}) ended with exit code {record['exit_code']}"
            beat, since = self.heard.get(other, (-1, now))
            self.heard[other] = (beat, since) if record["beat"] == beat else (record["beat"], now)
            if not record["ended"] and now - self.heard[other][1] > self.timeout_seconds:
                return f"server {other} ({record['host']}) has given no sign for {self.timeout_seconds:.0f} s"
        return self._first_server_s_end() if self.node else None

    def silent(self) -> str | None:
        """Return which other server gives no sign now, after listening for a few beats: a rank here complains of its peers."""
        until = time.monotonic() + 3 * BEAT_SECONDS
        before = {other: self._read(other) for other in range(self.count) if other != self.node}
        while time.monotonic() < until:
            time.sleep(BEAT_SECONDS)
            for other in [o for o, record in before.items() if record is None or record["ended"] or self._read(o) != record]:
                del before[other]
        gone = [f"server {other} ({record['host']}) gives no sign any more" for other, record in before.items() if record]
        return "; ".join(gone) or None

    def leave(self, returned: int) -> None:
        self._write(ended=True, exit_code=exit_code_of(returned))
        if self.node == 0:
            self.gather()

    def gather(self) -> None:
        """Append what the other servers have logged since the last time to run.log."""
        for other in range(1, self.count):
            path = self.run_dir / "ranks" / f"node-{other}.log"
            if not path.is_file():
                continue
            with path.open("rb") as theirs, (self.run_dir / "run.log").open("ab") as ours:
                theirs.seek(self.gathered.get(other, 0))
                new = theirs.read().rpartition(b"\n")
                ours.write(new[0] + new[1])
                self.gathered[other] = self.gathered.get(other, 0) + len(new[0] + new[1])

    def _first_server_s_end(self) -> str | None:
        """Server 0 prepares the run before it beats: what stops it there is in run.json."""
        path = self.run_dir / "run.json"
        record = read_record(path)
        if record is None:
            return None if path.exists() else "server 0 has removed the run: its configuration is wrong"
        over = record["status"] not in ("running", "finished")
        return f"server 0 has {record['status']}: {record.get('error', 'no reason given')}" if over else None

    def _path(self, node: int) -> Path:
        return self.run_dir / "ranks" / f"node-{node}.json"

    def _read(self, node: int) -> dict[str, Any] | None:
        return read_record(self._path(node))

    def _write(self, *, ended: bool, exit_code: int | None = None) -> None:
        if self._path(self.node).parent.is_dir():  # server 0 may have removed the run
            write_record(
                self._path(self.node),
                {"host": socket.gethostname(), "pid": os.getpid(), "beat": self.beat, "ended": ended, "exit_code": exit_code},
            )
