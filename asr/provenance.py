"""Where a composed configuration has its values from: lines of YAML files, fields of classes.

In: overrides, by which Hydra's own defaults list names the files in their order. Out: the line that sets each key, the line that
chooses each option of a group, and the field of a class for what no file sets.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from asr import composition, config_files, explanations
from asr.config import Config, import_target

PRIMARY = "config"
EMPTY = "{}"
NOT_OURS = ("hydra", config_files.LOCAL)
"""Groups whose choices aren't a part of an experiment."""


@dataclass(frozen=True)
class Line:
    """A line of a YAML file that sets a key; `file` is its path below a configuration folder, `written` the value as it stands there."""

    file: str
    number: int
    written: str = ""


@dataclass
class Provenance:
    """Where the values of one composition are from. Files are named as below a configuration folder: trainer/ctc.yaml."""

    folders: Sequence[Path]
    parents: dict[str, str] = field(default_factory=dict)
    """Of each file, and of each class as schema/package.module.Class, the file whose defaults list names it; in the order of composing."""
    choices: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Line] = field(default_factory=dict)
    """The line that chooses the option of each group."""
    lines: dict[str, list[Line]] = field(default_factory=dict)
    """The lines that set each key, the one that wins last."""

    def line_of(self, key: str) -> Line | None:
        """Return the line that sets a key, or the mapping that it is in."""
        found = self.lines.get(key)
        if found:
            return found[-1]
        parent = key.rpartition(".")[0]
        return self.line_of(parent) if parent else None

    def sets(self, file: str, key: str) -> bool:
        return any(line.file == file for line in self.lines.get(key, ()))

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Of each file the one that names it, and the keys that it has the last word on."""
        kept: dict[str, dict[str, Any]] = {
            file: {"named_by": parent, "sets": []} for file, parent in self.parents.items() if not file.startswith("schema/")
        }
        for key, lines in self.lines.items():
            kept[lines[-1].file]["sets"].append(key)
        return kept

    def shown(self, line: Line) -> str:
        return f"{shown(line.file, self.folders)}:{line.number}" if line.number else shown(line.file, self.folders)


def of(overrides: Sequence[str], folders: Sequence[Path]) -> Provenance:
    """Return where the values of a composition are from; `folders` are where its files are looked for, conf first."""
    conf = folders[0]
    found = Provenance(folders)
    with (
        composition.same_everywhere(),
        explanations.composing(overrides, conf),
        initialize_config_dir(str(conf), version_base=config_files.VERSION_BASE),
    ):
        listed = GlobalHydra.instance().config_loader().compute_defaults_list(PRIMARY, list(overrides), RunMode.RUN)
    for default in listed.defaults:
        path = str(default.config_path)
        if path.partition("/")[0] in NOT_OURS:
            continue
        name = path if path.startswith("schema/") else f"{path}.yaml"
        found.parents[name] = f"{default.parent}.yaml"
        if not path.startswith("schema/"):
            for key, line in _lines(name, folders, default.package or ""):
                _put(found.lines, key, line)
    for group, choice in listed.overrides.known_choices.items():
        if group.partition("/")[0].partition("@")[0] not in (*NOT_OURS, "experiment") and choice is not None:
            chooser = listed.overrides.override_metadata.get(group)
            file = f"{(chooser.containing_config_path if chooser else None) or PRIMARY}.yaml"
            found.choices[group] = str(choice)
            found.chosen[group] = Line(file, _line_of_choice(_located(file, folders), group))
    return found


def _put(lines: dict[str, list[Line]], key: str, line: Line) -> None:
    """Note a line that sets a key. A value takes the place of a mapping's keys; an empty mapping adds nothing to them."""
    below = [other for other in lines if other.startswith(f"{key}.")]
    if below and line.written == EMPTY:
        return
    for other in below:
        del lines[other]
    lines.setdefault(key, []).append(line)


