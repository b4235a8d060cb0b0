"""Experiments of a folder, with their versions, and the lock that keeps what each released one composes to.

In: conf/experiment/<name>/v<N>.yaml and conf/experiment/lock.json, or those of a folder of one's own. Out: versions, drafts, releases;
what a version composes to on every machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asr import command_line, composition, config_files, provenance
from asr.config_files import CONF
from asr.errors import ConfigError
from asr.files import written
from asr.provenance import Provenance

LOCK = "lock.json"
FORMAT = 1
VERSION = re.compile(r"v[1-9]\d*")
"""A release once it is in the lock; a file of any other name, such as v3-draft, is a draft."""
NOTE = "What each released version composes to. Made by `asr experiments lock`; not to be edited: to change one, release the next."
HEADER = "# @package _global_\n# The newest version; name one ({name}/v1) to keep to it.\n"
WORTH_A_PROCESS = 6
"""Versions: each takes a fifth of a second."""


@dataclass
class Release:
    """One version as it was released: its configuration, the option of each group, and the files that it was composed of."""

    config: dict[str, Any]
    choices: dict[str, str]
    files: dict[str, dict[str, Any]]
    """Of each file the one whose defaults list names it (`named_by`), and the keys that it had the last word on (`sets`)."""

    def file_of(self, key: str) -> str | None:
        """Return the file that set a key, or the mapping that it is in; None for what was the default of a class."""
        found = next((file for file, entry in self.files.items() if key in entry["sets"]), None)
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

    @property
    def lock_command(self) -> str:
        """What a user types to release what isn't yet."""
        return shlex.join(["asr", "experiments", "lock", *(["--config-dir", str(self.config_dir)] if self.config_dir else [])])

    def overrides(self, name: str) -> list[str]:
        return [f"experiment={name}", *([command_line.searching(self.config_dir)] if self.config_dir else [])]

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
        return {name: sorted(found[name], key=in_order) for name in sorted(found)}

    def composed(self, name: str) -> dict[str, Any]:
        """Return what an experiment composes to on every machine."""
        return composition.to_container(composition.compose_everywhere(self.overrides(name), conf=self.conf))

    def compositions(self, names: Sequence[str]) -> dict[str, dict[str, Any] | ConfigError | None]:
        """Return what each of several experiments composes to, why it doesn't, or None for one without a file; on all cores."""
        num_processes = min(os.cpu_count() or 1, len(names) // WORTH_A_PROCESS)
        if num_processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
            return dict(zip(names, map(self._composed_or_not, names), strict=True))
        context = multiprocessing.get_context("fork")  # nothing is imported again, and no thread of ours runs
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_leave_signals_to_parent) as pool:
            return dict(zip(names, pool.map(self._composed_or_not, names), strict=True))

    def _composed_or_not(self, name: str) -> dict[str, Any] | ConfigError | None:
        try:
            return self.composed(name) if self.file(name).is_file() else None
        except ConfigError as error:
            return error

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
                f"restore it (git checkout); then: {self.lock_command}."
            ) from error

    def write(self, lock: Lock) -> None:
        """Write the lock, a value a line, so that a difference of two reads as what changed."""
        path = self.folder / LOCK
        experiments = {
            name: {
                version: {"config": release.config, "choices": release.choices, "files": release.files}
                for version, release in sorted(versions.items(), key=lambda item: in_order(item[0]))
            }
            for name, versions in sorted(lock.items())
        }
        text = json.dumps({"note": NOTE, "format": FORMAT, "experiments": experiments}, indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with written(path) as aside:
                aside.write_text(text, encoding="utf-8")

    def alias(self, name: str) -> str | None:
        """Return the version that `experiment=<name>` is; None unless its file chooses one and nothing else."""
        path = self.file(name)
        if not path.is_file():
            return None
        config_files.check_yaml(path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        chosen = content.get("defaults") if isinstance(content, dict) and set(content) == {"defaults"} else None
        folder, _, version = (
            chosen[0].rpartition("/") if isinstance(chosen, list) and len(chosen) == 1 and isinstance(chosen[0], str) else ("", "", "")
        )
        return version if folder == Path(name).name else None

    def point(self, name: str, version: str) -> bool:
        """Make `experiment=<name>` a version; return whether it was another. The comment of its file stays."""
        path = self.file(name)
        if self.alias(name) == version:
            return False
        folder = Path(name).name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        comment = "".join(line for line in lines if line.startswith("#")) or HEADER.format(name=name)
        with written(path) as aside:
            aside.write_text(f"{comment}defaults:\n  - {folder}/{version}\n", encoding="utf-8")
        return True


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _read(text: str) -> Lock:
    """Return the releases of a lock; raise ValueError for what isn't one."""
    held = json.loads(text, object_pairs_hook=_without_twins)
    if not isinstance(held, dict) or held.get("format") != FORMAT or not isinstance(held.get("experiments"), dict):
        raise ValueError(f"it is no lock of format {FORMAT}")
    lock: Lock = {}
    for name, versions in held["experiments"].items():
        for version, entry in versions.items() if isinstance(versions, dict) else [("", None)]:
            parts = [entry.get(part) if isinstance(entry, dict) else None for part in ("config", "choices", "files")]
            files = parts[2].values() if isinstance(parts[2], dict) else ()
            whole = all(isinstance(entry, dict) and set(entry) == {"named_by", "sets"} for entry in files)
            if not VERSION.fullmatch(version) or not all(isinstance(part, dict) for part in parts) or not whole:
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


def in_order(version: str) -> tuple[int, int, str]:
    """Return what versions are sorted by: v2 before v10, drafts last."""
    return (0, int(version[1:]), "") if VERSION.fullmatch(version) else (1, 0, version)


def versions_of(lock: Lock, files: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield the name and number of each version that is released or has a file."""
    for name in sorted({*lock, *files}):
        for version in sorted({*lock.get(name, ()), *filter(VERSION.fullmatch, files.get(name, ()))}, key=in_order):
            yield name, version


def newest(versions: Mapping[str, Release]) -> str:
    """Return the newest of an experiment's releases, such as v2."""
    return max(versions, key=in_order)
