"""What a run came to, as a page: rates with intervals, curves, where the errors are, and the worst utterances to read and hear.

In: a run directory, whatever became of the run. Out: report.html, one file that needs no other and fetches nothing.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from asr import breakdown, circumstances, experiments, history, metrics, preparing, runs, statistics
from asr.alignment import Aligned, Confusions, aligned
from asr.breakdown import Group
from asr.clips import Clip, Clips
from asr.config import WITHOUT_EFFECT
from asr.differences import as_json
from asr.errors import ConfigError
from asr.manifest import Manifest
from asr.runs import Run
from asr.sources import Utterance

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_WORST = 20
"""Utterances that are shown."""
MOST_CONFUSED = 25
"""Lines of each table of confused words."""
MOST_WORDS = 150
"""Of one utterance that are shown: a model that repeats itself writes many more."""
MOST_CHARACTERS = 60
"""Of one word that are shown: a language written without spaces makes a word of a sentence."""
MOST_POINTS = 400
"""Of a curve."""
WIDE = 20
"""A loss that falls to less than this part of where it began is drawn with a logarithmic axis."""
MOST_SHAPES = 30

Curve = tuple[list[int], list[float]]


def write(run: Run) -> Path:
    """Write the page of a run and return its path; raise ConfigError for a rehearsal or dry run, and for files that aren't a run's."""
    if run.record.get("rehearsal") or run.record["status"] == "dry_run":
        what = "a rehearsal: `asr show` has its verdict" if run.record.get("rehearsal") else "a dry run: nothing was run"
        raise ConfigError(f"{run.path} is {what}.")
    path = run.path / runs.PAGE_FILE
    text = as_page(run)
    runs.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))  # bytes in file names may be no UTF-8
    return path


@dataclass(frozen=True)
class Worst:
    """An utterance to look at, with its words side by side."""

    line: Mapping[str, Any]
    errors: int
    words: int
    seconds: float
    aligned: Sequence[Aligned]
    hidden: int
    speaker: str
    clip: Clip


@dataclass(frozen=True)
class Evaluated:
    """What the predictions of a run come to."""

    confusions: Confusions
    groups: Mapping[str, Sequence[Group]]
    """Parts of the split, by what they have in common."""
    worst: Sequence[Worst]
    utterances: int
    right: int
    """How many have no error."""
    words: int
    match_errors: tuple[str, str, str]
    """MER as `rates` has them."""


def as_page(run: Run) -> str:
    """Return report.html."""
    from asr.pages import render

    config, record = run.config, run.record
    events, evaluated = history.load(run.path), evaluation(run)
    return render(
        "run.html",
        plots=curves(events),
        title=f"{record['experiment']} {record.get('version', '')}",
        record=record,
        rates=_with_mer(rates(run), evaluated),
        facts=facts(record, circumstances.metrics_of(run), events),
        evaluated=evaluated,
        why_not="" if evaluated else why_not_evaluated(record, config, events),
        widest={kind: _widest(groups) for kind, groups in evaluated.groups.items()} if evaluated else {},
        tables=_confused(evaluated.confusions) if evaluated else [],
        batches=_batches(record),
        splits=_splits(record),
        release=f"{config.get('experiment_name')}/{config.get('experiment_version')}",
        differing=differing(config),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        command=shlex.join(map(str, record.get("command") or ())),
        overrides=[str(word) for word in record.get("overrides") or ()],
        metrics=[(key, "-" if value is None else f"{value}") for key, value in circumstances.metrics_of(run).items()],
        circumstances=_circumstances(record),
        shown=_shown,
        percent=_percent,
    )


# ---- what the predictions say ----


def evaluation(run: Run) -> Evaluated | None:
    """Return what a run's predictions come to; None where there are none."""
    import numpy as np

    lines = run.predictions
    if not lines:
        return None
    confusions = Confusions()
    counted = [(*confusions.count(pairs), len(pairs)) for pairs in aligned(*_texts(lines))]
    errors, words, matches = np.array(counted, np.int64).T
    known = _utterances(run)
    speakers = [known[line["id"]].speaker if line["id"] in known else "" for line in lines]
    groups = {"duration": breakdown.by_seconds([_seconds(line, known) for line in lines], errors, words)}
    groups["words"] = breakdown.by_words(errors, words)
    if any(speakers):
        groups["speaker"] = breakdown.by_speaker(speakers, errors, words)
    worst = _worst(lines, errors, words, known)
    low, high = statistics.bootstrap(errors, matches)
    mer = "MER", _percent(errors.sum() / max(matches.sum(), 1)), f"{_percent(low)} to {_percent(high)}" if _is_number(low) else "-"
    return Evaluated(confusions, groups, worst, len(lines), int((errors == 0).sum()), int(words.sum()), mer)


