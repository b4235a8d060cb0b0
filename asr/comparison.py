"""Runs side by side: what differs in their configurations, their metrics, and whether their word error rates differ by more than chance.

In: run directories, the first of which the others are compared with. Out: tables in the terminal, and compare.html.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from asr import metrics, runs, statistics
from asr.alignment import Aligned, aligned
from asr.circumstances import MEASURED, metrics_of
from asr.config import WITHOUT_EFFECT
from asr.differences import ABSENT, as_json, equal
from asr.errors import ConfigError
from asr.report import plain_table, shown_path
from asr.runs import Run
from asr.statistics import Paired

PAGE_FILE = "compare.html"
MOST_UTTERANCES = 25
"""Of a pair of runs, on the page: those in which they differ most."""
MOST_RUNS = len(string.ascii_uppercase)


@dataclass
class Scored:
    """One utterance as a run heard it."""

    reference: str
    hypothesis: str
    errors: int


@dataclass
class Side:
    """One of the runs, by the letter that stands for it."""

    letter: str
    run: Run
    config: dict[str, Any]
    metrics: dict[str, Any]
    predictions: dict[str, Scored]

    @property
    def title(self) -> str:
        return f"{self.run.record['experiment']} {self.run.record.get('version', '')}".strip()

    @property
    def path(self) -> str:
        return shown_path(self.run.path)


@dataclass
class Heard:
    """An utterance of a pair of runs."""

    id: str
    first: Scored
    other: Scored

    @property
    def more(self) -> int:
        """Errors that the other run makes more; below zero, less."""
        return self.other.errors - self.first.errors

    @cached_property
    def words(self) -> list[list[Aligned]]:
        """What the first run heard, and the other, word by word beside the reference."""
        return list(aligned([self.first.reference] * 2, [self.first.hypothesis, self.other.hypothesis]))


@dataclass
class Pair:
    """The first run and another, over the utterances that both have scored."""

    first: Side
    other: Side
    utterances: list[Heard] = field(default_factory=list)
    num_unpaired: tuple[int, int] = (0, 0)
    """Utterances that only the first, or only the other, has."""
    num_other_references: int = 0
    """Utterances whose references differ, as with other rules for text: their errors can't be compared."""

    @cached_property
    def difference(self) -> Paired | None:
        """The other's word error rate less the first's; None where they have nothing in common."""
        import numpy as np

        if not self.utterances:
            return None
        words = np.array([metrics.counted("wer", heard.first.reference, "")[1] for heard in self.utterances])
        first, other = (np.array([getattr(heard, name).errors for heard in self.utterances]) for name in ("first", "other"))
        return statistics.paired(first, other, words) if words.any() else None

    @property
    def worst(self) -> list[Heard]:
        """The utterances in which they differ most; none in which they make as many errors."""
        differing = [heard for heard in self.utterances if heard.more]
        return sorted(differing, key=lambda heard: (-abs(heard.more), heard.id))[:MOST_UTTERANCES]

    @property
    def num_better(self) -> int:
        return sum(heard.more < 0 for heard in self.utterances)

    @property
    def num_worse(self) -> int:
        return sum(heard.more > 0 for heard in self.utterances)

    @property
    def verdict(self) -> str:
        """Whether they differ, in a sentence."""
        first, other = self.first.letter, self.other.letter
        found = self.difference
        if found is None:
            return f"{other} and {first} can't be compared: {self._why_not()}"
        if found.is_significant():
            return f"{other} is {'better' if found.difference < 0 else 'worse'} than {first}: more than chance explains"
        return f"{other} and {first} don't differ by more than chance explains"

    def _why_not(self) -> str:
        silent = [side.letter for side in (self.first, self.other) if not side.predictions]
        if silent:
            return f"{' and '.join(silent)} has scored no utterance"
        if self.num_other_references:
            return "the references of their utterances differ"
        return "nothing is said in any utterance" if self.utterances else "they have no utterance in common"

    @property
    def measured(self) -> str:
        """The difference in numbers; empty where there is none."""
        found = self.difference
        if found is None:
            return ""
        low, high = 100 * found.low, 100 * found.high
        p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
        return f"{100 * found.difference:+.2f} points of WER (95 %: {low:+.2f} to {high:+.2f}), {p_value}"

    @property
    def left_out(self) -> list[str]:
        """What isn't compared, with numbers; empty where all is."""
        said = [
            f"{number} utterances only in {side.letter}"
            for number, side in zip(self.num_unpaired, (self.first, self.other), strict=True)
            if number
        ]
        if self.num_other_references:
            said.append(f"{self.num_other_references} utterances with other references (other rules for text, or other data)")
        return said


@dataclass
class Comparison:
    """Several runs."""

    sides: list[Side]

    @property
    def first(self) -> Side:
        return self.sides[0]

    @cached_property
    def pairs(self) -> list[Pair]:
        return [_paired(self.first, other) for other in self.sides[1:]]

    @cached_property
    def keys(self) -> dict[str, list[Any]]:
        """The dotted keys at which configurations differ, with the value of each run."""
        every = [runs.flat(side.config) for side in self.sides]
        names = [name for name in dict.fromkeys(name for one in every for name in one) if name not in WITHOUT_EFFECT]
        values = {name: [one.get(name, ABSENT) for one in every] for name in names}
        return {name: of_each for name, of_each in values.items() if not all(equal(of_each[0], value) for value in of_each[1:])}

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """Every metric with the value of each run as it is shown; error rates first, what measures the machine last."""
        every = [side.metrics for side in self.sides]
        names = list(dict.fromkeys(name for one in every for name in one))
        ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
        shown = sorted((name for name in names if name not in ends), key=_rank)
        return {name: [_shown(one, name) for one in every] for name in shown}

    def best(self, name: str) -> int | None:
        """Return the number of the run with the lowest of an error rate; None where that is no question."""
        values = [side.metrics.get(name) for side in self.sides]
        numbers = [value for value in values if isinstance(value, (int, float))]
        return values.index(min(numbers)) if _is_rate(name) and len(set(numbers)) > 1 else None

    @property
    def note(self) -> str:
        """What several comparisons at once need to have said."""
        if len(self.pairs) < 2:
            return ""
        return f"Each of the {len(self.pairs)} comparisons stands alone: of twenty without any difference, chance makes one look like more."


