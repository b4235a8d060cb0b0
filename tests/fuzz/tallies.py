"""How a number of fuzzed cases ended: the same for the tests and for benchmarks/faults.py.

In: a seed, how many, and an empty folder. Out: counts by outcome, the worst seconds and memory, and each case that broke its promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzzed_files
import fuzzed_overrides
from trial import Outcome, outcomes, real_launch

MOST_BYTES = 1 << 30
"""Of the process that takes the cases; the one that reads audio has imported torch."""


@dataclass
class Tally:
    """`codes` counts exit codes, or "decoded" and "reported"; a case is named so that it can be made again."""

    codes: Counter[int | str] = field(default_factory=Counter)
    worst_seconds: float = 0.0
    worst: str = ""
    peak_bytes: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, case: object, outcome: Outcome, broken: str) -> None:
        self.codes[outcome.code] += 1
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        if outcome.seconds > self.worst_seconds:
            self.worst_seconds, self.worst = outcome.seconds, name
        if outcome.peak_bytes > MOST_BYTES:
            broken = broken or f"took {outcome.peak_bytes >> 20} MiB"
        if broken:
            self.failures.append(f"{name}: {str(case)[:500]}: {broken}\n{outcome.err[-1500:]}")


def command_lines(seed: int, number: int, folder: Path) -> Tally:
    """Try fuzzed command lines up to where a run would start."""
    return _launched({f"seed {seed}, command line {i}": fuzzed_overrides.command_line(seed, i) for i in range(number)}, folder)


def trees(seed: int, number: int, folder: Path) -> Tally:
    """Try the default experiment with spoilt copies of conf/."""
    cases = {}
    for i in range(number):
        said = fuzzed_files.spoilt(seed, i, folder / "conf" / str(i))
        cases[f"seed {seed}, tree {i}: {said}"] = ["--config-path", str(folder / "conf" / str(i)), "dry_run=true"]
    return _launched(cases, folder)


def launches(seed: int, number: int, folder: Path) -> Tally:
    """Start a process for each of the first command lines that are refused and that a shell can pass on."""
    tally, cwd = Tally(), _deep(folder)
    lines = [fuzzed_overrides.command_line(seed, i) for i in range(2 * number)]  # about nine of ten are refused
    lines = [words for words in lines if fuzzed_overrides.can_be_typed(words)]
    for words, tried in zip(lines, outcomes("launch", lines, cwd), strict=True):
        if tried.code == 2 and tally.codes.total() < number:
            outcome = real_launch(words, cwd)
            tally.add(f"seed {seed}, launch {tally.codes.total()}", words, outcome, outcome.breaks())
    return tally


def sounds(seed: int, number: int, folder: Path) -> Tally:
    """Read spoilt audio files as a run does."""
    cases = {f"seed {seed}, sound {i}": {"seed": seed, "number": i} for i in range(number)}

    def breaks(outcome: Outcome) -> str:
        if outcome.code not in ("decoded", "reported"):
            return str(outcome.code)
        return "" if outcome.code == "decoded" or "case-" in outcome.err else "is reported without its name"

    return _tally(cases, outcomes("sound", cases.values(), folder), breaks)


def _launched(cases: Mapping[str, list[str]], folder: Path) -> Tally:
    return _tally(cases, outcomes("launch", cases.values(), _deep(folder)), Outcome.breaks)


def _tally(cases: Mapping[str, Any], ended: Iterable[Outcome], breaks: Callable[[Outcome], str]) -> Tally:
    tally = Tally()
    for (name, case), outcome in zip(cases.items(), ended, strict=True):
        tally.add(name, case, outcome, breaks(outcome))
    return tally


def _deep(folder: Path) -> Path:
    """Return a folder for launches: what climbs out of it stays in the given one."""
    made = folder / "a" / "b" / "c"
    made.mkdir(parents=True, exist_ok=True)
    return made
