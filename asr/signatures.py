"""What installed classes take, read from their source without importing them.

In: a module's dotted name and a class. Out: its dataclass fields, constructor parameters or enum values.
Importing transformers takes seconds; parsing the one file takes a tenth of one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
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
def _source(module: str) -> str:
    """Return a module's source, importing neither it nor its parent packages; empty when it isn't installed."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if path.is_file():
                return path.read_text(encoding="utf-8")
    return ""


def _class(module: str, name: str, *, until: str = "") -> ast.ClassDef | None:
    """Return the syntax tree of one class, up to the first line that starts with `until`.

    Only that part is parsed: the fields of TrainingArguments are a third of their file.
    """
    source = _source(module)
    begin = re.search(rf"^class {re.escape(name)}\b", source, re.MULTILINE)
    if begin is None:
        return None
    block = source[begin.start() :]
    after = re.search(r"\n(?=[A-Za-z@_])", block)
    block = block[: after.start()] if after else block
    cut = block.find(f"\n{until}") if until else -1
    node = ast.parse(block[:cut] if cut >= 0 else block).body[0]
    return node if isinstance(node, ast.ClassDef) else None


def _imported_from(module: str, name: str) -> str | None:
    """Return the module that `module` imports `name` from at its top level."""
    for found in re.finditer(r"^from (\.*)([\w.]*) import (\([^)]*\)|[^\n]+)", _source(module), re.MULTILINE):
        dots, origin, names = found.groups()
        if re.search(rf"\b{re.escape(name)}\b", names):
            package = module.split(".")[: -len(dots)] if dots else []
            return ".".join([*package, *([origin] if origin else [])])
    return None


@lru_cache
def enum_values(module: str, name: str) -> tuple[str, ...]:
    """Return the string values of the enum `name`, defined in or imported by `module`; empty if it is none."""
    node = _class(module, name)
    if node is None:
        origin = _imported_from(module, name)
        return enum_values(origin, name) if origin and origin != module else ()
    if not any(ast.unparse(base).endswith("Enum") for base in node.bases):
        return ()
    values = (n.value for n in node.body if isinstance(n, ast.Assign))
    return tuple(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def dataclass_fields(module: str, name: str) -> dict[str, Parameter]:
    """Return the fields of a dataclass and of the dataclasses that it inherits from, by name.

    Empty when the module isn't installed.
    """
    node = _class(module, name, until="    def ")
    if node is None:
        return {}
    fields: dict[str, Parameter] = {}
    for base in node.bases:
        base_name = ast.unparse(base)
        origin = _imported_from(module, base_name)
        fields |= dataclass_fields(_definition_of(origin, base_name) if origin else module, base_name)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if item.target.id.startswith("_") or "init=False" in ast.unparse(item.value or item.target):
                continue
            text = ast.unparse(item.annotation)
            fields[item.target.id] = Parameter(item.target.id, text, _values_of(module, item.annotation))
    return fields


def _definition_of(module: str, name: str) -> str:
    """Follow a lazy package such as `transformers` to the module that defines `name`."""
    return _imported_from(module, name) or module


def constructor_parameters(module: str, name: str) -> tuple[str, ...]:
    """Return the named parameters of a class' `__init__`, or a dataclass' own fields; empty when it can't be found."""
    return tuple(name for name, _ in _parameters(module, name))


def constructor_defaults(module: str, name: str) -> dict[str, Any]:
    """Return the literal defaults of a class' `__init__` by parameter, or of a dataclass' own fields; empty when it can't be found."""
    return {name: ast.literal_eval(value) for name, value in _parameters(module, name) if value is not None and _is_literal(value)}


def _parameters(module: str, name: str) -> list[tuple[str, ast.expr | None]]:
    """Return parameters with their defaults. Configs of transformers 4.55 have an `__init__`, those of 5 are dataclasses."""
    node = _class(module, name)
    for item in node.body if node else []:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = [*item.args.posonlyargs, *item.args.args]
            defaults = [*[None] * (len(positional) - len(item.args.defaults)), *item.args.defaults, *item.args.kw_defaults]
            pairs = zip([*positional, *item.args.kwonlyargs], defaults, strict=True)
            return [(argument.arg, default) for argument, default in pairs if argument.arg != "self"]
    annotated = (item for item in node.body if isinstance(item, ast.AnnAssign)) if node else ()
    return [(item.target.id, item.value) for item in annotated if isinstance(item.target, ast.Name) and not item.target.id.startswith("_")]


def function_parameters(module: str, name: str) -> tuple[str, ...]:
    """Return the named parameters of a module's top-level function; empty when it can't be found."""
    source = _source(module)
    begin = re.search(rf"^def {re.escape(name)}\b", source, re.MULTILINE)
    if begin is None:
        return ()
    block = source[begin.start() :]
    after = re.search(r"\n(?=[A-Za-z@_])", block)
    node = ast.parse(block[: after.start()] if after else block).body[0]
    assert isinstance(node, ast.FunctionDef)
    return tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def _is_literal(node: ast.expr) -> bool:
    return all(isinstance(n, (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.UnaryOp, ast.USub, ast.Load)) for n in ast.walk(node))


def string_dict(module: str, name: str) -> dict[str, str]:
    """Return the pairs of a module-level `NAME = OrderedDict([("a", "b"), ...])`, or `NAME = {"a": "b", ...}`, of strings.

    Imported and updated ones are included.
    """
    source, origin = _source(module), _imported_from(module, name)
    pairs = string_dict(origin, name) if origin and origin != module else {}
    for begin in re.finditer(rf"^{re.escape(name)}(?:\.update\(|\b[^=\n]*=).*", source, re.MULTILINE):
        line = begin.group()
        opened = line.count("(") > line.count(")") or line.count("{") > line.count("}")
        close = source.find("\n}" if line.rstrip().endswith("{") else "\n)", begin.start())
        block = source[begin.start() : close] if opened else line
        pairs |= dict(re.findall(r'"([^"]+)"\s*[,:]\s*"([^"]+)"', block))
    return pairs


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