def shown(file: str, folders: Sequence[Path]) -> str:
    """Return the path of a configuration file as one would type it, such as conf/trainer/ctc.yaml."""
    path = _located(file, folders)
    return str(path.relative_to(folders[0].parent)) if path.is_relative_to(folders[0]) else str(path)


def _located(file: str, folders: Sequence[Path]) -> Path:
    return next((folder / file for folder in folders if (folder / file).is_file()), folders[0] / file)


def _lines(file: str, folders: Sequence[Path], package: str) -> Iterator[tuple[str, Line]]:
    """Yield the keys that a file sets, as they are called in the whole."""
    for keys, number, written in _values(_located(file, folders)):
        if keys[0] != "defaults" and not (file == f"{PRIMARY}.yaml" and keys[0] == "hydra"):
            yield ".".join([*([package] if package else []), *keys]), Line(file, number, written)


def _values(path: Path) -> Iterator[tuple[tuple[str, ...], int, str]]:
    """Yield the keys of a YAML file that hold no mapping, or an empty one, with line and value as written."""
    root = _parsed(path, path.stat().st_mtime_ns)

    def walk(node: yaml.Node, keys: tuple[str, ...], number: int) -> Iterator[tuple[tuple[str, ...], int, str]]:
        if isinstance(node, yaml.MappingNode) and node.value:
            for name, value in node.value:
                yield from walk(value, (*keys, str(name.value)), name.start_mark.line + 1)
        elif keys:
            yield (
                keys,
                number,
                EMPTY if isinstance(node, yaml.MappingNode) else str(node.value) if isinstance(node, yaml.ScalarNode) else "",
            )

    return walk(root, (), 0) if root is not None else iter(())


@lru_cache(maxsize=512)
def _parsed(path: Path, _modified: int) -> yaml.Node | None:
    """Return a file's syntax tree, its merge keys (<<) written out. Composing has refused what is too large."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        _flatten(loader, root)
    finally:
        loader.dispose()
    return root


def _flatten(loader: yaml.SafeLoader, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        for _, value in node.value:
            _flatten(loader, value)


def _line_of_choice(path: Path, group: str) -> int:
    """Return the line of a file's defaults list that chooses a group's option; 0 where it isn't said there."""
    root = _parsed(path, path.stat().st_mtime_ns)
    for name, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if name.value == "defaults" and isinstance(value, yaml.SequenceNode):
            for item in value.value:
                for key, _ in item.value if isinstance(item, yaml.MappingNode) else ():
                    if str(key.value).split()[-1].lstrip("/") == group:
                        return int(key.start_mark.line) + 1
    return 0


def class_of(config: Mapping[str, Any], key: str) -> tuple[type, list[str]]:
    """Return the class whose signature a key belongs to, and the names that lead there from its fields."""
    root, *rest = key.split(".")
    node = config.get(root)
    if isinstance(node, Mapping) and "_target_" in node and rest:
        return import_target(node["_target_"]), rest
    return Config, [root, *rest]


def field_of(config: Mapping[str, Any], key: str) -> str:
    """Return where a class has the default of a key: file, line and field; the file and the class where it has no such field."""
    cls, names = class_of(config, key)
    for name in names:
        owner = next((base for base in cls.__mro__ if name in inspect.get_annotations(base)), None)
        if owner is None:
            break
        hint = get_type_hints(owner)[name]
        inner = next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)
        if inner is None or name == names[-1]:
            return f"{_file_of(owner)}:{_line_of_field(owner, name)} ({owner.__name__}.{name})"
        cls = inner
    return f"{_file_of(cls)} ({cls.__name__})"


def _file_of(cls: type) -> str:
    path = Path(inspect.getsourcefile(cls) or cls.__module__)
    home = config_files.CONF.parent
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _line_of_field(cls: type, name: str) -> int:
    lines, first = inspect.getsourcelines(cls)
    return next((first + i for i, line in enumerate(lines) if re.match(rf"\s+{re.escape(name)}\s*:", line)), first)
