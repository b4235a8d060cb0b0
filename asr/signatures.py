"""What installed classes take, read from their source without importing them.

In: a module's dotted name and a class. Out: its dataclass fields, constructor parameters or enum values.
Importing transformers takes seconds; parsing the one file takes a tenth of one.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One field of a dataclass: its annotation as source text and, for enums, the values it takes."""

    name: str
    annotation: str
    values: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Say whether `value`, as YAML or the command line gave it, fits the annotation."""
        if self.values:
            return value in self.values or (value is None and self.takes_none())
        return _fits(ast.parse(self.annotation, mode="eval").body, value)

    def takes_none(self) -> bool:
        return "None" in self.annotation or "Optional" in self.annotation


@lru_cache
def _module(name: str) -> tuple[Path, ast.Module] | None:
    """Return the file and syntax tree of a module, importing neither it nor its parent packages."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if path.is_file():
                return path, ast.parse(path.read_text(encoding="utf-8"))
    return None


def _class(module: str, name: str) -> ast.ClassDef | None:
    found = _module(module)
    if found is None:
        return None
    return next((n for n in found[1].body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _imported_from(module: str, name: str) -> str | None:
    """Return the module that `module` imports `name` from."""
    found = _module(module)
    for node in ast.walk(found[1]) if found else []:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            package = module.split(".")[: -node.level] if node.level else []
            return ".".join([*package, *([node.module] if node.module else [])])
    return None


@lru_cache
def enum_values(module: str, name: str) -> tuple[str, ...]:
    """Return the string values of the enum `name`, defined in or imported by `module`; empty if it is none."""
    node = _class(module, name)
    if node is None:
        origin = _imported_from(module, name)
        return enum_values(origin, name) if origin and origin != module and _module(origin) else ()
    if not any(ast.unparse(base).endswith("Enum") for base in node.bases):
        return ()
    values = (n.value for n in node.body if isinstance(n, ast.Assign))
    return tuple(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def dataclass_fields(module: str, name: str) -> dict[str, Parameter]:
    """Return the fields of a dataclass and of the dataclasses that it inherits from, by name.

    Empty when the module isn't installed.
    """
    node = _class(module, name)
    if node is None:
        return {}
    fields: dict[str, Parameter] = {}
    for base in node.bases:
        base_name = ast.unparse(base)
        origin = module if _class(module, base_name) else _imported_from(module, base_name)
        if origin:
            fields |= dataclass_fields(_definition_of(origin, base_name), base_name)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if item.target.id.startswith("_") or "init=False" in ast.unparse(item.value or item.target):
                continue
            text = ast.unparse(item.annotation)
            fields[item.target.id] = Parameter(item.target.id, text, _values_of(module, item.annotation))
    return fields


def _definition_of(module: str, name: str) -> str:
    """Follow a lazy package such as `transformers` to the module that defines `name`."""
    if _class(module, name):
        return module
    return _imported_from(module, name) or module


def constructor_parameters(module: str, name: str) -> tuple[str, ...]:
    """Return the named parameters of a class' `__init__`; empty when it can't be found."""
    node = _class(module, name)
    for item in node.body if node else []:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
            return tuple(a.arg for a in arguments if a.arg != "self")
    return ()


def string_dict(module: str, name: str) -> dict[str, str]:
    """Return the pairs of a module-level `NAME = OrderedDict([("a", "b"), ...])` or dict of strings."""
    found = _module(module)
    for node in found[1].body if found else []:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            pairs = (n for n in ast.walk(node) if isinstance(n, ast.Tuple) and len(n.elts) == 2)
            return {
                a.value: b.value
                for a, b in (pair.elts for pair in pairs)
                if isinstance(a, ast.Constant) and isinstance(b, ast.Constant)
            }
    return {}


def _union_members(node: ast.expr) -> list[ast.expr]:
    """Return the alternatives of `Optional[X]`, `Union[A, B]` and `A | B`, flat."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Optional", "Union"):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        none = [ast.Constant(None)] if ast.unparse(node.value) == "Optional" else []
        return [m for i in inner for m in _union_members(i)] + none
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union_members(node.left) + _union_members(node.right)
    return [node]


def _values_of(module: str, annotation: ast.expr) -> tuple[str, ...]:
    for member in _union_members(annotation):
        if isinstance(member, ast.Name) and (values := enum_values(module, member.id)):
            return values
    return ()


def _fits(annotation: ast.expr, value: Any) -> bool:
    return any(_fits_one(member, value) for member in _union_members(annotation))


def _fits_one(annotation: ast.expr, value: Any) -> bool:
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return value is None
    name = ast.unparse(annotation.value if isinstance(annotation, ast.Subscript) else annotation).lower()
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "str":
        return isinstance(value, str)
    if name == "list":
        return isinstance(value, list)
    if name == "dict":
        return isinstance(value, dict)
    return True  # a type of the library's own: its constructor judges
