"""Devices that are one run's at a time: eight jobs of a sweep, or two people's runs, share a server without meeting on one Gaudi.

In: what device a run computes on, how many, and those that its shell may use. Out: a lease, held until the run has ended.

A device is a file of this host, and its lease a lock on it (man 2 flock). The run's process holds it, and each of its ranks too: one
that is killed frees it at once, and ranks that outlive their parent keep it as long as they live.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, LaunchError, listed
from asr.topology import VISIBLE, Topology, visible_devices

log = logging.getLogger(__name__)

FOLDER = "ASR_LEASES"
"""Names a folder that several users of a server can write, so that their runs wait for each other too."""
HELD = "ASR_HELD_LEASES"
"""Tells ranks which files to hold, and by which token they know that the lease is still their run's."""
HOMES = (Path("/run/lock"), Path(os.sep, "var", "tmp"))
"""Not TMPDIR or XDG_RUNTIME_DIR, which differ between two logins of one user; not a home, which servers share."""
POLL_SECONDS = 0.5
SAY_SECONDS = 60.0


@dataclass(frozen=True)
class Lease:
    """Devices that a run has. Without any it runs on a CPU, on several servers, or where devices aren't leased."""

    device: str = "cpu"
    ids: tuple[str, ...] = ()
    waited_seconds: float = 0.0
    environment: Mapping[str, str] | None = None
    """For the processes that compute."""

    def describe(self) -> dict[str, Any]:
        """Return it as run.json holds it."""
        return {"device": self.device, "ids": list(self.ids), "waited_seconds": round(self.waited_seconds, 1)}


@contextlib.contextmanager
def leased(topology: Topology, run_dir: Path) -> Iterator[Lease]:
    """Hold a device for each of a run's processes here; wait, with a line in the log, until there are so many.

    A run over several servers leases none: two of them could wait for each other, and a scheduler hands servers out anyway.
    """
    ids = visible_devices(topology.device, topology.environment) if topology.lease_devices and topology.num_nodes == 1 else None
    if ids is None:
        yield Lease()
        return
    if topology.processes_here > len(ids):
        raise ConfigError(f"{topology.processes_here} processes, but there are {len(ids)} devices.", key="topology.world_size")
    started, token = time.monotonic(), uuid.uuid4().hex
    files = _wait_for(topology.device, ids, topology.processes_here, {"token": token, "pid": os.getpid(), "run": str(run_dir)})
    try:
        taken = tuple(files)
        log.info("device%s of this run: %s %s", "s" if len(taken) > 1 else "", topology.device, ", ".join(taken))
        yield Lease(topology.device, taken, time.monotonic() - started, _environment(topology.device, taken, token))
    finally:
        for file in files.values():
            os.close(file)  # what forked has its own hold of it


@contextlib.contextmanager
def applied(lease: Lease) -> Iterator[None]:
    """Give this process the lease's variables while it computes itself; a process may run other jobs afterwards."""
    given = lease.environment or {}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Hold the lease of this rank's run as well, until this process ends; raise LaunchError where it isn't the run's any more."""
    told = environment.get(HELD)
    if not told:
        return
    held = json.loads(told)
    for path in map(Path, held["files"]):
        file = _open(path)  # stays open: the lock goes with the process, and with those that it forks
        if not _locks(file, fcntl.LOCK_SH) or _content(file).get("token") != held["token"]:
            raise LaunchError(f"{path} is another run's meanwhile: the process that had leased it for this run is gone.")


def _environment(device: str, ids: Sequence[str], token: str) -> dict[str, str]:
    files = [str(_path(device, name)) for name in ids]
    return {VISIBLE[device]: ",".join(ids), HELD: json.dumps({"token": token, "files": files})}


