"""What a sweep came to: a table in the terminal, sweep.csv, and sweep.html with the plot and the best job's overrides.

In: a sweep's folder. Out: these three. A sweep that was stopped has them too, with what there is and how it goes on.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from asr import runs
from asr.errors import ConfigError
from asr.report import plain_table, shown_path
from asr.runs import METRICS_FILE, RUN_FILE, Run
from asr.sweeps import Job, Sweep, decisive

log = logging.getLogger(__name__)

CSV_FILE, PAGE_FILE = "sweep.csv", "sweep.html"
METRICS = ("eval_wer", "eval_cer", "eval_loss", "train_loss", "train_runtime")
MOST_ROWS = 30
"""Jobs that the terminal shows; sweep.csv and the page have all."""
ENOUGH_FOR_HISTORY = 8
"""Jobs from which on their order is worth a plot: a search gets better with them."""
PREFERRED = ("learning_rate", "batch_size")
"""What a plot's horizontal axis shows, and then what its lines are, where that is varied."""


@dataclass
class Row:
    """One job: the values that it was given, what came of it, and where that lies."""

    job: Job
    values: dict[str, str]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wer(self) -> float:
        """The job's word error rate; infinite where there is none, so that it sorts last."""
        value = self.job.value if self.job.value is not None else self.metrics.get("eval_wer")
        return value if isinstance(value, (int, float)) and math.isfinite(value) and self.job.status == "finished" else math.inf


@dataclass
class Results:
    """All jobs of a sweep, by number, and the keys that tell them apart."""

    sweep: Sweep
    rows: list[Row]
    keys: list[str]

    @cached_property
    def ranked(self) -> list[Row]:
        """The jobs from best to worst; those without a result last."""
        return sorted(self.rows, key=lambda row: (row.wer, row.job.number))

    @property
    def best(self) -> Row | None:
        return self.ranked[0] if self.ranked and math.isfinite(self.ranked[0].wer) else None

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.job.status not in ("finished", "running")]

    def command_of(self, row: Row) -> str:
        """Return the command that runs one job's configuration by itself."""
        words = [word for word in decisive(row.job.overrides) if not word.lstrip("+~").startswith(("sweep=", "hydra"))]
        return "python launch.py " + shlex.join(words)


def results_of(sweep: Sweep) -> Results:
    """Return what a sweep's jobs have come to so far."""
    jobs = sweep.jobs()
    given = [_values(job.overrides) for job in jobs]
    every = dict.fromkeys(key for values in given for key in values)
    keys = [key for key in every if len({values.get(key) for values in given}) > 1]
    rows = []
    for job, values in zip(jobs, given, strict=True):
        run_dir = sweep.path / job.run_dir
        metrics = Run(run_dir, {}).metrics if (run_dir / METRICS_FILE).is_file() else {}
        rows.append(Row(_with_end(job, run_dir), {key: values.get(key, "") for key in keys}, metrics))
    return Results(sweep, rows, keys)


def _with_end(job: Job, run_dir: Path) -> Job:
    """Return a job with the end that its run recorded where the job couldn't: its process was killed."""
    if job.status == "running" and (run_dir / RUN_FILE).is_file():
        try:
            record = Run.load(run_dir).record
        except ConfigError as error:  # a table is shown all the same
            log.warning("%s", error)
            return job
        if record["status"] != "running":
            job.status, job.exit_code, job.error = record["status"], record.get("exit_code"), record.get("error")
    return job


def _values(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in decisive(overrides))
    return {key.lstrip("+"): value for key, _, value in pairs}


def show_end(sweep: Sweep) -> None:
    """Write the csv and the page of a sweep that has ended or was stopped, and print its table; nothing of a single job."""
    results = results_of(sweep)
    if len(results.rows) < 2:
        return
    runs.write_text(sweep.path / CSV_FILE, as_csv(results))
    runs.write_text(sweep.path / PAGE_FILE, as_page(results))
    from rich import print as show

    show(as_table(results))
    if results.best is not None:
        print(f"best: {results.command_of(results.best)}")
    if sweep.record["status"] != "finished":
        print(f"go on with it: {sweep.continuation()}")
    print(f"page: {shown_path(sweep.path / PAGE_FILE)}")