def compare(paths: Sequence[Path]) -> Comparison:
    """Return runs side by side; raise ConfigError for what is no run, or can't be read."""
    if not 2 <= len(paths) <= MOST_RUNS:
        raise ConfigError(f"{len(paths)} runs are given; name 2 to {MOST_RUNS}, the one to compare with first.")
    given = [path.resolve() for path in paths]
    if len(set(given)) < len(given):
        raise ConfigError("a run is named twice; there is nothing to compare in it.")
    return Comparison([_side(letter, Run.load(path)) for letter, path in zip(string.ascii_uppercase, paths, strict=False)])


def _side(letter: str, run: Run) -> Side:
    return Side(letter, run, run.config, metrics_of(run), {line["id"]: _scored(line) for line in run.predictions})


def _scored(line: Mapping[str, Any]) -> Scored:
    reference, hypothesis, errors = line["reference"], line["hypothesis"], line.get("errors")
    known = isinstance(errors, int) and errors >= 0
    return Scored(reference, hypothesis, errors if known else metrics.word_errors(reference, hypothesis))  # type: ignore[arg-type]


def _paired(first: Side, other: Side) -> Pair:
    both = [name for name in first.predictions if name in other.predictions]
    heard = [Heard(name, first.predictions[name], other.predictions[name]) for name in both]
    alike = [one for one in heard if one.first.reference == one.other.reference]
    unpaired = len(first.predictions) - len(both), len(other.predictions) - len(both)
    return Pair(first, other, alike, unpaired, len(heard) - len(alike))


def _is_rate(name: str) -> bool:
    return name in [f"eval_{rate}" for rate in metrics.BUILT_IN]


def _rank(name: str) -> tuple[bool, bool, bool]:
    return not _is_rate(name), bool(MEASURED.search(name)), not name.startswith("eval_")


def _shown(measured: Mapping[str, Any], name: str) -> str:
    value = measured.get(name)
    if value is None:
        return "-"
    if _is_rate(name) and isinstance(value, (int, float)):
        ends = [measured.get(f"{name}_{end}") for end in ("low", "high")]
        known = [f"{100 * end:.2f}" for end in ends if isinstance(end, (int, float))]
        return "\n".join([f"{100 * value:.2f} %", *([" to ".join(known)] if len(known) == 2 else [])])
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_tables(found: Comparison) -> list[Table]:
    """Return the terminal's tables: the runs, what differs in their configurations, their metrics, and how sure the difference is."""
    letters = [side.letter for side in found.sides]
    named = plain_table()
    for column in ("", "run", "experiment", "status"):
        named.add_column(column, overflow="fold")
    for side in found.sides:
        named.add_row(side.letter, side.path, side.title, str(side.run.record["status"]))
    tables = [named, _table("configuration", letters, {key: list(map(as_json, values)) for key, values in found.keys.items()})]
    measured = _table("metrics, with 95 % intervals", letters, found.metrics, right=True)
    sure = plain_table(f"WER against {found.first.letter}", show_header=False)
    for _ in range(2):
        sure.add_column(overflow="fold")
    for pair in found.pairs:
        sure.add_row(pair.other.letter, pair.verdict)
        for line in filter(None, [pair.measured, f"over {len(pair.utterances)} utterances that both have scored", *pair.left_out]):
            sure.add_row("", line)
    sure.caption = found.note or None
    return [*tables, measured, sure]


def _table(title: str, letters: Sequence[str], rows: Mapping[str, Sequence[str]], *, right: bool = False) -> Table:
    table = plain_table(title if rows else f"{title}: nothing differs")
    if not rows:
        return table
    table.add_column("", overflow="fold", no_wrap=right)
    for letter in letters:
        table.add_column(letter, overflow="fold", justify="right" if right else "left")
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def as_page(found: Comparison) -> str:
    """Return compare.html: one file that needs no other and fetches nothing."""
    from asr.pages import render

    return render(
        "compare.html",
        title=" / ".join(side.run.path.resolve().name for side in found.sides),
        found=found,
        configuration={key: list(map(as_json, values)) for key, values in found.keys.items()},
        plots=plots_of(found),
    )


def plots_of(found: Comparison) -> list[str]:
    """Return a plot of the word error rates with their intervals; none where fewer than two runs have one."""
    from asr.plots import Span, span_plot

    spans = []
    for side in found.sides:
        rate = side.metrics.get("eval_wer")
        if isinstance(rate, (int, float)):
            low, high = (side.metrics.get(f"eval_wer_{end}") for end in ("low", "high"))
            known = isinstance(low, (int, float)) and isinstance(high, (int, float))
            spans.append(Span(side.letter, 100 * rate, *((100 * low, 100 * high) if known else (100 * rate, 100 * rate))))  # type: ignore[operator]
    return [span_plot(spans, x_label="WER, %", title="WER with 95 % intervals")] if len(spans) > 1 else []


def write_page(found: Comparison, path: Path) -> None:
    """Write compare.html; raise ConfigError where that can't be."""
    try:
        runs.write_text(path, as_page(found))
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}); choose another.", key="--page") from error