def _texts(lines: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    return [line["reference"] for line in lines], [line["hypothesis"] for line in lines]


def _utterances(run: Run) -> dict[str, Utterance]:
    """Return the evaluated utterances by their ids: their speakers, and where their audio lies. None of a run that lost its manifest."""
    path = preparing.manifest_path(run, "eval")
    try:
        return {utterance.id: utterance for utterance in Manifest.load(path, "eval").utterances} if path.is_file() else {}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no manifest: {error}.") from error


def _seconds(line: Mapping[str, Any], known: Mapping[str, Utterance]) -> float:
    found = line.get("seconds", known[line["id"]].seconds if line["id"] in known else None)
    return float(found) if isinstance(found, (int, float)) else 0.0


def _worst(lines: Sequence[Mapping[str, Any]], errors: NDArray[Any], words: NDArray[Any], known: Mapping[str, Utterance]) -> list[Worst]:
    """Return the utterances with the most errors; of those with as many, the shortest first."""
    import numpy as np

    rows = [int(row) for row in np.lexsort((words, -errors))[:MOST_WORST] if errors[row]]
    clips = Clips()
    found = []
    for row, pairs in zip(rows, aligned(*_texts([lines[row] for row in rows])), strict=True):
        line = lines[row]
        utterance = known.get(line["id"])
        clip = clips.of(utterance) if utterance else Clip(note="the run's manifest doesn't say where its audio lies")
        shown, hidden = pairs[:MOST_WORDS], max(0, len(pairs) - MOST_WORDS)
        found.append(
            Worst(
                line, int(errors[row]), int(words[row]), _seconds(line, known), shown, hidden, utterance.speaker if utterance else "", clip
            )
        )
    return found


def _confused(found: Confusions) -> list[tuple[str, list[str], list[tuple[list[str], int]], int]]:
    """Return a table for each kind of error: its name, headings, the most frequent with their counts, and how many errors it is in all."""
    pairs = [([said, heard], count) for (said, heard), count in _most(found.substitutions)]
    tables = [("Substitutions", ["said", "heard"], pairs, found.substitutions.total())]
    for name, heading, counts in (("Deletions", "not heard", found.deletions), ("Insertions", "made up", found.insertions)):
        tables.append((name, [heading], [([word], count) for word, count in _most(counts)], counts.total()))
    return tables


def _most(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    """Return the most frequent, by name where they are as frequent."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CONFUSED]


def _widest(groups: Iterable[Group]) -> float:
    """Return the highest rate, which fills the width of a bar."""
    return max((group.rate for group in groups if group.words), default=0.0) or 1.0


# ---- what was measured ----


def rates(run: Run) -> list[tuple[str, str, str]]:
    """Return each error rate in percent with its interval; runs from before these were kept have them worked out."""
    found = circumstances.metrics_of(run)
    missing = [name for name in metrics.BUILT_IN if _is_number(found.get(f"eval_{name}")) and f"eval_{name}_low" not in found]
    if missing:
        found = {**{f"eval_{key}": value for key, value in metrics.intervals(run.predictions, missing).items()}, **found}
    rows = []
    for name in metrics.BUILT_IN:
        for suffix, said in (("", ""), ("_greedy", ", decoded greedily")):
            key = f"eval_{name}{suffix}"
            if _is_number(found.get(key)):
                ends = [found.get(f"{key}_{end}") for end in ("low", "high")]
                interval = f"{_percent(ends[0])} to {_percent(ends[1])}" if all(map(_is_number, ends)) else "-"
                rows.append((f"{name.upper()}{said}", _percent(found[key]), interval))
    return rows


def _with_mer(found: list[tuple[str, str, str]], evaluated: Evaluated | None) -> list[tuple[str, str, str]]:
    """Add the match error rate, which comes of the same alignment, where it isn't among trainer.eval_metrics."""
    return found if evaluated is None or any(name == "MER" for name, _, _ in found) else [*found, evaluated.match_errors]


def facts(record: Mapping[str, Any], found: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what else people look for at first: losses, steps, hours, speed, size."""

    def of(keys: Mapping[str, str], form: str) -> str:
        return ", ".join(form.format(found[key]) + f" ({name})" for key, name in keys.items() if _is_number(found.get(key)))

    def both(ending: str) -> dict[str, str]:
        return {f"train_{ending}": "training", f"eval_{ending}": "evaluation"}

    undecodable = {"num_train_utterances_undecodable": "training", "num_eval_utterances_undecodable": "evaluation"}
    steps = [event["step"] for event in events if isinstance(event.get("step"), int)]
    parameters = record.get("parameters") or {}
    rows = [
        ("loss", of(both("loss"), "{:.4f}")),
        ("steps", f"{max(steps)}" if steps and max(steps) else ""),
        ("time", of(both("runtime"), "{:.0f} s")),
        ("speed", of(both("audio_seconds_per_second"), "{:.0f} s of audio a second")),
        ("parameters", f"{parameters['total']:,}, of which {parameters['trained']:,} were trained" if parameters else ""),
        ("trainer", str(record.get("trainer_class") or "")),
        ("devices", ", ".join(map(str, _mapping(record.get("devices")).get("ids") or ()))),
        ("undecodable", of({key: name for key, name in undecodable.items() if found.get(key)}, "{} utterances")),
        ("averaged", ", ".join(map(str, record.get("averaged_checkpoints") or ()))),
        ("replay of", str(_mapping(record.get("replay_of")).get("path") or "")),
    ]  # fmt: skip
    return [(name, text) for name, text in rows if text]


def why_not_evaluated(record: Mapping[str, Any], config: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Return why there are no predictions to look at."""
    on_the_way = any(key.startswith("eval_") for event in events for key in event)
    if on_the_way:
        return "There is no final evaluation; the curves have what was measured on the way."
    if "evaluate" not in config.get("stages", ()):
        return "It wasn't asked to evaluate (stages)."
    return "It ended before its first evaluation." if record["status"] != "finished" else "It has no predictions."


def curves(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return plots of the losses, the learning rate and the error rates by step; of what was logged once there is no curve."""
    wanted = (
        ("Loss", "loss", {"loss": "training", "eval_loss": "evaluation"}, 1),
        ("Learning rate", "", {"learning_rate": "learning rate"}, 1),
        ("Error rates", "%", {f"eval_{name}": name.upper() for name in metrics.BUILT_IN}, 100),
    )
    drawn = []
    for title, y_label, keys, scale in wanted:
        found = {name: history.curve(events, key) for key, name in keys.items()}
        if any(len(steps) > 1 for steps, _ in found.values()):
            drawn.append(_plot({name: _thinned(one) for name, one in found.items() if one[0]}, title, y_label, scale))
    return drawn


def _plot(found: Mapping[str, Curve], title: str, y_label: str, scale: float) -> str:
    from asr.plots import Series, line_plot

    values = [value for _, curve in found.values() for value in curve]
    wide = title == "Loss" and min(values) > 0 and max(values) > WIDE * min(values)
    series = [Series(name, steps, [scale * value for value in curve]) for name, (steps, curve) in found.items()]
    return line_plot(series, x_label="step", y_label=y_label, title=title, log_y=wide)


def _thinned(curve: Curve) -> Curve:
    """Return a curve of so few points that a page can hold it: every nth and the last."""
    steps, values = curve
    every = math.ceil(len(steps) / MOST_POINTS)
    rows = sorted({*range(0, len(steps), every), len(steps) - 1})
    return [steps[row] for row in rows], [values[row] for row in rows]


# ---- what was run, and on what ----


def differing(config: Mapping[str, Any]) -> list[tuple[str, str, str]] | None:
    """Return the keys at which a run's configuration isn't its version's, with both values; None for a version that isn't released."""
    try:
        released = experiments.locked(str(config.get("experiment_name")), str(config.get("experiment_version")))
    except ConfigError:
        return None
    found = experiments.differences(released, config)
    return [(key, as_json(then), as_json(now)) for key, then, now in found if key not in WITHOUT_EFFECT]


def _batches(record: Mapping[str, Any]) -> list[tuple[str, list[list[str]], int]]:
    """Return the shapes of each phase's batches that went through the model, and how many more there were."""
    found, phases = _mapping(record.get("batches")), []
    for phase, name in (("train", "Training"), ("eval", "Evaluation")):
        shapes = [_mapping(shape) for shape in found.get(phase) or ()]
        cells = [[str(s.get(key, "-")) for key in ("batches", "rows", "length", "labels")] for s in shapes[:MOST_SHAPES]]
        full = [_percent(s.get("padding_efficiency")) for s in shapes]
        rows = [[*row, share] for row, share in zip(cells, full, strict=False)]
        phases += [(name, rows, max(0, len(shapes) - MOST_SHAPES))] if rows else []
    return phases


def _splits(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each split of the data."""
    lines = []
    for role, split in _mapping(_mapping(record.get("dataset")).get("splits")).items():
        facts = _mapping(split)
        name = facts.get("split", role)
        cells = [facts.get("utterances", "-"), facts.get("hours", "-"), facts.get("speakers") or "-", facts.get("left_out", "-")]
        because = "; ".join(f"{count} {reason}" for reason, count in _mapping(facts.get("left_out_because")).items())
        lines.append({"name": name if name == role else f"{name} ({role})", "cells": cells, "because": because})
    return lines


def _circumstances(record: Mapping[str, Any]) -> list[str]:
    """Return code, packages and host in a few words."""
    git, host, packages = (_mapping(record.get(key)) for key in ("git", "host", "packages"))
    said = [f"commit {git['commit']}{', with changes' if git.get('dirty') else ''}"] if git.get("commit") else []
    said += [", ".join(f"{name} {version}" for name, version in packages.items())] if packages else []
    return [*said, ", ".join(str(host[key]) for key in ("name", "cpu") if host.get(key))] if host else said


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _percent(rate: Any) -> str:
    return f"{100 * rate:.2f} %" if _is_number(rate) else "-"


def _shown(text: object) -> str:
    """Return a word as it is shown."""
    said = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]}…"