def as_table(results: Results) -> Table:
    """Return the terminal's table: the best job first."""
    record = results.sweep.record
    table = plain_table(f"{shown_path(results.sweep.path)}: {record['status']}, {len(results.rows)} jobs, {len(results.failed)} failed")
    table.add_column("job", justify="right")
    table.add_column("WER", justify="right")
    for name in _short(results.keys).values():
        table.add_column(name, justify="right", overflow="fold")
    for name in ("CER", "loss", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("status", overflow="fold")
    for row in results.ranked[:MOST_ROWS]:
        table.add_row(
            str(row.job.number),
            _cells(row.metrics)[0],
            *row.values.values(),
            *_cells(row.metrics)[1:],
            _end_of(row.job),
            style="bold green" if row is results.best else None,
        )
    if len(results.rows) > MOST_ROWS:
        table.caption = f"{len(results.rows) - MOST_ROWS} more in {CSV_FILE}"
    return table


def _cells(metrics: Mapping[str, Any]) -> list[str]:
    formats = {"eval_wer": "{:.2f} %", "eval_cer": "{:.2f} %", "eval_loss": "{:.4f}", "train_runtime": "{:.0f}"}
    scale = {"eval_wer": 100, "eval_cer": 100}
    return ["-" if metrics.get(key) is None else shape.format(scale.get(key, 1) * metrics[key]) for key, shape in formats.items()]


def _end_of(job: Job) -> str:
    return job.status if job.exit_code in (0, None) else f"{job.status} ({job.exit_code})"


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Return keys with their last parts, where these tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def as_csv(results: Results) -> str:
    """Return a line a job, with whole keys and unrounded metrics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *results.keys, "status", "exit_code", *METRICS, "run_dir", "error"])
    for row in results.rows:
        measured = [row.metrics.get(key) for key in METRICS]
        writer.writerow(
            [row.job.number, *row.values.values(), row.job.status, row.job.exit_code, *measured, row.job.run_dir, row.job.error]
        )
    return text.getvalue()


def as_page(results: Results) -> str:
    """Return sweep.html: one file that needs no other and fetches nothing."""
    from asr.pages import render

    names = _short(results.keys)
    return render(
        "sweep.html",
        title=results.sweep.path.name,
        record=results.sweep.record,
        results=results,
        names=names,
        plots=plots_of(results),
        cells={row.job.number: _cells(row.metrics) for row in results.rows},
        end_of=_end_of,
        continuation=results.sweep.continuation(),
    )


def plots_of(results: Results) -> list[str]:
    """Return the plots that show what was varied: error rates over one key, a line for each value of another; and over the jobs."""
    from asr.plots import Series, line_plot

    done = [row for row in results.rows if math.isfinite(row.wer)]
    if not done or results.best is None:
        return []
    drawn = []
    axis, *others = _by_preference(results, done)
    if axis:
        x, ticks = _positions([row.values[axis] for row in done])
        lines = others[0] if others else None
        groups: dict[str, list[tuple[float, float]]] = {}
        for at, row in zip(x, done, strict=True):
            groups.setdefault(row.values[lines] if lines else "WER", []).append((at, 100 * row.wer))
        ordered = sorted(groups.items(), key=lambda group: (_number(group[0]) is None, _number(group[0]) or 0.0, group[0]))
        series = []
        for name, points in ordered:
            along = sorted(points)
            is_function = len({at for at, _ in along}) == len(along)  # with a third key there are several jobs at one place
            series.append(Series(name, [at for at, _ in along], [wer for _, wer in along], line=is_function))
        names = _short(results.keys)
        drawn.append(
            line_plot(
                series,
                x_label=names[axis],
                y_label="WER, %",
                title=f"WER by {names[axis]}" + (f", a line for each {names[lines]}" if lines else ""),
                log_x=ticks is None and _spans_much(x),
                x_ticks=ticks,
                best=(x[done.index(results.best)], 100 * results.best.wer),
                legend_title=names[lines] if lines else "",
            )
        )
    if len(done) >= ENOUGH_FOR_HISTORY:
        numbers = [row.job.number for row in done]
        so_far = [100 * min(row.wer for row in done[: i + 1]) for i in range(len(done))]
        each = Series("job", numbers, [100 * row.wer for row in done], line=False)
        drawn.append(line_plot([each, Series("best so far", numbers, so_far)], x_label="job", y_label="WER, %", title="WER by job"))
    return drawn


def _by_preference(results: Results, done: Sequence[Row]) -> list[str]:
    """Return the keys that vary among finished jobs: what a plot should show first in front; an empty one where there is none."""

    def rank(key: str) -> tuple[int, bool, int]:
        preferred = next((i for i, word in enumerate(PREFERRED) if word in key), len(PREFERRED))
        values = {row.values[key] for row in done}
        return preferred, any(_number(value) is None for value in values), -len(values)

    varied = [key for key in results.keys if len({row.values[key] for row in done}) > 1]
    return sorted(varied, key=rank) or [""]


def _positions(values: Sequence[str]) -> tuple[list[float], list[str] | None]:
    """Return where values lie on an axis: numbers where they are, names side by side."""
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        return [number for number in numbers if number is not None], None
    names = list(dict.fromkeys(values))
    return [float(names.index(value)) for value in values], names


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _spans_much(x: Sequence[float]) -> bool:
    return min(x) > 0 and max(x) / min(x) >= 4
