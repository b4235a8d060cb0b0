"""Which run a launch goes on with, and that no other launch does at the same time.

In: a composed configuration, the folder that Hydra chose and `resume`. Out: a run to begin, to go on with, or one that has
finished. A run may have many sessions: each begins where the checkpoints of the one before end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr import ranks, runs
from asr.config import WITHOUT_EFFECT
from asr.errors import ConfigError
from asr.runs import LOCK_FILE, RUN_FILE, Run
from asr.stops import is_alive

log = logging.getLogger(__name__)

LEAVE_SECONDS = 30.0
"""How long processes of a session that was killed are waited for: they end with their parent, after they were heard."""
ANY_TOPOLOGY = ("topology.", *WITHOUT_EFFECT)
"""What a session may have other than the one before: on what it runs."""
_HELD: dict[Path, int] = {}


def hold(run_dir: Path, *, key: str = "hydra.run.dir") -> None:
    """Keep a run's or sweep's directory for this process, until it ends or lets go; raise ConfigError where another has it.

    A POSIX record lock: it goes with the process, however that ends, isn't inherited by children, and works over NFS
    (man 2 fcntl). A file system without locks is left to the record in run.json.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = (run_dir / LOCK_FILE).resolve()
    while path not in _HELD:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(opened)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                path.unlink(missing_ok=True)
                log.warning("%s can't be locked (%s): see to it yourself that no two launches share it", run_dir, error.strerror)
                return
            problem = f"{run_dir} is in use: {_who(run_dir)} works there; wait for it, or choose another."
            raise ConfigError(problem, key=key) from error
        if _is_there(path, opened):
            _HELD[path] = opened
        else:  # whoever held it has just let go, and taken the file away
            os.close(opened)


def _is_there(path: Path, opened: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened), path.stat())
    return False


def let_go(run_dir: Path) -> None:
    """Give a run directory free; of one that isn't held, nothing."""
    path = (run_dir / LOCK_FILE).resolve()
    opened = _HELD.pop(path, None)
    if opened is not None:
        path.unlink(missing_ok=True)  # while it is held
        os.close(opened)


def _who(run_dir: Path) -> str:
    record = ranks.read_record(run_dir / RUN_FILE) or {}
    host = record.get("host", {})
    return f"process {host['pid']} of {host['name']}" if "pid" in host else "another launch"


def check(config: Mapping[str, Any], run_dir: Path, *, key: str) -> None:
    """Raise ConfigError for a launch that can neither begin a run in a folder nor go on with the one there; nothing is left written."""
    if config.get("resume") == "auto" and (run_dir / RUN_FILE).exists():
        _check_goes_on(Run.load(run_dir), config)
        return
    runs.check_can_hold_run(run_dir, key=key)


def open_run(
    config: Mapping[str, Any], run_dir: Path, *, named: bool, command: Sequence[str], overrides: Sequence[str]
) -> tuple[Run, bool]:
    """Return the run that a launch begins or goes on with, held for this process, and whether there is anything left to do."""
    if config.get("resume") != "auto":
        return _begun(config, run_dir, command, overrides), True
    if (run_dir / RUN_FILE).exists():
        found: Run | None = Run.load(run_dir)
    else:
        found = None if named else newest_unfinished(config, run_dir)
    if found is None:
        return _begun(config, run_dir, command, overrides), True
    if found.path != run_dir:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Hydra has made it
    _check_goes_on(found, config)
    if found.record["status"] == "finished":
        runs.configure_logging(None)
        log.warning("%s has finished: there is nothing to resume", found.path)
        return found, False
    hold(found.path)
    runs.configure_logging(found.path)
    found.reload()
    go_on(found, config, command, overrides)
    return found, True


def _begun(config: Mapping[str, Any], run_dir: Path, command: Sequence[str], overrides: Sequence[str]) -> Run:
    hold(run_dir)
    try:
        return Run.create(run_dir, config, command=command, overrides=overrides)
    except ConfigError:
        let_go(run_dir)
        raise


