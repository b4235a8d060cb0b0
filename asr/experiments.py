"""Released versions of experiments: what each composed to when it was released is locked, and must stay so.

In: a catalogue of versions and its lock. Out: what moved since and by which line, new releases, and what differs between versions and runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr import runs
from asr.catalogue import Catalogue, Lock, Release, in_order, newest, versions_of
from asr.differences import ABSENT, Difference, differences
from asr.drift import Findings, examine
from asr.errors import ConfigError, did_you_mean, listed
from asr.pipeline import Pipeline

__all__ = ["Catalogue", "Difference", "Experiment", "check", "configuration", "differences", "experiments", "locked", "release"]


def locked(name: str, version: str, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """Return the configuration of a released version as it was when it was released; raise ConfigError for one that isn't released."""
    lock = (catalogue or Catalogue()).lock()
    if version not in lock.get(name, {}):
        released = [f"{n}/{v}" for n in lock for v in lock[n]]
        raise ConfigError(f"{name}/{version} is not released.{did_you_mean(f'{name}/{version}', released)}", key="experiment")
    return lock[name][version].config


def check(catalogue: Catalogue) -> Findings:
    """Compose every released version again and return what moved, what isn't released, and what chooses no longer the newest release."""
    lock, files = catalogue.lock(), catalogue.files()
    found = Findings(sum(map(len, lock.values())))
    versions = list(versions_of(lock, files))
    now = catalogue.compositions([f"{name}/{version}" for name, version in versions if version in lock.get(name, ())])
    for name, version in versions:
        full, release = f"{name}/{version}", lock.get(name, {}).get(version)
        if release is None:
            found.problems.append(
                f"{catalogue.shown(full)} is not released: run `{catalogue.lock_command}`, or call it {version}-draft.yaml"
            )
        else:
            examine(catalogue, full, release, now[full], found)
    for name, releases in lock.items():
        if catalogue.alias(name) != newest(releases):
            found.problems.append(
                f"{catalogue.shown(name)} doesn't choose the newest release, {newest(releases)}: run `{catalogue.lock_command}`"
            )
    return found


@dataclass
class Released:
    """What `release` did, or would have done had it `found` nothing."""

    found: Findings
    num_released: int = 0
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    appended: dict[str, list[str]] = field(default_factory=dict)
    """Keys that are new since the release, by version."""
    pointed: list[str] = field(default_factory=list)
    """Files that choose another version now, the newest release."""

    def lines(self) -> list[str]:
        """Return what to show."""
        if self.found:
            return self.found.lines()
        named = {"released": self.added, "replaced": self.replaced, "withdrawn": self.withdrawn, "chooses the newest release": self.pointed}
        said = [f"{what}: {which}" for what, names in named.items() for which in names]
        same: dict[tuple[str, ...], list[str]] = {}
        for version, keys in self.appended.items():
            same.setdefault(tuple(keys), []).append(version)
        said += [f"new keys with their defaults: {listed(keys)} ({listed(versions)})" for keys, versions in same.items()]
        return [*said, f"Released versions: {self.num_released}."]


