"""A sweep: its folder, what each of its jobs came to, and how it goes on after a stop.

In: what a command line asks of Hydra's sweepers. Out: sweep.json (what was asked, how it ended) and jobs/<number>.json (how each job
ended, also one that has left no run) beside the jobs' run directories. Whatever sweeper and launcher Hydra is given, this is the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode

from asr import runs, sessions, stops
from asr.errors import AsrError, ConfigError, JobError
from asr.runs import Run
from asr.secrets import redacted

log = logging.getLogger(__name__)

SCHEMA = 1
SWEEP_FILE, JOBS, PREPARED = "sweep.json", "jobs", "prepared"
KEY = "hydra.sweep.dir"
INTERRUPTED = 130
FREE = ("resume=", "hydra.sweep.dir=", "hydra.launcher", "hydra/launcher", "hydra.sweeper.n_trials=", "hydra.sweeper.n_jobs=")
"""How overrides begin that may be others when a sweep goes on: they change no job. More trials are a longer sweep of the same kind."""


@dataclass
class Job:
    """One job of a sweep: `value` is what its sweeper minimises, `run_dir` is relative to the sweep's folder."""

    number: int
    overrides: list[str]
    run_dir: str
    status: str = "running"
    exit_code: int | None = None
    error: str | None = None
    value: float | None = None


