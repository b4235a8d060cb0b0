"""What a rehearsal found: facts from the ranks, what was replaced, what would have failed. Saved as rehearsal.json, shown as a table.

In: counts that were made while it ran, never a plan's. Out: one JSON file and one table. Nothing about speed, memory or numerics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import runs
from asr.supervision import LAST_LINES

if TYPE_CHECKING:
    from rich.table import Table

    from asr.rehearsal.shrink import Change

REHEARSAL_FILE = "rehearsal.json"
FACTS_FILE = Path("ranks") / "facts.json"
"""What the first rank hands to the parent, until that concludes."""
MOST_LISTED = 10
SCHEMA = 1


@dataclass
class Facts:
    """What the first rank found out, in order; `doing` is what it was at when something stopped it."""

    found: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What works and costs time."""
    doing: str | None = "starting"

    def __ior__(self, more: Mapping[str, Any]) -> Facts:
        self.found |= more
        return self

    def __getitem__(self, name: str) -> Any:
        return self.found[name]

    def ran(self, **parts: str) -> None:
        """Note that a part of the story came to its end."""
        self.found["ran"] = {**self.found.get("ran", {}), **parts}

    def save(self, run_dir: Path) -> None:
        runs.write_json(run_dir / FACTS_FILE, {**_finite(self.found), **_without(asdict(self), "found")})


def _without(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def _finite(value: Any) -> Any:
    """Return the same with null for numbers that are none: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")) else value


def conclude(
    run_dir: Path, *, error: str | None, combinations: Sequence[str], sizes: Sequence[Change], substitutions: Sequence[Change]
) -> dict[str, Any]:
    """Complete rehearsal.json with what the parent knows, and return it. `error`: why the ranks ended badly, if they did."""
    handed = run_dir / FACTS_FILE
    facts = json.loads(handed.read_text(encoding="utf-8")) if handed.is_file() else {"failures": [], "doing": "starting"}
    handed.unlink(missing_ok=True)
    doing = facts.pop("doing")
    failures = [*combinations, *facts.pop("failures")]
    facts["input_shapes"] = {phase: facts.pop(f"{phase}_input_shapes", None) for phase in ("train", "eval")}
    if error is not None:
        failures.append(f"{doing or 'ending'} failed: {error.partition(LAST_LINES)[0].strip().rstrip('.')}.")
    verdict = {
        "schema": SCHEMA,
        "passed": not failures,
        **{name: facts.get(name) for name in _ALWAYS},
        **{name: value for name, value in facts.items() if name not in _ALWAYS},
        "shrunk": [asdict(change) for change in sizes],
        "substitutions": [asdict(change) for change in substitutions],
        "warnings": facts.get("warnings", []),
        "failures": failures,
    }
    runs.write_json(run_dir / REHEARSAL_FILE, verdict)
    return verdict


_ALWAYS = "device backend trainer_class model_class train_graphs eval_graphs input_shapes host_syncs_per_step padding_efficiency".split()
"""Keys that rehearsal.json always has; null for what the rehearsal didn't come to."""


def load(run_dir: Path) -> dict[str, Any] | None:
    """Return the verdict of a rehearsal; None for a run that has none, also where it was stopped before one was given."""
    path = run_dir / REHEARSAL_FILE
    found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    return found if "passed" in found else None


def table(verdict: Mapping[str, Any], title: str) -> Table:
    """Return the verdict as people read it in a terminal."""
    from rich.table import Table
    from rich.text import Text

    named = Text(f"rehearsal of {title}: {'passed' if verdict['passed'] else 'FAILED'}", style="table.title")
    shown = Table(title=named, show_header=False, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        shown.add_row(name, Text(text))

    for part, what in (verdict.get("ran") or {}).items():
        row(part, what)
    if verdict["device"]:
        ranks = verdict.get("world_size") or 1
        over = f", {ranks} ranks over {verdict['process_group']}" if ranks > 1 else ""
        row("device", f"{verdict['device']} (the stand-in: host memory, the CPU's kernels){over}")
        row("trainer", str(verdict["trainer_class"]))
        row("model", f"{verdict['model_class']}, a small one with random weights")
        on = [f"{name}: {value}" if not isinstance(value, bool) else name for name, value in verdict["settings"].items() if value]
        row("path", ", ".join([*on, *([f"optimizer: {verdict['optimizer']}"] if "optimizer" in verdict else [])]))
    _add_graphs(row, verdict)
    if verdict["host_syncs_per_step"] is not None:
        first = verdict["host_syncs_in_first_step"]
        row("host syncs", f"{verdict['host_syncs_per_step']:.2g} a step" + (f", {first} in the first" if first else ""))
        for sync in verdict["host_syncs"]:
            row("", f"{sync['op']} at {sync['where']}, {times(sync['times'])}")
    if verdict["padding_efficiency"] is not None:
        planned = verdict.get("planned_padding_efficiency")
        whole = f"; of the whole job's {100 * planned:.1f} %, as planned" if planned else ""
        row("batches", f"{100 * verdict['padding_efficiency']:.1f} % of the input was audio, the rest padding{whole}")
    if verdict.get("resumed"):
        row("resumed", f"largest weight difference {verdict['resumed']['largest_weight_difference']:g}")
    _add_changes(row, "smaller", verdict["shrunk"])
    _add_changes(row, "replaced", verdict["substitutions"])
    for op, number in (verdict.get("dynamic_ops") or {}).items():
        row("dynamic shapes", f"{op}, {times(number)} in training steps: the size of its result depends on data")
    for name, listed in (("costs time", verdict["warnings"]), ("would fail", verdict["failures"])):
        for number, each in enumerate(listed):
            row("" if number else name, each)
    row("no claim", "about speed, memory or numerics: see docs/rehearsal.md")
    return shown


def _add_graphs(row: Any, verdict: Mapping[str, Any]) -> None:
    for name, kind, phase in (("training", "forward and backward", "train"), ("evaluation", "forward", "eval")):
        count = verdict[f"{phase}_graphs"]
        if count is None:
            continue
        captured = ", captured as HPU graphs" if verdict[f"{phase}_graphs_captured"] else ""
        rest = {"train": "the loss and the update", "eval": "losses and tokens"}[phase]
        in_all = verdict[f"graphs_in_{name}"]["in_all"]
        row(f"graphs, {name}", f"{count} for {kind}{captured}; {in_all} would be compiled in all, with {rest}")
        shapes, planned = verdict["input_shapes"][phase], verdict[f"planned_{phase}_shapes"]
        whole = f" (of the whole job's {len(planned)}: length, labels, rows {_listed(planned)})" if planned else ""
        row(f"shapes, {name}", f"{len(shapes)}: {_listed(shapes)}{whole}")


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    listed = ", ".join("x".join(map(str, shape)) for shape in shapes[:MOST_LISTED])
    return listed + (", ..." if len(shapes) > MOST_LISTED else "")


def times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _add_changes(row: Any, name: str, changes: Sequence[Mapping[str, Any]]) -> None:
    for number, change in enumerate(changes):
        row("" if number else name, f"{change['key']}: {change['asked']} -> {change['rehearsed']}; {change['why']}")