def release(catalogue: Catalogue, replace: Sequence[str] = ()) -> Released:
    """Lock the versions that aren't yet, and append keys that are new with their defaults; write nothing where `found` has anything.

    `replace` names releases to take as they are now, or to withdraw where their file is gone.
    """
    before, files = catalogue.lock(), catalogue.files()
    known = [f"{name}/{version}" for name in before for version in before[name]]
    for version in replace:
        if version not in known:
            raise ConfigError(f"{version} is not released, so there is nothing to replace.{did_you_mean(version, known)}", key="--replace")
    done, after = Released(Findings(len(known))), Lock()
    versions = list(versions_of(before, files))
    compositions = catalogue.compositions([f"{name}/{version}" for name, version in versions])
    for name, version in versions:
        full, now = f"{name}/{version}", compositions[f"{name}/{version}"]
        released = None if full in replace else before.get(name, {}).get(version)
        if released is not None:
            examine(catalogue, full, released, now, done.found)
            entry = _with_new_keys(catalogue, full, released, now, done)
        elif now is None:
            done.withdrawn.append(full)
            continue
        else:
            (done.replaced if full in replace else done.added).append(full)
            entry = _release(catalogue, full, _releasable(catalogue, full, now))
        after.setdefault(name, {})[version] = entry
    done.num_released = sum(map(len, after.values()))
    if not done.found:
        catalogue.write(after)
        done.pointed = [catalogue.shown(name) for name, releases in after.items() if catalogue.point(name, newest(releases))]
        for name in before.keys() - after.keys():  # withdrawn as a whole: its bare name would lead nowhere
            catalogue.file(name).unlink(missing_ok=True)
    return done


def _with_new_keys(
    catalogue: Catalogue, version: str, released: Release, now: dict[str, Any] | ConfigError | None, done: Released
) -> Release:
    """Return a release with the keys that there are since; as it is where there are none, so that its part of the lock stays the same."""
    if now is None or isinstance(now, ConfigError):
        return released
    appended = [key for key, was, _ in differences(released.config, now) if was is ABSENT]
    done.appended |= {version: appended} if appended else {}
    return _release(catalogue, version, now) if appended else released


def _release(catalogue: Catalogue, version: str, config: dict[str, Any]) -> Release:
    sources = catalogue.provenance(version)
    return Release(config, sources.choices, sources.files)


def _releasable(catalogue: Catalogue, full: str, config: dict[str, Any] | ConfigError) -> dict[str, Any]:
    """Return what a version composes to; raise ConfigError for one that couldn't be launched, or calls itself another."""
    name, _, version = full.rpartition("/")
    try:
        if isinstance(config, ConfigError):
            raise config
        for key, right in (("experiment_name", Path(name).name), ("experiment_version", version)):
            if config[key] != right:
                raise ConfigError(f"is {config[key]!r}; write {right}, as its file is called.", key=key)
        Pipeline.of(config)
    except ConfigError as error:
        raise ConfigError(f"{catalogue.shown(full)} can't be released: {error}") from error
    return config


@dataclass(frozen=True)
class Experiment:
    """One line of the list: released versions, the others, and what the newest says of itself."""

    name: str
    released: list[str]
    drafts: list[str]
    description: str


def experiments(catalogue: Catalogue) -> list[Experiment]:
    """Return the experiments of a catalogue with their versions."""
    lock, files = catalogue.lock(), catalogue.files()
    found = []
    for name in sorted({*lock, *files}):
        released = sorted(lock.get(name, ()), key=in_order)
        there = files.get(name, [])
        shown = next((version for version in [*reversed(released), *there] if version in there), "")
        drafts = [version for version in there if version not in released]
        found.append(Experiment(name, released, drafts, _description(catalogue.file(f"{name}/{shown}")) if shown else "its files are gone"))
    return found


def _description(path: Path) -> str:
    """Return the first line of a file's comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line.removeprefix("# ")
    return ""


def configuration(what: str, catalogue: Catalogue) -> dict[str, Any]:
    """Return the configuration of a version, a draft or a run directory; raise ConfigError for what is none of them."""
    if not Path(what).is_absolute() and catalogue.file(what).is_file():
        return catalogue.composed(what)
    if (Path(what) / runs.RUN_FILE).is_file():
        return dict(runs.Run.load(Path(what)).config)
    name, _, version = what.rpartition("/")
    lock = catalogue.lock()
    if version in lock.get(name, {}):  # its file is gone
        return lock[name][version].config
    files = catalogue.files()
    known = [*files, *(f"{name}/{version}" for name, versions in files.items() for version in versions)]
    raise ConfigError(f"{what} is neither an experiment nor a run directory.{did_you_mean(what, known)}")
