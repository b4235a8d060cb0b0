"""Results as people like to see them in a terminal: one run's summary, and a list of runs.

In: run directories. Out: rich tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from asr.circumstances import MEASURED, in_metrics, metrics_of
from asr.differences import Difference, as_json
from asr.errors import listed
from asr.rehearsal import verdict
from asr.runs import PAGE_FILE, RUN_FILE, Run
from asr.secrets import printable

if TYPE_CHECKING:  # what composes isn't needed to show runs
    from asr.experiments import Experiment


class _Plain(Table):
    """A table whose title and cells are shown as they are: a name such as [red] is no colour, and an escape code does nothing."""

    def __init__(self, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else plain(title, style="table.title"), title_justify="left", **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def plain_table(title: str | None = None, **options: Any) -> Table:
    """Return an empty table whose title and cells are shown as they are."""
    return _Plain(title, **options)


def plain(text: str, *, style: str = "") -> Text:
    """Return a text as it may be shown: without markup, and its control characters written out."""
    return Text(printable(text), style=style)


def show_end(run: Run) -> None:
    """Print what a run that ended well has to show: its results, its data, or the commands that a dry run would start."""
    if run.record["status"] == "dry_run":
        for number, launch in enumerate(run.record["launch"]):
            print(f"# server {number}\n{launch['line']}" if len(run.record["launch"]) > 1 else launch["line"])
        return
    if run.record.get("rehearsal"):
        return  # it has shown its verdict
    from rich import print as show

    show(data_table(run) if run.config["stages"] == ["prepare"] else summary(run))


def show_job(run: Run) -> None:
    """Print one line of a sweep's job that ended well; its sweep's table comes at the end."""
    if run.record["status"] == "dry_run" or run.record.get("rehearsal"):
        show_end(run)
        return
    rates = [f"{rate.upper()} {_percent(run.metrics[key])}" for rate in ("wer", "cer") if _known(run.metrics, key := f"eval_{rate}")]
    print(printable(f"{shown_path(run.path)}: {', '.join([run.record['status'], *rates])}"), flush=True)


def show_replay(run: Run, replayed: Run) -> None:
    """Print what a replay that ended well has to show: its results, and beside them those of the run that it replays."""
    show_end(run)
    if run.record["status"] != "dry_run" and run.metrics:
        from rich import print as show

        show(comparison(replayed, run))


def comparison(then: Run, now: Run) -> Table:
    """Return a line for each metric of two runs: the value of either, and whether they are equal to the last bit."""
    was, is_now = metrics_of(then), metrics_of(now)
    other = in_metrics(was, is_now)
    title = "all metrics are equal" if not other else f"{len(other)} metrics differ: {listed(other)}"
    table = _Plain(title if was else "there are no metrics to compare with")
    table.add_column("metric", style="bold")
    for when in ("then", "now"):
        table.add_column(when, justify="right")
    table.add_column("equal")
    keys = sorted(dict.fromkeys([*was, *is_now]), key=lambda key: bool(MEASURED.search(key)))
    for number, key in enumerate(keys):
        measured = bool(MEASURED.search(key))
        if measured and number and not MEASURED.search(keys[number - 1]):
            table.add_section()
        equal = "" if measured else "no" if key in other else "yes"
        table.add_row(key, *(f"{metrics.get(key, '-')}" for metrics in (was, is_now)), equal)
    return table


def summary(run: Run) -> Table:
    """Return the table that ends a run: error rates, losses, speed, hours of audio, and where it lies; of a rehearsal, its verdict."""
    found = verdict.load(run.path)
    if found is not None:
        return verdict.table(found, f"{run.record['experiment']} {run.record['version']}")
    record, metrics = run.record, run.metrics
    table = _Plain(f"{record['experiment']} {record['version']}: {record['status']}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for rate in ("wer", "cer", "mer"):
        if _known(metrics, f"eval_{rate}"):
            table.add_row(rate.upper(), rate_text(metrics, f"eval_{rate}"))
    losses = [
        f"{metrics[f'{k}_loss']:.4f} ({name})"
        for k, name in (("eval", "evaluation"), ("train", "training"))
        if _known(metrics, f"{k}_loss")
    ]
    table.add_row("loss", ", ".join(losses) or "-")
    speeds = [
        f"{metrics[f'{k}_audio_seconds_per_second']:.0f} s of audio a second ({name})"
        for k, name in (("train", "training"), ("eval", "evaluation"))
        if _known(metrics, f"{k}_audio_seconds_per_second")
    ]
    table.add_row("speed", ", ".join(speeds) or "-")
    splits = record.get("dataset", {}).get("splits", {})
    table.add_row("audio", ", ".join(map(_audio, splits.values())) or "-")
    times = [
        f"{metrics[k]:.0f} s {name}" for k, name in (("train_runtime", "training"), ("eval_runtime", "evaluation")) if _known(metrics, k)
    ]
    table.add_row("time", ", ".join(times) or "-")
    if _known(metrics, "padding_efficiency"):
        shapes = metrics.get("num_train_shapes") or metrics.get("num_eval_shapes")
        table.add_row("batches", f"{shapes} shapes, {_percent(metrics['padding_efficiency'])} of the input is audio, the rest padding")
    bad = sum(metrics.get(f"num_{k}_utterances_undecodable") or 0 for k in ("train", "eval"))
    if bad:
        table.add_row("undecodable", f"{bad} utterances counted for nothing; see manifest/*.undecodable.jsonl")
    if record.get("error"):
        table.add_row("error", str(record["error"]))
    table.add_row("run", shown_path(run.path))
    if (run.path / PAGE_FILE).is_file():
        table.add_row("page", shown_path(run.path / PAGE_FILE))
    return table


def _audio(split: Mapping[str, Any]) -> str:
    """Return how much audio a split has; of a stream, the sample that was looked at."""
    streamed = split.get("streamed")
    sample = f", a sample of about {streamed['utterances']}" if streamed and streamed["sampled"] else ""
    return f"{split['hours']:.2f} h in {split['utterances']} utterances ({split['split']}{sample})"


def data_table(run: Run) -> Table:
    """Return what a prepared run's data is: a column a split, with everything that was left out and why."""
    splits: dict[str, Any] = run.record["dataset"]["splits"]
    table = _Plain(f"{run.record['dataset']['name']}: {shown_path(run.path / 'manifest')}")
    table.add_column("", style="bold")
    for role, split in splits.items():
        table.add_column(plain(split["split"] if split["split"] == role else f"{split['split']} ({role})"), justify="right")

    def row(title: str, values: Iterable[object]) -> None:
        table.add_row(title, *map(str, values))

    row("utterances", (split["utterances"] for split in splits.values()))
    row("hours", (f"{split['hours']:.2f}" for split in splits.values()))
    row("speakers", (split["speakers"] or "-" for split in splits.values()))
    for measure in ("seconds", "labels"):
        for name in ("min", "mean", "median", "max"):
            row(f"{measure}, {name}", (f"{split[measure].get(name, 0):g}" for split in splits.values()))
    table.add_section()
    row("left out", (split["left_out"] for split in splits.values()))
    for reason in dict.fromkeys(reason for split in splits.values() for reason in split["left_out_because"]):
        row(f"  {reason}", (split["left_out_because"].get(reason, 0) for split in splits.values()))
    return table


