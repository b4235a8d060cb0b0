"""Released versions that compose to something else than when they were released, and what moved them.

In: a release and what its version composes to now. Out: each key that moved, with the line of a file, the choice or the class that
moved it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf

from asr import config_files, provenance
from asr.catalogue import Catalogue, Release
from asr.config import Config, dotted_keys
from asr.differences import ABSENT, as_json, differences, equal
from asr.errors import ConfigError, listed
from asr.provenance import Provenance

MEND = (
    "A release stays what it was: put the value back, or write the old one into the version's own file; "
    "what shall be new is the next version (v<N+1>.yaml, then released)"
)


@dataclass(frozen=True)
class Drift:
    """A key of a released version that has moved, and what moved it."""

    version: str
    key: str
    was: Any
    now: Any
    cause: str


@dataclass
class Findings:
    """What is wrong with the versions of a catalogue."""

    num_released: int = 0
    drifts: list[Drift] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.drifts or self.problems)

    def lines(self) -> list[str]:
        """Return what to show: each cause with the versions that it moves, and below it the keys."""
        said = list(self.problems)
        versions: dict[tuple[str, str], list[str]] = {}
        for drift in self.drifts:
            change = f"    {drift.key}: was {as_json(drift.was)}, now {as_json(drift.now)}" if drift.key else ""
            versions.setdefault((drift.cause, change), []).append(drift.version)
        grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (cause, change), moved in versions.items():
            grouped.setdefault((cause, tuple(moved)), []).append(change)
        for (cause, moving), changes in grouped.items():
            said += [f"{cause} ({listed(moving)})", *filter(None, changes)]
        return said

    def raise_if_any(self) -> None:
        """Raise ConfigError when anything was found."""
        moved = {drift.version for drift in self.drifts}
        if moved:
            of_all = "1 released version composes" if len(moved) == 1 else f"{len(moved)} of {self.num_released} released versions compose"
            raise ConfigError(f"{of_all} to something else than at release. {MEND}.")
        if self.problems:
            raise ConfigError(f"{len(self.problems)} of the versions' files to mend, as said above.")


def examine(catalogue: Catalogue, version: str, release: Release, now: dict[str, Any] | ConfigError | None, found: Findings) -> None:
    """Put into `found` what moved in a released version; `now` is what it composes to, why it doesn't, or None when its file is gone.

    A new key that has its class's default hasn't moved.
    """
    if now is None:
        found.problems.append(
            f"{version} is released, but {catalogue.shown(version)} is gone: restore it (git checkout); "
            f"`{catalogue.lock_command} --replace {version}` withdraws it"
        )
    elif isinstance(now, ConfigError):
        found.drifts.append(
            Drift(version, "", ABSENT, ABSENT, f"it doesn't compose any more ({now}){_setter(catalogue, version, now.key)}")
        )
    else:
        moved = [item for item in differences(release.config, now) if item[1] is not ABSENT or not _is_default(now, item[0], item[2])]
        sources = catalogue.provenance(version) if moved else None
        found.drifts += [Drift(version, key, was, is_now, _cause(key, release, now, sources)) for key, was, is_now in moved if sources]


def _setter(catalogue: Catalogue, version: str, key: str) -> str:
    """Return where a key is set that stops a composition; empty when that can't be told."""
    try:
        sources = catalogue.provenance(version)
    except ConfigError:  # the defaults list itself is wrong, which the first error says
        return ""
    line = sources.line_of(key) if key in sources.lines else None
    return f": {sources.shown(line)}" if line else ""


def _is_default(config: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a value is what its class's signature says; free-form keys have no default."""
    cls, names = provenance.class_of(config, key)
    node: Any = _signature(cls)
    for name in names:
        node = node.get(name, ABSENT) if isinstance(node, Mapping) else ABSENT
    return equal(node, value)


@lru_cache(maxsize=256)
def _signature(cls: type) -> Any:
    return OmegaConf.to_container(config_files.schema_of(f"{cls.__module__}.{cls.__qualname__}"))


def _cause(key: str, release: Release, now: Mapping[str, Any], sources: Provenance) -> str:
    """Return what moved a key: a line that sets it, a file that sets it no longer, a choice, or the default of a class."""
    before, line = release.file_of(key), sources.line_of(key)
    gone = key not in dotted_keys(now)
    if before and before not in sources.parents:
        return _left(before, release, sources)
    if line and line.file not in release.files:
        return _entered(line.file, release, sources)
    if before and not sources.sets(before, key) and (line is None or line.file != before):
        instead = "" if gone else f"; {sources.shown(line) if line else provenance.field_of(now, key)} does"
        return f"{provenance.shown(before, sources.folders)} no longer sets it{instead}"
    if line:
        decided = f", which other keys decide: {line.written}" if "${" in line.written else ""
        return f"{sources.shown(line)} sets it{decided}"
    cls, _ = provenance.class_of(now, key)
    target = f"{cls.__module__}.{cls.__qualname__}"
    then = release.config.get(key.partition(".")[0])
    if cls is not Config and isinstance(then, Mapping) and then.get("_target_") != target:
        return _entered(f"schema/{target}", release, sources)
    return f"{provenance.field_of(now, key)} {'no longer has it' if gone else 'is its default'}"


def _entered(file: str, release: Release, sources: Provenance) -> str:
    """Return why a file or class is among what is composed, which wasn't: a choice, or a file that takes it in."""
    for group, choice in sources.choices.items():
        if f"{group.partition('@')[0]}/{choice}.yaml" == file:
            return _choice(group, release, sources)
    parent = sources.parents.get(file, "")
    if parent in release.files or parent not in sources.parents:
        what = file.removeprefix("schema/") if file.startswith("schema/") else provenance.shown(file, sources.folders)
        return f"{provenance.shown(parent, sources.folders)} takes in {what}"
    return _entered(parent, release, sources)


def _left(file: str, release: Release, sources: Provenance) -> str:
    """Return why a file is no longer among what is composed."""
    for group in {**release.choices, **sources.choices}:
        inside = file.startswith(f"{group.partition('@')[0]}/")
        if inside and release.choices.get(group) != sources.choices.get(group):
            return _choice(group, release, sources)
    parent = release.files[file]["named_by"]
    if parent in release.files and parent not in sources.parents:
        return _left(parent, release, sources)
    return f"{provenance.shown(parent, sources.folders)} no longer takes in {provenance.shown(file, sources.folders)}"


def _choice(group: str, release: Release, sources: Provenance) -> str:
    line = sources.chosen.get(group)
    where = sources.shown(line) if line else "its defaults list"
    return f"{where} chooses {group}={sources.choices.get(group)}, where it was {release.choices.get(group)}"
