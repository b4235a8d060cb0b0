"""The table of utterances of a split, from headers alone.

In: a source's rows. Out: utterances that will be used, and those left out with the reason.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from asr import fingerprints, headers
from asr.audio import TOLERANCE_SECONDS
from asr.errors import DataError
from asr.files import written
from asr.sources import Source, Utterance

FRAME_SECONDS = 0.025  # what any of the models takes to give one output


@dataclass(frozen=True)
class LeftOut:
    """An utterance that isn't used. `reason` is what it is counted under, `detail` its own case."""

    id: str
    reason: str
    detail: str = ""
    audio: str = ""


@dataclass(frozen=True)
class Manifest:
    """The utterances of one split, in the source's order, each with its seconds."""

    split: str
    utterances: tuple[Utterance, ...]
    left_out: tuple[LeftOut, ...] = ()
    fingerprint: str = ""
    """Of what the source gave: what a model or its batches can't hold is no other data."""

    @property
    def hours(self) -> float:
        return sum(u.seconds or 0.0 for u in self.utterances) / 3600

    @property
    def reasons(self) -> dict[str, int]:
        """How many utterances were left out for each reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.left_out).most_common())

    def without(self, reasons: Mapping[int, str]) -> Manifest:
        """Return the table less the rows that have a reason, by row number."""
        left = tuple(LeftOut(u.id, reasons[i], audio=str(u.audio)) for i, u in enumerate(self.utterances) if i in reasons)
        return replace(
            self,
            utterances=tuple(u for i, u in enumerate(self.utterances) if i not in reasons),
            left_out=(*self.left_out, *left),
        )

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of a split: hours, utterances, durations, speakers, what was left out, and the data's fingerprint."""
        seconds = [u.seconds or 0.0 for u in self.utterances]
        return {
            "utterances": len(seconds),
            "hours": round(self.hours, 4),
            "seconds": spread(seconds),
            "speakers": len({u.speaker for u in self.utterances if u.speaker}),
            "left_out": len(self.left_out),
            "left_out_because": self.reasons,
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write one utterance a line; those left out go beside it, only when there are any."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(path, (u.to_json() for u in self.utterances))
        if self.left_out:
            _write_lines(path.with_suffix(".left_out.jsonl"), ({k: v for k, v in vars(row).items() if v} for row in self.left_out))

    @classmethod
    def load(cls, path: Path, split: str) -> Manifest:
        """Read what `save` wrote; the rows left out are not read back."""
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            return cls(split, tuple(Utterance.from_json(json.loads(line)) for line in lines))


def write_undecodable(path: Path, problems: Mapping[str, str]) -> None:
    """Write beside a manifest which of its utterances couldn't be decoded when their batch came, a line each."""
    _write_lines(path.with_suffix(".undecodable.jsonl"), ({"id": name, "problem": problem} for name, problem in problems.items()))


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line. Names of files are bytes: those that are no UTF-8 come back as they were."""
    with written(path) as aside, aside.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return least, mean, median and greatest of some values; empty without any."""
    if not values:
        return {}
    spread = {"min": min(values), "mean": statistics.fmean(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 2) for name, value in spread.items()}


def build(source: Source, split: str, *, limit: int | None, normalise: Callable[[str], str]) -> Manifest:
    """Return the manifest of a split from audio headers, which asr.headers remembers.

    Left out, and listed: what is outside the source's bounds, a transcript that is empty once normalised, and, unless
    `on_bad` is fail, files that are missing or unreadable, parts beyond their file's end, and an id's second use.
    Raises DataError for the first of the latter with on_bad=fail, and when nothing is left.
    """
    rows = list(islice(source.utterances(split), limit))
    facts = headers.read_all(rows, source, split, partial=limit is not None)
    kept: list[Utterance] = []
    left_out: list[LeftOut] = []
    first_of: dict[str, Utterance] = {}
    for row in rows:
        found, reason, detail = _measured(row, facts[headers.key_of(row)])
        if row.id in first_of:
            reason, detail = "duplicate id", f"{row.id!r} names both {first_of[row.id].audio} and {row.audio}; ids must differ."
        if reason and source.on_bad == "fail":
            raise DataError(f"dataset {source.name}, split {split!r}, utterance {row.id!r}: {detail} (dataset.on_bad=drop leaves it out)")
        first_of.setdefault(row.id, row)
        reason = reason or reason_to_leave_out(source, found.seconds or 0.0, normalise(row.text))
        if reason:
            left_out.append(LeftOut(row.id, reason, detail, str(row.audio)))
        else:
            kept.append(found)
    sizes = [facts[headers.key_of(row)].stamp[0] if row.row is None else None for row in kept]
    table = Manifest(split, tuple(kept), tuple(left_out), fingerprints.of_rows(kept, sizes))
    check_not_empty(table, source)
    return table


def check_not_empty(table: Manifest, source: Source) -> None:
    """Raise DataError with the counted reasons when a split has no utterance left."""
    if table.utterances:
        return
    counted = ", ".join(f"{n} {reason}" for reason, n in table.reasons.items()) or "the split is empty"
    example = next((f"; the first: {row.detail}" for row in table.left_out if row.detail), "")
    raise DataError(
        f"dataset {source.name}, split {table.split!r}: no utterance is left ({counted}{example}); "
        "widen the dataset's bounds or the text rules, or mend the files."
    )


def _measured(row: Utterance, fact: headers.Fact) -> tuple[Utterance, str, str]:
    """Return the row with its seconds, and what is wrong with its audio: a reason and its detail, or two empty strings."""
    if fact.seconds is None:
        return row, "missing audio" if "is not there" in fact.problem else "unreadable audio", fact.problem
    if row.start_seconds is None:
        return replace(row, seconds=fact.seconds), "", ""
    end = fact.seconds if row.seconds is None else row.start_seconds + row.seconds
    if row.start_seconds < 0 or end > fact.seconds + TOLERANCE_SECONDS or row.start_seconds >= fact.seconds:
        said = f"{row.audio}: {row.start_seconds:g} to {end:g} s is beyond its {fact.seconds:.2f} s; mend the part's times."
        return row, "part beyond the end of its audio", said
    return replace(row, seconds=min(end, fact.seconds) - row.start_seconds), "", ""


def reason_to_leave_out(source: Source, seconds: float, text: str) -> str:
    """Return why an utterance of so many seconds and this normalised text isn't used; empty where it is."""
    if seconds < FRAME_SECONDS:
        return f"shorter than a frame of {FRAME_SECONDS:g} s"
    if seconds < source.min_duration_in_seconds:
        return f"shorter than min_duration_in_seconds ({source.min_duration_in_seconds:g})"
    if source.max_duration_in_seconds is not None and seconds > source.max_duration_in_seconds:
        return f"longer than max_duration_in_seconds ({source.max_duration_in_seconds:g})"
    return "" if text else "empty transcript after text normalisation"
