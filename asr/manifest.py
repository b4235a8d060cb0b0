"""The table of utterances of a split, from headers alone.

In: a source's rows. Out: utterances that will be used, and those left out with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from asr.audio import seconds_of
from asr.errors import DataError
from asr.sources import Source, Utterance

FRAME_SECONDS = 0.025  # what any of the models takes to give one output


@dataclass(frozen=True)
class Manifest:
    """The utterances of one split, in the source's order, each with its seconds."""

    split: str
    utterances: tuple[Utterance, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """(id, reason) of every utterance that isn't used."""

    @property
    def hours(self) -> float:
        return sum(u.seconds or 0.0 for u in self.utterances) / 3600

    def save(self, path: Path) -> None:
        """Write one utterance a line; those left out go beside it, only when there are any."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(u.to_json(), ensure_ascii=False) + "\n" for u in self.utterances), encoding="utf-8")
        if self.left_out:
            dropped = (json.dumps({"id": i, "reason": reason}, ensure_ascii=False) + "\n" for i, reason in self.left_out)
            path.with_suffix(".left_out.jsonl").write_text("".join(dropped), encoding="utf-8")

    @classmethod
    def load(cls, path: Path, split: str) -> Manifest:
        """Read what `save` wrote; the rows left out are not read back."""
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return cls(split, tuple(map(Utterance.from_json, rows)))


def build(source: Source, split: str, *, limit: int | None, normalise: Callable[[str], str]) -> Manifest:
    """Return the manifest of a split, reading audio headers (an eighth of a millisecond each; threads made it slower).

    Left out: durations outside the source's bounds, transcripts that are empty once normalised.
    Raises DataError for a file that can't be read, and when nothing is left.
    """
    kept, left_out = [], []
    for row in islice(source.utterances(split), limit):
        seconds = row.seconds if row.seconds is not None else seconds_of(row.audio)
        reason = _reason_to_leave_out(source, seconds, normalise(row.text))
        if reason:
            left_out.append((row.id, reason))
        else:
            kept.append(replace(row, seconds=seconds))
    if not kept:
        raise DataError(_nothing_left(source, split, [reason for _, reason in left_out]))
    return Manifest(split, tuple(kept), tuple(left_out))


def _reason_to_leave_out(source: Source, seconds: float, text: str) -> str:
    if seconds < FRAME_SECONDS:
        return f"shorter than a frame of {FRAME_SECONDS:g} s"
    if seconds < source.min_duration_in_seconds:
        return f"shorter than min_duration_in_seconds ({source.min_duration_in_seconds:g})"
    if source.max_duration_in_seconds is not None and seconds > source.max_duration_in_seconds:
        return f"longer than max_duration_in_seconds ({source.max_duration_in_seconds:g})"
    return "" if text else "empty transcript after text normalisation"


def _nothing_left(source: Source, split: str, reasons: Sequence[str]) -> str:
    counted = ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons)) or "the split is empty"
    return f"dataset {source.name}, split {split!r}: no utterance is left ({counted}); widen the dataset's bounds or the text rules."