def newest_unfinished(config: Mapping[str, Any], run_dir: Path) -> Run | None:
    """Return the newest run that hasn't finished, of the same experiment and configuration, where Hydra puts this experiment's runs."""
    name = config["experiment_name"]
    home = next((parent for parent in run_dir.parents if parent.name == name), run_dir.parent)
    found = []
    for path in home.rglob(RUN_FILE):
        try:
            run = Run.load(path.parent)
            if run.record["status"] in ("finished", "dry_run") or run.record.get("rehearsal") or _differences(run, config):
                continue
        except (ConfigError, OSError, KeyError, ValueError) as error:
            log.warning("%s is passed over: %s", path.parent, error)
            continue
        found.append(run)
    return max(found, key=lambda run: str(run.record.get("session_started", run.record["started"])), default=None)


def _check_goes_on(run: Run, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a run that this configuration can't go on with."""
    kind = "a rehearsal" if run.record.get("rehearsal") else "a dry run" if run.record["status"] == "dry_run" else None
    if kind:
        raise ConfigError(f"{run.path} holds {kind}, which isn't resumed; choose another.", key="hydra.run.dir")
    differences = _differences(run, config)
    if differences:
        key, theirs, ours = differences[0]
        others = f" ({len(differences) - 1} other keys differ too)" if len(differences) > 1 else ""
        raise ConfigError(
            f"is {ours!r}, and {theirs!r} in the run to resume, {run.path}{others}; give it as it was, or choose another folder.", key=key
        )


def _differences(run: Run, config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values decide a result and differ, with the run's and the configuration's."""
    theirs, ours = runs.flat(run.config), runs.flat(config)
    keys = [key for key in sorted(theirs.keys() | ours.keys()) if not key.startswith(ANY_TOPOLOGY)]
    return [(key, theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)]


def go_on(run: Run, config: Mapping[str, Any], command: Sequence[str], overrides: Sequence[str]) -> None:
    """Begin a session of a run: say what is other than before, and clear away what the processes of the last one left."""
    _wait_for_leftovers(run)
    before = run.record
    now = runs.package_versions()
    changed = [f"{name} {was} -> {now.get(name)}" for name, was in before["packages"].items() if now.get(name) != was]
    if changed:
        log.warning("other packages than before; numbers may differ: %s", ", ".join(changed))
    topology = {k: v for k, v in config["topology"].items() if k != "_target_"}
    for key in sorted(k for k in topology if before["topology"].get(k) != topology[k]):
        log.warning("topology.%s is %r now, and was %r", key, topology[key], before["topology"].get(key))
    ranks.set_aside(run.path)
    run.begin_session(config, command=command, overrides=overrides)
    log.warning("session %d of %s goes on (%s)", len(run.record["sessions"]) + 1, run.path, _end_of(before))


def _end_of(record: Mapping[str, Any]) -> str:
    said = "the last one left no record of its end" if record["status"] == "running" else f"the last one ended as {record['status']}"
    return f"{said}: {record['error']}" if record.get("error") else said


def _wait_for_leftovers(run: Run) -> None:
    """Wait for processes of a session whose parent was killed: they hear of it, and may be saving a checkpoint."""
    give_up_at = time.monotonic() + LEAVE_SECONDS
    while alive := _leftovers(run):
        if time.monotonic() > give_up_at:
            raise ConfigError(
                f"{run.path} is in use: processes {', '.join(map(str, alive))} of its last session still run; end them first.",
                key="hydra.run.dir",
            )
        time.sleep(0.2)


def _leftovers(run: Run) -> list[int]:
    """Return the processes of this host that a session has left behind."""
    here = [record for record in ranks.read_records(run.path).values() if record.host == socket.gethostname()]
    return [pid for record in here for pid in (record.pid, record.guard) if is_alive(pid) and os.fsencode(run.path) in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
