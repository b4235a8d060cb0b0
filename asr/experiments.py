"""Released versions of experiments: what each composed to when it was released is locked, and must stay so.

In: conf/experiment/<name>/v<N>.yaml and conf/experiment/lock.json. Out: the lock; what moved since, by which line; what differs between
versions and runs. A file of another name, such as v3-draft.yaml, is a draft: nothing holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from asr import composition, provenance, runs
from asr.composition import CONF
from asr.config import Config
from asr.errors import ConfigError, did_you_mean, listed
from asr.files import written
from asr.pipeline import Pipeline
from asr.provenance import Provenance

LOCK = "lock.json"
FORMAT = 1
VERSION = re.compile(r"v[1-9]\d*")
NOTE = "What each released version composes to. Made by `asr experiments lock`; not to be edited: to change one, release the next."
HEADER = "# @package _global_\n# The newest version; name one ({name}/v1) to keep to it.\n"
MEND = (
    "A release stays what it was: put the value back, or write the old one into the version's own file; "
    "what shall be new is the next version (v<N+1>.yaml, then `asr experiments lock`)"
)


class Absent:
    """Stands for the value of a key that isn't there."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()
Difference = tuple[str, Any, Any]


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Return each dotted key at which two configurations differ, with both values; ABSENT where one hasn't got it.

    Numbers are compared as numbers (3 is 3.0), true is not 1, lists as wholes.

    >>> differences({"a": {"b": 1, "c": 3}}, {"a": {"b": 1.0, "c": 4, "d": None}})
    [('a.c', 3, 4), ('a.d', -, None)]
    """
    return list(_differences(left, right))


def _differences(left: Any, right: Any, key: str = "") -> Iterator[Difference]:
    there = [side for side in (left, right) if side is not ABSENT]
    if all(isinstance(side, Mapping) for side in there) and (any(there) or len(there) == 2):
        for name in dict.fromkeys(name for side in there for name in side):
            below = [side.get(name, ABSENT) if isinstance(side, Mapping) else ABSENT for side in (left, right)]
            yield from _differences(below[0], below[1], f"{key}.{name}" if key else str(name))
    elif not _equal(left, right):
        yield key, left, right


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return not any(_differences(left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right) or (left != left and right != right)  # the last is .nan


# ---- the folder and its lock ----


@dataclass
class Release:
    """One version as it was released: its configuration, the option of each group, and which keys each file set."""

    config: dict[str, Any]
    choices: dict[str, str]
    files: dict[str, list[str]]

    def file_of(self, key: str) -> str | None:
        """Return the file that set a key, or the mapping that it is in; None for what was the default of a class."""
        found = next((file for file, keys in self.files.items() if key in keys), None)
        parent = key.rpartition(".")[0]
        return found or (self.file_of(parent) if parent else None)


Lock = dict[str, dict[str, Release]]


@dataclass(frozen=True)
class Catalogue:
    """The experiments of conf/, or of a folder of one's own beside it, as --config-dir names it."""

    config_dir: Path | None = None
    conf: Path = CONF

    @property
    def folder(self) -> Path:
        return (self.config_dir or self.conf).resolve() / "experiment"

    @property
    def folders(self) -> list[Path]:
        return [self.conf, *([self.config_dir.resolve()] if self.config_dir else [])]

    def overrides(self, name: str) -> list[str]:
        return [f"experiment={name}", *([composition.searching(self.config_dir)] if self.config_dir else [])]

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def shown(self, name: str) -> str:
        return provenance.shown(f"experiment/{name}.yaml", self.folders)

    def files(self) -> dict[str, list[str]]:
        """Return what each experiment's folder holds: versions in their order, then drafts; raise ConfigError for a folder without any."""
        if not self.folder.is_dir():
            raise ConfigError(f"there is no folder {self.folder}; a version is a file experiment/<name>/v<N>.yaml below the folder named.")
        found: dict[str, list[str]] = {}
        for path in self.folder.glob("**/*/*.yaml"):
            found.setdefault(str(path.parent.relative_to(self.folder)), []).append(path.stem)
        return {name: sorted(found[name], key=_in_order) for name in sorted(found)}

    def composed(self, name: str) -> dict[str, Any]:
        """Return what an experiment composes to on every machine."""
        return composition.to_container(composition.compose_everywhere(self.overrides(name), conf=self.conf))

    def provenance(self, name: str) -> Provenance:
        return provenance.of(self.overrides(name), self.folders)

    def lock(self) -> Lock:
        """Return what lock.json holds, empty where there is none; raise ConfigError when it is damaged."""
        path = self.folder / LOCK
        try:
            return _read(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise ConfigError(
                f"{path}{line} can't be read ({' '.join(str(error).split())}). After a merge take one side of it as a whole, else "
                "restore it (git checkout); then: asr experiments lock."
            ) from error


def _read(text: str) -> Lock:
    """Return the releases of a lock; raise ValueError for what isn't one."""
    held = json.loads(text, object_pairs_hook=_without_twins)
    if not isinstance(held, dict) or held.get("format") != FORMAT or not isinstance(held.get("experiments"), dict):
        raise ValueError(f"it is no lock of format {FORMAT}")
    lock: Lock = {}
    for name, versions in held["experiments"].items():
        for version, entry in versions.items() if isinstance(versions, dict) else [("", None)]:
            parts = [entry.get(part) if isinstance(entry, dict) else None for part in ("config", "choices", "files")]
            if not VERSION.fullmatch(version) or not all(isinstance(part, dict) for part in parts):
                raise ValueError(f"{name}/{version} is no version with its config, choices and files")
            lock.setdefault(name, {})[version] = Release(*parts)  # type: ignore[arg-type]
    return lock


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has a key twice, as a merge of two additions makes it: JSON would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twin = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"it holds {twin!r} twice")
    return found