def runs_under(folder: Path) -> list[Run]:
    """Return every run below a folder, the oldest first."""
    return sorted((Run.load(path.parent) for path in folder.rglob(RUN_FILE)), key=lambda run: str(run.record["started"]))


def listing(runs: Iterable[Run]) -> Table:
    """Return one line a run: when, how it ended, error rates, where it lies, and what was overridden."""
    table = _Plain()
    for column in ("started", "status", "WER", "CER"):
        table.add_column(column, no_wrap=True)
    table.add_column("run", overflow="fold")
    table.add_column("overrides", overflow="fold")
    for run in runs:
        record, metrics = run.record, run.metrics
        ended = record["status"] if record["exit_code"] in (0, None) else f"{record['status']} ({record['exit_code']})"
        ended = f"rehearsal {ended}" if record.get("rehearsal") else ended
        rates = [_percent(metrics[key]) if _known(metrics, key) else "-" for key in ("eval_wer", "eval_cer")]
        started = record["started"][5:16].replace("T", " ")
        table.add_row(started, ended, *rates, shown_path(run.path), " ".join(record["overrides"]).replace("trainer.args.", "…"))
    return table


def experiments_table(found: Iterable[Experiment]) -> Table:
    """Return two lines an experiment: its released versions, the newest of them, what isn't released; and below its name what it is."""
    table = _Plain(show_lines=True)
    table.add_column("experiment", overflow="fold")
    for column in ("released", "newest", "drafts"):
        table.add_column(column)
    for item in found:
        named = Text.assemble((printable(item.name), "bold"), f"\n{printable(item.description)}")
        newest = item.released[-1] if item.released else "-"
        table.add_row(named, " ".join(item.released) or "-", newest, " ".join(item.drafts))
    return table


def differences_table(left: str, right: str, found: Iterable[Difference]) -> Table:
    """Return the keys at which two configurations differ, side by side."""
    table = _Plain()
    for column in ("key", left, right):
        table.add_column(plain(column), overflow="fold")
    for key, *values in found:
        table.add_row(key, *map(as_json, values))
    return table


def shown_path(path: Path) -> str:
    """Return a path as one would type it here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _known(metrics: dict[str, Any], key: str) -> bool:
    return metrics.get(key) is not None


def rate_text(metrics: Mapping[str, Any], key: str) -> str:
    """Return an error rate in percent, with the interval that chance alone gives it where that is known."""
    ends = [metrics.get(f"{key}_{end}") for end in ("low", "high")]
    known = [f"{100 * end:.1f}" for end in ends if isinstance(end, (int, float))]
    return _percent(metrics[key]) + (f" (95 %: {' to '.join(known)})" if len(known) == 2 else "")


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
