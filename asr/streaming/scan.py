"""A bounded look at a corpus before it is streamed: what a vocabulary and the edges of buckets are made from.

In: the shards of a split, and how many utterances to look at. Out: their table, as other splits have of all theirs, and how many
there are in all, or about. They are taken from shards all over the corpus: neighbours have one speaker, or one length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from asr import fingerprints
from asr.errors import DataError
from asr.manifest import LeftOut, Manifest, reason_to_leave_out
from asr.sources import Source, Utterance
from asr.streaming import rules
from asr.streaming.shards import Ref, Sample, ShardError, Shards, size_of

log = logging.getLogger(__name__)

MOST_UNITS = 20
"""Units that a sample is spread over."""


@dataclass(frozen=True)
class Scan:
    """What was found: the table of the sample; the shards with their number of utterances; whether the sample is all that there is."""

    table: Manifest
    shards: Shards
    is_whole: bool


def scan(shards: Shards, source: Source, split: str, *, most: int, order: list[int], normalise: Callable[[str], str]) -> Scan:
    """Look at up to `most` utterances, from the units in the given order; raise DataError for what can't be read, with on_bad=fail."""
    kept: list[Utterance] = []
    left_out: list[LeftOut] = []
    looked_at, num_bytes = 0, 0
    share = -(-most // max(1, min(len(order), MOST_UNITS)))
    rest: dict[int, Ref | None] = {unit: Ref(unit, 0) for unit in order}
    """Where each unit goes on; None: it has been read."""
    while looked_at < most and (unread := [unit for unit, start in rest.items() if start is not None]):
        for unit in unread:
            wanted = min(share, most - looked_at)
            if not wanted:
                break
            count, last = 0, rest[unit]
            for sample in islice(_samples(shards, rest[unit], source, left_out), wanted):
                row = _measured(sample, shards.units[unit].shard, source, normalise)
                kept.append(row) if isinstance(row, Utterance) else left_out.append(row)
                num_bytes += sample.after.offset - sample.ref.offset
                count, last = count + 1, sample.after
            looked_at += count
            rest[unit] = last if count == wanted else None
    is_whole = looked_at < most or all(_is_read(shards, start) for start in rest.values())
    number = shards.num_utterances
    if is_whole:
        number = looked_at
    elif number is None:
        number = round(sum(size_of(unit.shard) for unit in shards.units) * looked_at / max(1, num_bytes))
    table = Manifest(split, tuple(kept), tuple(left_out), fingerprints.of_shards(shards.units))
    return Scan(table, replace(shards, num_utterances=number), is_whole)


def _is_read(shards: Shards, start: Ref | None) -> bool:
    """Say whether a unit is known to have nothing behind a place."""
    last = None if start is None else shards.units[start.unit].last
    return start is None or (last is not None and start.row >= last)


def _samples(shards: Shards, start: Ref | None, source: Source, left_out: list[LeftOut]) -> Iterator[Sample]:
    """Yield a unit's samples from a place on; a shard that can't be read any further is listed, or raised with on_bad=fail."""
    if start is None:
        return
    try:
        yield from shards.samples(start)
    except ShardError as error:
        if source.on_bad == "fail":
            raise
        log.warning("the rest of a shard is left out: %s", error)
        shard = shards.units[start.unit].shard
        left_out.append(LeftOut(shard, rules.BAD_SHARD, str(error), shard))


def _measured(sample: Sample, shard: str, source: Source, normalise: Callable[[str], str]) -> Utterance | LeftOut:
    heard = rules.heard(sample, shard)
    if isinstance(heard, rules.LeftOut):
        if source.on_bad == "fail":
            raise DataError(f"{heard.detail} (dataset.on_bad=drop leaves it out)")
        return LeftOut(sample.id, heard.reason, heard.detail, shard)
    reason = reason_to_leave_out(source, heard, normalise(sample.text))
    if reason:
        return LeftOut(sample.id, reason, audio=shard)
    return Utterance(sample.id, Path(shard), sample.text, sample.speaker, heard, row=sample.ref.row)