def _in_order(version: str) -> tuple[int, int, str]:
    return (0, int(version[1:]), "") if VERSION.fullmatch(version) else (1, 0, version)


def locked(name: str, version: str, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """Return the configuration of a released version as it was when it was released; raise ConfigError for one that isn't released."""
    lock = (catalogue or Catalogue()).lock()
    if version not in lock.get(name, {}):
        released = [f"{n}/{v}" for n in lock for v in lock[n]]
        raise ConfigError(f"{name}/{version} is not released.{did_you_mean(f'{name}/{version}', released)}", key="experiment")
    return lock[name][version].config


# ---- checking ----


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
            said += [f"{listed(moving)}: {cause}", *filter(None, changes)]
        return said

    def raise_if_any(self) -> None:
        """Raise ConfigError when anything was found."""
        moved = sorted({drift.version for drift in self.drifts})
        if moved:
            raise ConfigError(
                f"{len(moved)} of {self.num_released} released versions compose to something else now. {MEND}.", key="experiment"
            )
        if self.problems:
            raise ConfigError(f"{len(self.problems)} of the above to mend.", key="experiment")


def as_json(value: Any) -> str:
    return "-" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def check(catalogue: Catalogue) -> Findings:
    """Compose every released version again and return what moved, what isn't released, and what chooses no longer the newest release."""
    lock, files = catalogue.lock(), catalogue.files()
    found = Findings(sum(map(len, lock.values())))
    for name, version in _versions(lock, files):
        release = lock.get(name, {}).get(version)
        if release is None:
            file = catalogue.shown(f"{name}/{version}")
            found.problems.append(f"{file} is not released: run `asr experiments lock`, or call it {version}-draft.yaml")
        else:
            _recomposed(catalogue, f"{name}/{version}", release, found)
    for name, versions in lock.items():
        if _chosen_by_alias(catalogue, name) != _newest(versions):
            found.problems.append(
                f"{catalogue.shown(name)} doesn't choose the newest release, {_newest(versions)}: run `asr experiments lock`"
            )
    return found


def _versions(lock: Lock, files: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield the name and number of each version that is released or has a file."""
    for name in sorted({*lock, *files}):
        for version in sorted({*lock.get(name, ()), *filter(VERSION.fullmatch, files.get(name, ()))}, key=_in_order):
            yield name, version


def _newest(versions: Mapping[str, Release]) -> str:
    return max(versions, key=_in_order)


def _recomposed(catalogue: Catalogue, version: str, release: Release, found: Findings) -> dict[str, Any] | None:
    """Return what a released version composes to now; put into `found` what moved, or why there is nothing to return."""
    if not catalogue.file(version).is_file():
        file = catalogue.shown(version)
        found.problems.append(
            f"{version} is released, but {file} is gone: restore it (git checkout); `asr experiments lock --replace {version}` withdraws it"
        )
        return None
    try:
        now = catalogue.composed(version)
    except ConfigError as error:
        found.drifts.append(
            Drift(version, "", ABSENT, ABSENT, f"it doesn't compose any more ({error}){_setter(catalogue, version, error.key)}")
        )
        return None
    moved = [item for item in differences(release.config, now) if item[1] is not ABSENT or not _is_default(now, item[0], item[2])]
    if moved:
        sources = catalogue.provenance(version)
        found.drifts += [Drift(version, key, was, is_now, _cause(key, release, now, sources)) for key, was, is_now in moved]
    return now


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
    node: Any = _signature(f"{cls.__module__}.{cls.__qualname__}")
    for name in names:
        node = node.get(name, ABSENT) if isinstance(node, Mapping) else ABSENT
    return _equal(node, value)


@lru_cache(maxsize=256)
def _signature(target: str) -> Any:
    return OmegaConf.to_container(composition.schema_of(target))


def _cause(key: str, release: Release, now: Mapping[str, Any], sources: Provenance) -> str:
    """Return what moved a key: a line that sets it, a file that sets it no longer, a choice, or the default of a class."""
    before, line = release.file_of(key), sources.line_of(key)
    file = line.file if line else None
    if before and before not in sources.parents:
        return _left(before, release, sources)
    if file and file not in release.files:
        return _entered(file, release, sources)
    if before and before != file and not sources.sets(before, key):
        instead = sources.shown(line) if line else provenance.field_of(now, key)
        return f"{provenance.shown(before, sources.folders)} no longer sets it ({instead} does)"
    if line:
        decided = f", which other keys decide: {line.written}" if "${" in line.written else ""
        return f"{sources.shown(line)} sets it{decided}"
    cls, _ = provenance.class_of(now, key)
    then = release.config.get(key.partition(".")[0])
    if cls is not Config and isinstance(then, Mapping) and then.get("_target_") != f"{cls.__module__}.{cls.__qualname__}":
        return _entered(f"schema/{cls.__module__}.{cls.__qualname__}", release, sources)
    return f"{provenance.field_of(now, key)} is its default"


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
    return f"{provenance.shown(file, sources.folders)} is no longer taken in"


def _choice(group: str, release: Release, sources: Provenance) -> str:
    line = sources.chosen.get(group)
    where = sources.shown(line) if line else "its defaults list"
    return f"{where} chooses {group}={sources.choices.get(group)}, where it was {release.choices.get(group)}"


def _chosen_by_alias(catalogue: Catalogue, name: str) -> str | None:
    """Return the version that `experiment=<name>` is; None unless its file chooses one and nothing else."""
    path = catalogue.file(name)
    if not path.is_file():
        return None
    composition.check_yaml(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    chosen = content.get("defaults") if isinstance(content, dict) and set(content) == {"defaults"} else None
    folder, _, version = (
        chosen[0].rpartition("/") if isinstance(chosen, list) and len(chosen) == 1 and isinstance(chosen[0], str) else ("", "", "")
    )
    return version if folder == Path(name).name else None


# ---- releasing ----


@dataclass
class Released:
    """What `lock` did, or would have done had there not been `found`."""

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
        if self.found.drifts or self.found.problems:
            return self.found.lines()
        named = {"released": self.added, "replaced": self.replaced, "withdrawn": self.withdrawn, "chooses the newest release": self.pointed}
        said = [f"{what}: {which}" for what, names in named.items() for which in names]
        same: dict[tuple[str, ...], list[str]] = {}
        for version, keys in self.appended.items():
            same.setdefault(tuple(keys), []).append(version)
        said += [f"new keys with their defaults: {listed(keys)} ({listed(versions)})" for keys, versions in same.items()]
        return [*said, f"{self.num_released} versions are released."]


def lock(catalogue: Catalogue, replace: Sequence[str] = ()) -> Released:
    """Release what isn't yet, and append keys that are new with their defaults; write nothing when a release has moved, which `found` says.

    `replace` names releases to take as they are now, or to withdraw where their file is gone.
    """
    before, files = catalogue.lock(), catalogue.files()
    known = [f"{name}/{version}" for name in before for version in before[name]]
    for version in replace:
        if version not in known:
            raise ConfigError(f"{version} is not released, so there is nothing to replace.{did_you_mean(version, known)}", key="--replace")
    done, after = Released(Findings(len(known))), Lock()
    for name, version in _versions(before, files):
        full = f"{name}/{version}"
        release = None if full in replace else before.get(name, {}).get(version)
        if full in replace and not catalogue.file(full).is_file():
            done.withdrawn.append(full)
            continue
        now = _recomposed(catalogue, full, release, done.found) if release else _releasable(catalogue, name, version)
        if now is None:
            continue
        sources = catalogue.provenance(full)
        after.setdefault(name, {})[version] = Release(now, sources.choices, sources.files)
        if release is None:
            (done.replaced if full in replace else done.added).append(full)
        elif appended := [key for key, was, _ in differences(release.config, now) if was is ABSENT]:
            done.appended[full] = appended
    done.num_released = sum(map(len, after.values()))
    if not done.found.drifts and not done.found.problems:
        _write(catalogue.folder / LOCK, after)
        done.pointed = [catalogue.shown(name) for name, versions in after.items() if _point(catalogue, name, _newest(versions))]
    return done


def _releasable(catalogue: Catalogue, name: str, version: str) -> dict[str, Any]:
    """Return what a version composes to; raise ConfigError for one that couldn't be launched, or calls itself another."""
    file = catalogue.shown(f"{name}/{version}")
    try:
        config = catalogue.composed(f"{name}/{version}")
        for key, right in (("experiment_name", Path(name).name), ("experiment_version", version)):
            if config[key] != right:
                raise ConfigError(f"is {config[key]!r}; write {right}, as the file is called.", key=key)
        Pipeline.of(config)
    except ConfigError as error:
        raise ConfigError(f"{file} can't be released: {error}") from error
    return config


def _write(path: Path, lock: Lock) -> None:
    """Write the lock, a value a line, so that a difference of two reads as what changed."""
    experiments = {
        name: {
            version: {"config": release.config, "choices": release.choices, "files": release.files}
            for version, release in sorted(versions.items(), key=lambda item: _in_order(item[0]))
        }
        for name, versions in sorted(lock.items())
    }
    text = json.dumps({"note": NOTE, "format": FORMAT, "experiments": experiments}, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with written(path) as aside:
            aside.write_text(text, encoding="utf-8")


def _point(catalogue: Catalogue, name: str, version: str) -> bool:
    """Make `experiment=<name>` a version; return whether it was another. The comment of its file stays."""
    path = catalogue.file(name)
    if _chosen_by_alias(catalogue, name) == version:
        return False
    folder = Path(name).name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    comment = "".join(line for line in lines if line.startswith("#")) or HEADER.format(name=name)
    with written(path) as aside:
        aside.write_text(f"{comment}defaults:\n  - {folder}/{version}\n", encoding="utf-8")
    return True


# ---- showing ----


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
        released = sorted(lock.get(name, ()), key=_in_order)
        there = files.get(name, [])
        shown = next((version for version in [*reversed(released), *there] if version in there), "")
        drafts = [version for version in there if version not in released]
        found.append(Experiment(name, released, drafts, _description(catalogue.file(f"{name}/{shown}")) if shown else "its files are gone"))
    return found


def _description(path: Path) -> str:
    """Return the first sentence's line of a file's comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line.removeprefix("# ")
    return ""


def configuration(what: str, catalogue: Catalogue) -> dict[str, Any]:
    """Return the configuration of a version, a draft or a run directory; raise ConfigError for what is none of them."""
    if catalogue.file(what).is_file():
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
