"""The run directory: what was run, with what, and how it ended.

In: a configuration and facts of a run as they become known. Out: config.yaml, run.json, metrics.json,
predictions.jsonl and run.log, each written so that a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import logging.config
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from asr import stops
from asr.config import WITHOUT_EFFECT
from asr.errors import ConfigError
from asr.files import written
from asr.secrets import redacted

log = logging.getLogger(__name__)

SCHEMA = 1
RUN_FILE, CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE = "run.json", "config.yaml", "metrics.json", "predictions.jsonl"
LOG_FILE = "run.log"
PAGE_FILE = "report.html"
LOCK_FILE = ".lock"
MODEL_FOLDER = "model"
CHECKPOINTS = "checkpoints"
PACKAGES = (
    "torch transformers optimum-habana habana-torch-plugin accelerate datasets evaluate jiwer hydra-core omegaconf "
    "numpy soundfile soxr tokenizers espeakng-loader"
).split()
CODE = Path(__file__).resolve().parent.parent


class Run:
    """One run's directory. `record` is the content of run.json."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], *, command: Sequence[str], overrides: Sequence[str]) -> Run:
        """Claim `path` for a new run and write config.yaml and run.json; raise ConfigError when it holds one already."""
        path.mkdir(parents=True, exist_ok=True)
        record = {
            "schema": SCHEMA,
            "experiment": config["experiment_name"],
            "version": config["experiment_version"],
            "config_sha256": config_sha256(config),
            "started": now(),
            **_session(config, command, overrides),
            **({"rehearsal": True} if config.get("rehearse") else {}),
            "sessions": [],
        }
        try:
            (path / RUN_FILE).open("x").close()  # the one who creates it owns the directory
        except FileExistsError as error:
            raise ConfigError(f"{path} already holds a run; choose another.", key="hydra.run.dir") from error
        run = cls(path, record)
        run._write_config(config)
        run.save()
        return run

    def begin_session(self, config: Mapping[str, Any], *, command: Sequence[str], overrides: Sequence[str]) -> None:
        """Take up a run that was stopped: `sessions` keeps what run.json said of the one before."""
        facts = _session(config, command, overrides)
        before = {key: self.record[key] for key in (*facts, "error", "resumed_from") if key in self.record}
        self.record = {key: value for key, value in self.record.items() if key not in ("error", "resumed_from")}
        self._write_config(config)
        self.save(**facts, sessions=[*self.record.get("sessions", []), before])

    def _write_config(self, config: Mapping[str, Any]) -> None:
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run directory; raise ConfigError when it is none."""
        try:
            record = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                raise ValueError(f"it holds {type(record).__name__}, not keys")
            for key in ("experiment", "status", "started"):
                if key not in record:
                    raise ValueError(f"it has no {key}")
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a run directory ({RUN_FILE} can't be read: {error}).") from error
        return cls(path, record)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; raises ConfigError for a file that is none, or is larger than it looks."""
        from asr.config_files import UNFORESEEN, check_yaml

        path = self.path / CONFIG_FILE
        check_yaml(path)
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, *UNFORESEEN) as error:  # a tag that isn't YAML's own, a date that isn't one
            raise ConfigError(f"{path} is no configuration of a run ({' '.join(str(error).split())}).") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path} is no configuration of a run: it holds {type(found).__name__}, not keys.")
        return found

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; empty while there is none."""
        path = self.path / METRICS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl; none while there is none. Raises ConfigError for a line that holds no prediction."""
        path = self.path / PREDICTIONS_FILE
        return read_lines(path, keys={"id": str, "reference": str, "hypothesis": str}) if path.is_file() else []

    @property
    def has_weights(self) -> bool:
        """Whether training has left anything that would be lost with the run."""
        return (self.path / MODEL_FOLDER).exists() or any((self.path / CHECKPOINTS).glob("checkpoint-*"))

    def save(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.record |= facts
        write_json(self.path / RUN_FILE, self.record)

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """Record how the run ended: finished with exit code 0, preempted with 75, which can go on, else failed."""
        status = {0: "finished", stops.PREEMPTED: "preempted"}.get(exit_code, "failed")
        self.save(status=status, exit_code=exit_code, finished=now(), **({"error": error} if error else {}))

    def end_dry(self, launches: Sequence[Mapping[str, Any]]) -> None:
        """Record what would have been started, on each server."""
        self.save(status="dry_run", exit_code=0, finished=now(), launch=list(launches))

    def reload(self) -> None:
        """Read run.json again: workers have written into it."""
        self.record = Run.load(self.path).record

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json, flat; a value that is NaN or infinite becomes null, with a warning."""
        bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            log.warning("not finite, written as null: %s", ", ".join(f"{key}={metrics[key]}" for key in bad))
        write_json(self.path / METRICS_FILE, {key: None if key in bad else value for key, value in metrics.items()})

    def write_predictions(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write predictions.jsonl, one utterance a line."""
        write_text(self.path / PREDICTIONS_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def discard(self) -> None:
        """Remove a run that a wrong configuration stopped before it did anything.

        Runs start in empty folders only, so all that lies there is the run's own. The experiment's folder goes
        too when that leaves it empty.
        """
        configure_logging(None)  # closes run.log; a job of submitit logs on
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.name == self.record["experiment"]:
            with contextlib.suppress(OSError):  # other runs lie there
                self.path.parent.rmdir()


def _session(config: Mapping[str, Any], command: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return what run.json says of a session: each launch that works on a run is one."""
    return {
        "status": "running",
        "exit_code": None,
        "session_started": now(),
        "session_started_at": time.time(),  # seconds since 1970: what trainer.max_hours counts from
        "finished": None,
        "command": [redacted(word) for word in command],
        "overrides": [redacted(word) for word in overrides],
        **here(),
        **({"slurm_job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}),
        "topology": {k: v for k, v in config["topology"].items() if k != "_target_"},
    }


def here() -> dict[str, Any]:
    """Return the circumstances that a result may depend on: code, packages, host."""
    host = {"name": socket.gethostname(), "pid": os.getpid(), "platform": platform.platform(), "cpus": os.cpu_count(), "cpu": cpu_model()}
    return {"git": git_state(), "packages": package_versions(), "host": host | {"threads": os.environ.get("OMP_NUM_THREADS")}}


def cpu_model() -> str | None:
    """Return the name of this host's CPU: kernels are chosen by it, and round differently."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or None


def check_can_hold_run(path: Path, *, key: str = "hydra.run.dir") -> None:
    """Raise ConfigError when `path` isn't empty or can't be written; leaves nothing there."""
    if path.is_dir() and any(inside.name != LOCK_FILE for inside in path.iterdir()):
        what = "already holds a run" if (path / RUN_FILE).exists() else "is not empty"
        raise ConfigError(f"{path} {what}; choose another.", key=key)
    made: list[Path] = []
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        probe = path / f".probe-{os.getpid()}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}); choose another.", key=key) from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another server of this run has begun there
                folder.rmdir()


def check_same_config(run: Run, config: Mapping[str, Any], *, except_for: Sequence[str]) -> None:
    """Raise ConfigError when another server's run was composed differently; names the first key that differs."""
    theirs, ours = flat(run.config), flat(config)
    for key in sorted(theirs.keys() | ours.keys()):
        if key not in except_for and theirs.get(key) != ours.get(key):
            raise ConfigError(f"is {ours.get(key)!r} here and {theirs.get(key)!r} on server 0; give the same overrides on each.", key=key)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted key."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return pairs


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the hash of a resolved configuration, whatever the order of its keys; of keys that change no result, none."""
    decisive = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def git_state() -> dict[str, Any] | None:
    """Return commit and dirtiness of the code; None outside a git checkout."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(CODE), *words], capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))} if commit else None


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a result, and Python's."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def configure_logging(run_dir: Path | None) -> None:
    """Send log lines to stderr and, with more detail, to run.log; third-party libraries from warnings up.

    None for a process whose stderr goes into run.log anyway: the parent puts it there.
    """
    handlers = ["console", "file"] if run_dir else ["console"]
    file = {
        "class": "logging.FileHandler",
        "formatter": "long",
        "filename": str(run_dir and run_dir / LOG_FILE),
        "encoding": "utf-8",
        "errors": "backslashreplace",
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "short": {"class": "asr.secrets.RedactingFormatter", "format": "[%(asctime)s] %(message)s", "datefmt": "%H:%M:%S"},
                "long": {"class": "asr.secrets.RedactingFormatter", "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            },
            "handlers": {
                "console": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stderr"},
                **({"file": file} if run_dir else {}),
            },
            "loggers": {"asr": {"level": "INFO"}},
            "root": {"level": "WARNING", "handlers": handlers},
        }
    )
    logging.captureWarnings(True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path, keys: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """Read a JSON object a line, each with these keys; raise ConfigError that names the line that is none."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {type(row).__name__}, not keys")
                for key, kind in (keys or {}).items():
                    if not isinstance(row.get(key), kind):
                        raise ValueError(f"it has no {key}")
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}, can't be read: {error}.") from error
            rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    with written(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be no UTF-8


def now() -> str:
    """Return the time as records have it: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