def _wait_for(device: str, ids: Sequence[str], number: int, token: Mapping[str, Any]) -> dict[str, int]:
    """Return the locked files of as many devices as are wanted, by device, once they are free.

    Runs that choose among the same devices are served in turn, so that one which wants all isn't passed by for ever.
    """
    name = hashlib.sha256(",".join(ids).encode()).hexdigest()[:16]
    queue = _open(folder() / f"{device}-queue-{name}")
    say_at = time.monotonic()
    try:
        while True:
            found = _claimed(device, ids, number, token) if _locks(queue, fcntl.LOCK_EX) else {}
            if found:
                return found
            if time.monotonic() >= say_at:
                say_at = time.monotonic() + SAY_SECONDS
                _say_waiting(device, ids, number)
            time.sleep(POLL_SECONDS)
    finally:
        os.close(queue)


def _claimed(device: str, ids: Sequence[str], number: int, token: Mapping[str, Any]) -> dict[str, int]:
    """Return the locked files of so many devices, or of none where fewer are free.

    One process at a time claims: changing a lock to a shared one, which ranks can join, lets go of it for a moment (man 2 flock).
    """
    files: dict[str, int] = {}
    gate = _open(folder() / "gate")
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for name in ids:
            file = _open(_path(device, name))
            if len(files) < number and _locks(file, fcntl.LOCK_EX):
                files[name] = file
            else:
                os.close(file)
        if len(files) < number:
            for file in files.values():
                os.close(file)
            return {}
        for file in files.values():
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(token).encode(), 0)
            fcntl.flock(file, fcntl.LOCK_SH)
        return files
    finally:
        os.close(gate)


def _say_waiting(device: str, ids: Sequence[str], number: int) -> None:
    holders = {name: holder for name in ids if (holder := _holder(_path(device, name)))}
    free = len(ids) - len(holders)
    who = listed([f"{name}: process {holder['pid']}, {holder['run']}" for name, holder in holders.items()], by="; ")
    log.warning("waiting for %d of %s %s, %d free (%s)", number, device, ",".join(ids), free, who or "others wait already")


def _holder(path: Path) -> dict[str, Any]:
    """Return what the holder of a lease wrote; nothing where there is none."""
    file = _open(path)
    try:
        if _locks(file, fcntl.LOCK_EX):
            return {}
        return {"pid": "?", "run": "?", **_content(file)}
    finally:
        os.close(file)


def _content(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 1 << 16, 0))
    except ValueError:  # empty, or being written
        return {}
    return found if isinstance(found, dict) else {}


def _locks(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _path(device: str, name: str) -> Path:
    return folder() / f"{device}-{''.join(c if c.isalnum() or c in '-.' else '_' for c in name)}"


def _open(path: Path) -> int:
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if FOLDER in os.environ and os.fstat(file).st_uid == os.getuid():
            os.fchmod(file, 0o666)  # whatever the umask: others are to lock it too
        return file
    except OSError as error:
        raise ConfigError(
            f"{path} can't be opened ({error.strerror}); see ${FOLDER}, or set it false.", key="topology.lease_devices"
        ) from error


def folder() -> Path:
    """Return the folder of this host's leases: this user's alone, or the one that $ASR_LEASES names.

    Devices of a Slurm job may be numbered from 0 whatever they are: its runs have a folder of their own.
    """
    given = os.environ.get(FOLDER)
    home = Path(given).expanduser() if given else _own_folder()
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job.isalnum():
        return home
    own = home / f"job-{job}"
    try:
        own.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{own} can't be made ({error.strerror}); see ${FOLDER}.", key="topology.lease_devices") from error
    return own


def _own_folder() -> Path:
    home = next((home for home in HOMES if os.access(home, os.W_OK | os.X_OK)), HOMES[-1])
    mine = home / f"asr-leases-{os.getuid()}"
    try:
        mine.mkdir(mode=0o700, exist_ok=True)
        state = mine.lstat()
    except OSError as error:
        raise ConfigError(f"{mine} can't be made ({error.strerror}); name a folder in ${FOLDER}.", key="topology.lease_devices") from error
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise ConfigError(f"{mine} isn't yours alone; remove it, or name a folder in ${FOLDER}.", key="topology.lease_devices")
    return mine
