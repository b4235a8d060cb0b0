"""What is other in a run than in the one that it replays: code, packages, host, configuration, data, metrics.

In: what run.json and metrics.json of two runs say. Out: lines for people, and a DataError where the data is other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from asr import runs
from asr.config import WITHOUT_EFFECT
from asr.errors import DataError, listed
from asr.runs import Run

log = logging.getLogger(__name__)

MEASURED = re.compile(r"_(runtime|per_second|time)$|memory")
"""Metrics that measure the machine: no two runs have the same."""
HOST = {"cpu": "CPU", "cpus": "CPUs", "threads": "OMP_NUM_THREADS", "platform": "platform"}


def in_circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what is other now in code, packages and host; `then` is a run's record, of any version, `now` what `runs.here` says."""
    return [*_in_code(_facts(then, "git"), _facts(now, "git")), *_in_packages(then, now), *_in_host(then, now)]


def _in_code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    was, is_now = then.get("commit"), now.get("commit")
    if not was or not is_now:
        yield f"code: commit {was or 'unknown'} -> {is_now or 'unknown'}"
    elif was != is_now:
        yield f"code: commit {str(was)[:12]} -> {str(is_now)[:12]}"
    changed = [when for when, facts in (("then", then), ("now", now)) if facts.get("dirty")]
    if changed:
        yield f"code: with changes that aren't committed, {' and '.join(changed)}"


def _in_packages(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    was, is_now = _facts(then, "packages"), _facts(now, "packages")
    for name in sorted(was.keys() | is_now.keys()):
        if was.get(name) != is_now.get(name):
            yield f"package {name}: {was.get(name, 'absent')} -> {is_now.get(name, 'absent')}"


def _in_host(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    was, is_now = _facts(then, "host"), _facts(now, "host")
    for key, name in HOST.items():
        if key in was and was[key] != is_now.get(key):  # a run from before it was recorded doesn't say
            yield f"host {name}: {was[key]} -> {is_now.get(key)}"


def in_configuration(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys that decide a result and have other values."""
    was, is_now = runs.flat(then), runs.flat(now)
    keys = [key for key in sorted(was.keys() | is_now.keys()) if was.get(key) != is_now.get(key) and key not in WITHOUT_EFFECT]
    return [f"{key}: {was.get(key, 'absent')!r} -> {is_now.get(key, 'absent')!r}" for key in keys]


def data_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a run's record says of its data, by role; empty where it never got so far."""
    splits = _facts(_facts(record, "dataset"), "splits")
    known = ("split", "fingerprint", "utterances", "hours")
    return {str(role): {key: split[key] for key in known if key in split} for role, split in splits.items() if isinstance(split, Mapping)}


def say(run: Run) -> None:
    """Log what a replay knows to be other before it has seen its data."""
    replayed = run.record["replay_of"]
    log.info("replay of %s (configuration %s)", replayed["path"], str(replayed["config_sha256"])[:12])
    for line in replayed["differences"]:
        log.warning("other than in the run that is replayed: %s", line)
    if not replayed["differences"]:
        log.info("code, packages, host and configuration are those of that run")


def check_data(run: Run) -> None:
    """Raise DataError where the data that a replay has prepared isn't what the replayed run had, unless its user asked for other."""
    replayed = run.record["replay_of"]
    lines = [line for role, now in data_of(run.record).items() for line in _in_split(role, replayed["data"].get(role), now)]
    if not lines:
        return
    replayed["other_data"] = lines
    run.save(replay_of=replayed)
    if not replayed["takes_other_data"]:
        tables = f"compare {replayed['path']}/manifest with {run.path}/manifest"
        raise DataError(f"other data than in the run that is replayed: {listed(lines, by='; ')}; {tables}, or go on with --other-data.")
    for line in lines:
        log.warning("other data than in the run that is replayed: %s", line)


def _in_split(role: str, was: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is other in a split. A run from before data had fingerprints is compared by numbers of utterances and hours."""
    if was is None:
        return
    known = [key for key in ("fingerprint",) if was.get(key)] or ["utterances", "hours"]
    if any(was.get(key) != now[key] for key in known):
        told = [_told(facts) for facts in (was, now)]
        yield f"{role} ({now['split']}) had {told[0]} and has {told[1]}"


def _told(split: Mapping[str, Any]) -> str:
    return f"{split.get('utterances')} utterances, {split.get('hours')} h, fingerprint {split.get('fingerprint') or 'unknown'}"


def metrics_of(run: Run) -> dict[str, Any]:
    """Return a run's metrics; none where the file can't be read."""
    try:
        found = run.metrics
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def in_metrics(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the metrics whose values are other, but for those that measure the machine."""
    return [key for key in dict.fromkeys([*then, *now]) if not MEASURED.search(key) and _value(then, key) != _value(now, key)]


def _value(metrics: Mapping[str, Any], key: str) -> Any:
    return metrics.get(key, "absent")


def _facts(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a record, which may have been edited; empty where there is none."""
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
