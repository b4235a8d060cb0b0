"""Trees of YAML files as editors, merges and bad disks leave them.

In: a seed, a number and an empty folder. Out: a copy of conf/ there with a file or two spoilt.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from asr.config_files import CONF

USED = "config.yaml trainer/ctc.yaml topology/cpu.yaml experiment/spoken_digits_ctc.yaml experiment/spoken_digits_ctc/v1.yaml".split()
USED += "dataset/spoken_digits.yaml model/wav2vec2_bert_tiny.yaml batching/buckets.yaml gaudi_config/default.yaml".split()
"""The files of the default experiment; spoiling another one would show nothing."""
Spoil = Callable[[random.Random, Path], None]


def spoilt(seed: int, number: int, folder: Path) -> str:
    """Copy conf/ into `folder`, spoil some files of it, and say how."""
    dice = random.Random(f"{seed}-{number}")
    shutil.copytree(CONF, folder, dirs_exist_ok=True)
    said = []
    for _ in range(dice.choices((1, 2), (85, 15))[0]):
        path, spoil = folder / dice.choice(USED), dice.choice(SPOILS)
        if path.is_file():
            spoil(dice, path)
            said.append(f"{spoil.__name__.strip('_')} {path.relative_to(folder)}")
    return ", ".join(said)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def flip_bytes(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 8)):
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def random_bytes(dice: random.Random, path: Path) -> None:
    path.write_bytes(dice.randbytes(dice.choice((1, 10, 1000))))


def cut(dice: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) + 1)])


def drop_lines(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    for _ in range(dice.randint(1, 3)):
        if lines:
            del lines[dice.randrange(len(lines))]
    _write(path, lines)


def indent(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    at = dice.randrange(len(lines) or 1)
    lines[at:at] = [dice.choice((" ", "   ", "\t", "  \t")) + (lines.pop(at) if lines else "a: 1")]
    _write(path, lines)


def dedent(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    for at in dice.sample(range(len(lines)), min(3, len(lines))):
        lines[at] = lines[at].lstrip()
    _write(path, lines)


def swap_lines(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    dice.shuffle(lines)
    _write(path, lines)


def repeat_lines(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    _write(path, lines + dice.sample(lines, min(3, len(lines))))


def insert(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    lines.insert(dice.randint(0, len(lines)), dice.choice(INSERTED))
    _write(path, lines)


def replace_values(dice: random.Random, path: Path) -> None:
    lines = _lines(path)
    for at in dice.sample(range(len(lines)), min(2, len(lines))):
        key, colon, _ = lines[at].partition(":")
        lines[at] = f"{key}{colon} {dice.choice(REPLACED)}"
    _write(path, lines)


def replace_whole(dice: random.Random, path: Path) -> None:
    path.write_text(dice.choice(WHOLE), encoding="utf-8")


def encode(dice: random.Random, path: Path) -> None:
    text = path.read_text(encoding="utf-8") + "# é\n"
    path.write_bytes(text.encode(dice.choice(("utf-16", "utf-32", "utf-16-le", "latin-1", "utf-8-sig", "utf-7", "cp037"))))


def end_lines(dice: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", dice.choice((b"\r\n", b"\r", b"\n\0", b"\xc2\x85"))))


def bomb(dice: random.Random, path: Path) -> None:
    wide = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, dice.choice((3, 12))))
    deep = "".join(f"m{i}: &m{i}\n  x: *m{i - 1}\n  y: *m{i - 1}\n" for i in range(1, dice.choice((3, 40))))
    merged = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, dice.choice((3, 12))))
    kind = dice.choice(
        ("b0: &b0 [lol]\n" + wide, "m0: &m0 {a: 1}\n" + deep, "m0: &m0 {a: 1}\n" + merged, "a: &a [*a]\n", "a: &a {b: *a}\n")
    )
    path.write_text(path.read_text(encoding="utf-8", errors="surrogateescape") + kind, encoding="utf-8", errors="surrogateescape")


def nest(dice: random.Random, path: Path) -> None:
    depth = dice.choice((50, 2000))
    opened, closed = dice.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")))
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\nnested: {opened * depth}1{closed * depth}\n" if closed else f"\nnested:\n  {opened * depth}1\n")


def instead(dice: random.Random, path: Path) -> None:
    """Leave something else than a file."""
    path.unlink()
    kind = dice.choice(("nothing", "folder", "link to itself", "broken link", "link to a device"))
    if kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to({"link to itself": path, "broken link": path.with_name("gone"), "link to a device": Path("/dev/null")}[kind])


def list_wrong_defaults(dice: random.Random, path: Path) -> None:
    lines = [line for line in _lines(path) if line.lstrip().startswith("#")]
    _write(path, [*lines, "defaults:", *(f"  - {dice.choice(DEFAULTS)}" for _ in range(dice.randint(1, 3)))])


SPOILS: list[Spoil] = [
    *(
        flip_bytes,
        flip_bytes,
        flip_bytes,
        random_bytes,
        cut,
        cut,
        drop_lines,
        drop_lines,
        indent,
        indent,
        dedent,
        swap_lines,
        repeat_lines,
        insert,
    ),
    *(
        insert,
        insert,
        replace_values,
        replace_values,
        replace_values,
        replace_whole,
        encode,
        end_lines,
        bomb,
        bomb,
        nest,
        instead,
        list_wrong_defaults,
    ),
    *(list_wrong_defaults,),
]
INSERTED = [
    *("seed: x", "seed: 1\nseed: 2", "? [a, b]\n: c", "1: 2", "null: 3", "true: 4", "[a, b]: c", "{a: 1}: 2", "- a", "a", "a: b: c"),
    *("a: *nowhere", "<<: 1"),
    *("---", "...", "--- !!python/object/apply:os.getcwd []", "a: !!python/name:os.system", "a: !!binary x", "a: !!timestamp x"),
    *("a: 2001-13-45", "%YAML 9.9"),
    *("_target_: os.makedirs", "_target_: 5", "_target_: [a]", "_target_: ''", "_target_: asr.nowhere.X", "_target_: asr.config.Config"),
    *("_target_: null",),
    *("  _target_: os.system", "a: ${seed}", "seed: ${seed}", "a: ${b}\nb: ${a}", "seed: ${oc.env:HOME}", "seed: .nan", "seed: -.inf"),
    *("trainer: null",),
    *("trainer: []", "trainer: 5", "trainer: ${trainer}", "hydra: null", "hydra: 5", "hydra:\n  run: null", "hydra:\n  mode: x"),
    *("hydra:\n  job: []",),
    *("hydra:\n  searchpath: 7", "hydra:\n  launcher: null", "hydra:\n  verbose: 1.5", "hydra:\n  job_logging: 7", "experiment_name: ''"),
    *("experiment_name: a/b",),
    *("dataset: null", "model: x", "stages: train", "stages: {a: 1}", "stages: [null]", "stages: [[train]]", "resume: 1", "\tseed: 1"),
    *("# @package nowhere", "# @package"),
    *("# @package _global_", "é: 1", "'': 1", "a.b: 1", "'a b': 1", "? ", ":", "a: |\n b", "a: >-", "a: 'x", 'a: "\\q"', "a: \x01"),
    *("a: " + "x" * 100_000,),
]  # fmt: skip
REPLACED = [
    "",
    "null",
    "~",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "x",
    "-1",
    "0",
    "1.5",
    ".nan",
    ".inf",
    "1e400",
    "9" * 400,
    "true",
    "'",
    "${seed}",
    "${x}",
    "???",
    "&a *a",
]
REPLACED += [
    "2001-01-01",
    "2001-01-01 00:00:00",
    "!!binary aGk=",
    "!!set {a}",
    "0o17",
    "12:30:45",
    "|",
    ">",
    "- a",
    "a: b",
    "@a",
    "`a",
    "%a",
    "*a",
    "!a b",
]
WHOLE = [
    "",
    "\n",
    "# only a comment\n",
    "5\n",
    "text\n",
    "[]\n",
    "- a\n",
    "null\n",
    "{}\n",
    "---\n---\n",
    "true\n",
    "'a'\n",
    "defaults\n",
    "defaults: x\n",
    "defaults: {}\n",
]
WHOLE += [
    "defaults:\n",
    "defaults: [null]\n",
    "defaults: []\n",
    "2001-01-01\n",
    "!!set {a}\n",
    "# @package _global_\n",
    "\ufeff",
    "\ufeff{}\n",
    "...\n",
    "--- a\n--- b\n",
]
DEFAULTS = [
    *("_self_", "_self_: 1", "nowhere", "dataset: nowhere", "dataset", "dataset:", "dataset: []", "dataset: [a, b]", "dataset: 5"),
    *("config", "/config", "5", "null"),
    *("[]", "{}", "{a: b, c: d}", "override dataset: hub", "override /dataset: hub", "override nowhere: a", "override /nowhere: a"),
    *("optional a: b", "optional"),
    *("/schema/asr.nowhere.X@_here_", "/schema/os.makedirs@_here_", "/schema/asr.config.Config", "/schema/", "/schema/x"),
    *("/schema/asr.errors.AsrError@a",),
    *("dataset@: hub", "dataset@@: hub", "dataset@a.b.c: hub", "'../dataset': hub", "/dataset: ../config", "dataset: ${model}"),
    *("dataset: ${nowhere}", "'~dataset'"),
    *("override hydra/launcher: nowhere", "override hydra/job_logging: default", "trainer: ctc", "/trainer/ctc@trainer", "ctc"),
    *("/experiment: spoken_digits_ctc",),
    *("spoken_digits_ctc", "spoken_digits_ctc/v1", "cpu", "é", "a b", "''", "dataset: ???", "dataset: .", "dataset: /etc/passwd"),
    *("experiment: spoken_digits_ctc",),
]  # fmt: skip