class Sweep:
    """One sweep's folder. `record` is the content of sweep.json."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a sweep's folder; raise ConfigError when it is none."""
        try:
            record = json.loads((path / SWEEP_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not the folder of a sweep ({SWEEP_FILE} can't be read: {error}).") from error
        if not isinstance(record, dict) or not all(_is_words(record.get(key)) for key in ("overrides", "command")):
            raise ConfigError(f"{path / SWEEP_FILE} isn't what a sweep has written.")
        return cls(path, record)

    def jobs(self) -> list[Job]:
        """Return the jobs that have begun, by their numbers; one whose record can't be read is passed over with a warning."""
        found = []
        for path in (self.path / JOBS).glob("*.json"):
            try:
                found.append(Job(**json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s is passed over: %s", path, error)
        return sorted(found, key=lambda job: job.number)

    def save(self, **facts: Any) -> None:
        """Add facts to sweep.json."""
        self.record |= facts
        runs.write_json(self.path / SWEEP_FILE, self.record)

    def continuation(self) -> str:
        """Return the command that goes on with this sweep."""
        return f"asr resume {shlex.quote(str(self.path))}"


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def decisive(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that say what a sweep's jobs are, in order.

    >>> decisive(["seed=1,2", "resume=auto", "hydra.sweep.dir=s"])
    ['seed=1,2']
    """
    return [word for word in overrides if not word.lstrip("+~").startswith(FREE)]


def check(folder: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Raise ConfigError for a folder that neither is free for a new sweep nor, with `resume`, holds this one; nothing is left written."""
    if not (folder / SWEEP_FILE).exists():
        runs.check_can_hold_run(folder, key=KEY)
        return
    if not resume:
        raise ConfigError(f"{folder} already holds a sweep; choose another, or go on with it: resume=auto.", key=KEY)
    theirs, ours = decisive(Sweep.load(folder).record["overrides"]), decisive(overrides)
    if theirs != ours:
        raise ConfigError(f"{folder} holds a sweep of `{' '.join(theirs)}`, not of `{' '.join(ours)}`; choose another.", key=KEY)


def newest_unfinished(home: Path, overrides: Sequence[str]) -> Path | None:
    """Return the folder of the newest sweep of these overrides under `home` that hasn't finished."""
    found = []
    for path in home.glob(f"*/{SWEEP_FILE}"):
        try:
            sweep = Sweep.load(path.parent)
        except ConfigError as error:
            log.warning("%s is passed over: %s", path.parent, error)
            continue
        if sweep.record.get("status") != "finished" and decisive(sweep.record["overrides"]) == decisive(overrides):
            found.append(sweep)
    newest = max(found, key=lambda sweep: str(sweep.record.get("session_started")), default=None)
    return newest.path if newest else None


SAFE_FLAGS = ("-m", "--multirun")
SAFE_HYDRA = ("hydra.sweeper.n_trials=", "hydra.sweeper.n_jobs=", "hydra.launcher.n_jobs=", "hydra.sweep.dir=", "hydra.mode=")


def command_to_resume(folder: Path) -> tuple[list[str], Path]:
    """Return the command that goes on with a sweep, and the folder it was started from.

    Raises ConfigError for one that names code of its own or settings of Hydra's, which may run anything: sweep.json may come from
    elsewhere, so that is for its reader to start.
    """
    sweep = Sweep.load(folder)
    words = [word for word in sweep.record["command"][2:] if not word.startswith(("resume=", f"{KEY}="))]
    target = f"{KEY}='{{}}'".format(str(folder).replace("\\", "\\\\").replace("'", "\\'"))
    command = [sys.executable, str(runs.CODE / "launch.py"), *words, target, "resume=auto"]
    for word in words:
        plain = word.lstrip("+~")
        flag = word.startswith("-") and word not in SAFE_FLAGS
        if flag or "_target_" in word or "trust_remote_code" in word or (plain.startswith("hydra.") and not plain.startswith(SAFE_HYDRA)):
            raise ConfigError(f"this sweep was started with {word!r}, which may run code: start it yourself, {shlex.join(command)}")
    cwd = Path(str(sweep.record.get("cwd") or "."))
    if not cwd.is_dir():
        raise ConfigError(f"{cwd}, where this sweep was started, isn't there: start it yourself, {shlex.join(command)}")
    return command, cwd


@contextlib.contextmanager
def recorded(folder: Path | None, overrides: Sequence[str], show: Callable[[Sweep], object]) -> Iterator[None]:
    """Keep a sweep's folder for this process, record what was asked and, whatever it is, how it ended, and have it shown.

    Of no sweep, nothing.
    """
    if folder is None:
        yield
        return
    sessions.hold(folder, key=KEY)
    try:
        sweep = _begun(folder, overrides)
        end = stops.End()
        try:
            yield
        except (KeyboardInterrupt, stops.Terminated) as stop:
            end = stops.ended_by(stop)
            raise
        except AsrError as error:
            end = stops.End(error.exit_code, str(error))
            raise
        except BaseException as error:
            end = stops.End(1, redacted(f"{type(error).__name__}: {error}"))
            raise
        finally:
            if end.exit_code == ConfigError.exit_code and not sweep.jobs():
                (folder / SWEEP_FILE).unlink(missing_ok=True)  # a wrong configuration leaves nothing behind
            elif folder.is_dir():  # a user may have removed it
                sweep.save(status=_status(end.exit_code), exit_code=end.exit_code, error=end.error, finished=runs.now())
                show(sweep)
    finally:
        sessions.let_go(folder)


def _status(exit_code: int) -> str:
    return {0: "finished", stops.PREEMPTED: "preempted", INTERRUPTED: "interrupted"}.get(exit_code, "failed")


def _begun(folder: Path, overrides: Sequence[str]) -> Sweep:
    fresh: dict[str, Any] = {"schema": SCHEMA, "started": runs.now(), "sessions": 0}
    before = Sweep.load(folder).record if (folder / SWEEP_FILE).exists() else fresh
    sweep = Sweep(folder, before)
    sweep.save(
        status="running",
        exit_code=None,
        error=None,
        session_started=runs.now(),
        finished=None,
        sessions=int(before.get("sessions") or 0) + 1,
        cwd=str(Path.cwd()),
        command=[redacted(word) for word in (sys.executable, *sys.argv)],
        overrides=[redacted(word) for word in overrides],
        git=runs.git_state(),
        packages=runs.package_versions(),
    )
    return sweep


class Recording:
    """What is written of a job; `shared` is where the sweep keeps what its jobs share, None for what is no job of a recorded sweep."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.job = folder, job
        self.shared: Path | None = folder / PREPARED

    def ended(self, exit_code: int, run: Run | None) -> None:
        """Record how the job's run ended; raise JobError for one that ended badly."""
        if exit_code:
            self.write(exit_code, error=run.record.get("error") if run else None)
            raise JobError(self.folder / self.job.run_dir, exit_code)
        if run is not None:  # None on a server that isn't the first
            self.write(0, value=run.metrics.get("eval_wer"))

    def write(self, exit_code: int | None, *, error: str | None = None, value: float | None = None) -> None:
        """Write jobs/<number>.json; without an exit code, that the job has begun."""
        status = "running" if exit_code is None else _status(exit_code)
        self.job = replace(self.job, status=status, exit_code=exit_code, value=value, error=error)
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        runs.write_json(self.folder / JOBS / f"{self.job.number}.json", asdict(self.job))


class _NoRecording(Recording):
    """Of a dry run's or a rehearsal's job, or of no job at all."""

    def __init__(self, *, in_sweep: bool, run_dir: Path) -> None:
        self.shared, self.in_sweep, self.run_dir = None, in_sweep, run_dir

    def ended(self, exit_code: int, run: Run | None) -> None:
        if exit_code and self.in_sweep:
            raise JobError(self.run_dir, exit_code)


@contextlib.contextmanager
def job(settings: HydraConf, run_dir: Path, *, records: bool) -> Iterator[Recording]:
    """Record a job of a sweep: that it has begun and, where its end isn't told inside, what was raised. `settings` is Hydra's own node."""
    in_sweep = settings.mode == RunMode.MULTIRUN
    if not (in_sweep and records):
        yield _NoRecording(in_sweep=in_sweep, run_dir=run_dir)
        return
    folder = Path(settings.runtime.cwd, settings.sweep.dir)
    inside = run_dir.relative_to(folder) if run_dir.is_relative_to(folder) else run_dir
    recording = Recording(folder, Job(int(settings.job.num), [redacted(word) for word in settings.overrides.task], str(inside)))
    recording.write(None)
    try:
        yield recording
    except JobError:
        raise
    except (KeyboardInterrupt, stops.Terminated) as stop:
        end = stops.ended_by(stop)
        recording.write(end.exit_code, error=end.error)
        raise
    except AsrError as error:
        recording.write(error.exit_code, error=str(error))
        raise
    except BaseException as error:
        recording.write(1, error=redacted(f"{type(error).__name__}: {error}"))
        raise
