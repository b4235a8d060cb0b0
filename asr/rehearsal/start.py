"""The parent's part of a rehearsal: shrink the experiment, run it where the stand-in device is, conclude.

In: a composed configuration. Out: a run with rehearsal.json, the verdict on the terminal, and exit code 0 only when all ran.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from asr import compatibility, experiment
from asr.errors import ConfigError, DataError
from asr.pipeline import Pipeline
from asr.rehearsal import device, verdict
from asr.rehearsal.shrink import shrink
from asr.runs import Run
from asr.stops import PREEMPTED, End

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals by which a library's code ends its process: a finding, not a stop."""


def check(composed: Mapping[str, Any]) -> Pipeline:
    """Raise ConfigError for an experiment that can't be rehearsed, or not on this host; return what would be.

    A dry run, which needs no device, says on stderr what would be replaced, and what can't go together.
    """
    smaller = shrink(composed)
    rehearsed = Pipeline.of(smaller.config)
    if not rehearsed.dry_run:
        device.check_host()
        rehearsed.check_host()
        return rehearsed
    for change in smaller.substitutions:
        print(f"replaced: {change.key}: {change.asked} -> {change.rehearsed}; {change.why}", file=sys.stderr)
    for problem in _combinations(composed, {change.key for change in smaller.substitutions}):
        print(f"warning: {problem}", file=sys.stderr)
    return rehearsed


def _combinations(composed: Mapping[str, Any], replaced: Collection[str]) -> list[str]:
    """Return what can't go together in the whole job on HPUs, but for what a rehearsal replaces: that can't go on this host."""
    topology = composed["topology"]
    if topology["device"] != "hpu":
        topology = {**topology, "device": "hpu", "use_habana": True, "use_lazy_mode": True, "backend": None}
    asked = Pipeline.of({**composed, "topology": topology})
    return [str(problem) for problem in compatibility.problems(asked, on_this_host=False) if problem.key not in replaced]


def start(
    composed: Mapping[str, Any], run_dir: Path, *, overrides: Sequence[str], in_child: bool, named: bool = True
) -> tuple[int, Run | None]:
    """Rehearse an experiment in `run_dir`; as asr.experiment.start, which it runs with a smaller one. A rehearsal is never resumed."""
    smaller = shrink(composed)
    combinations = _combinations(composed, {change.key for change in smaller.substitutions})

    def judge(run: Run, end: End) -> End:
        if end.exit_code in (DataError.exit_code, PREEMPTED) or (end.exit_code > 128 and end.exit_code - 128 not in CRASHES):
            return end  # bad data, or stopped: nothing was found out about the path
        if end.exit_code == ConfigError.exit_code and not combinations:
            return end  # as a launch would end
        found = verdict.conclude(
            run.path,
            error=end.error if end.exit_code else None,
            combinations=combinations,
            sizes=smaller.sizes,
            substitutions=smaller.substitutions,
        )
        return (
            End()
            if found["passed"]
            else End(1, f"{len(found['failures'])} of what was rehearsed would fail: see {run.path / verdict.REHEARSAL_FILE}")
        )

    code, run = experiment.start(
        {**smaller.config, "resume": "never"}, run_dir, overrides=overrides, in_child=True, before=device.build, judge=judge
    )
    found = verdict.load(run.path) if run is not None else None
    if run is not None and found is not None:
        from rich import print as show

        show(verdict.table(found, f"{run.record['experiment']} {run.record['version']}"))
    return code, run
