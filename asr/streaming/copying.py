"""A split copied out of its shards, once: into an Arrow file in the cache, where single utterances can be read.

In: shards, and how many utterances at most. Out: that file, and its rows but for their audio. For the split that evaluations go
through again and again; the rest of the corpus is neither copied nor downloaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from asr import arrow, config
from asr.errors import DataError
from asr.files import written
from asr.streaming.shards import ON_HUB, Ref, Sample, ShardError, Shards

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 64
COLUMN = "audio"
"""Of the copy, whose cells are the encoded audio."""


def copied(shards: Shards, name: str, *, limit: int | None, on_bad: str) -> Path:
    """Return the file with the first `limit` utterances of the shards, which is made where there is none of these very shards.

    Raises DataError for a shard that can't be read; with on_bad=drop the rest of one on this disk is left out.
    """
    path = config.cache_root(None, "copied") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}-{_fingerprint(shards, limit, on_bad)}.arrow"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as aside:
            count = _write(aside, islice(_samples(shards, on_bad), limit))
        log.info("%s: copied %d utterances out of their shards into %s", name, count, path)
    return path


def rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield id, transcript and speaker of each row of a copy."""
    table = arrow.opened(path).table
    yield from zip(*(table.column(name).to_pylist() for name in ("id", "text", "speaker")), strict=True)


def _fingerprint(shards: Shards, limit: int | None, on_bad: str) -> str:
    """Return a hash of what the copy depends on: the shards, as they are now, and how much is taken of them."""
    files = {unit.shard for unit in shards.units if not unit.shard.startswith(ON_HUB)}  # a hub's have their commit in their name
    stamps = sorted((file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files)
    inputs = [type(shards.format).__name__, asdict(shards.format), [asdict(unit) for unit in shards.units], stamps, limit, on_bad]  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(inputs).encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def _samples(shards: Shards, on_bad: str) -> Iterator[Sample]:
    for number, unit in enumerate(shards.units):
        try:
            for sample in shards.samples(Ref(number, 0)):
                if sample.problem and on_bad == "fail":
                    raise DataError(f"{sample.problem} (dataset.on_bad=drop leaves it out)")
                yield sample
        except ShardError as error:
            if on_bad == "fail" or unit.shard.startswith(ON_HUB):  # a copy without what a lost connection held would stay so
                raise
            log.warning("the rest of a shard is left out: %s", error)


def _write(path: Path, samples: Iterator[Sample]) -> int:
    """Write samples into an Arrow file as datasets writes them, and return how many they were. Audio that isn't there is null."""
    import pyarrow

    schema = pyarrow.schema({"id": pyarrow.string(), "text": pyarrow.string(), "speaker": pyarrow.string(), COLUMN: pyarrow.large_binary()})
    count = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        while rows := list(islice(samples, ROWS_AT_ONCE)):
            columns = {
                "id": [row.id for row in rows],
                "text": [row.text for row in rows],
                "speaker": [row.speaker for row in rows],
                COLUMN: [row.audio or None for row in rows],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(rows)
    return count
