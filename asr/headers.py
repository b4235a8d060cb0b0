"""Durations of audio files from their headers, read in parallel and remembered between runs.

In: utterances, whose files may be missing or broken. Out: for each file its seconds, or what is wrong with it.
What is remembered of a file counts only while its size and time of change are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr import audio
from asr.config import cache_root
from asr.errors import DataError
from asr.sources import Source, Utterance

log = logging.getLogger(__name__)

SCHEMA = 1
CHUNK = 256
WORTH_A_PROCESS = 2000  # headers: an eighth of a second of reading each process, about what starting it takes

Key = tuple[str, str, int | None]
"""A file, or a cell of an Arrow file: path, column, row."""


@dataclass(frozen=True)
class Fact:
    """What a header said: seconds, or a problem. `stamp` is size and time of change (ns) of its file then."""

    stamp: tuple[int, int]
    seconds: float | None
    problem: str = ""


def key_of(utterance: Utterance) -> Key:
    return (str(utterance.audio), utterance.column, utterance.row)


def read_all(utterances: Iterable[Utterance], source: Source, split: str, *, partial: bool = False) -> dict[Key, Fact]:
    """Return the facts of every file that the utterances name; reads only what the cache doesn't know.

    `partial`: these are not all of the split, so what is remembered of others stays. Never raises for a file: a
    missing or unreadable one comes back with its problem.
    """
    keys = list(dict.fromkeys(map(key_of, utterances)))
    cache = HeaderCache.of(source, split)
    known = cache.load()
    stamps = _stamps({path for path, _, _ in keys})
    facts = {key: known[key] for key in keys if key in known and known[key].stamp == stamps[key[0]]}
    wanted = [key for key in keys if key not in facts and stamps[key[0]] is not None]
    if known:
        log.info("headers of %s: %d of %d from the cache%s", split, len(facts), len(keys), _why(keys, known, facts))
    for key, (seconds, problem) in zip(wanted, _read(wanted, source.num_workers, split), strict=True):
        facts[key] = Fact(stamps[key[0]] or (0, 0), seconds, problem)
    for key in keys:
        if stamps[key[0]] is None:
            facts[key] = Fact((0, 0), None, f"{key[0]} is not there; repair it or leave it out.")
    if wanted or (not partial and any(key not in facts for key in known)):
        kept = {key: fact for key, fact in known.items() if key not in facts} if partial else {}
        cache.save(kept | {key: fact for key, fact in facts.items() if stamps[key[0]] is not None})
    return facts


def _why(keys: Sequence[Key], known: Mapping[Key, Fact], facts: Mapping[Key, Fact]) -> str:
    changed = sum(key in known and key not in facts for key in keys)
    new = sum(key not in known for key in keys)
    said = [f"{n} {what}" for n, what in ((new, "new"), (changed, "changed or gone since")) if n]
    return f" ({', '.join(said)})" if said else ""


def _stamps(paths: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Return size and time of change of every file; None for one that isn't there."""
    stamps: dict[str, tuple[int, int] | None] = {}
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat over many files
            stamps[path] = (found.st_size, found.st_mtime_ns)
        except (OSError, ValueError):
            stamps[path] = None
    return stamps


def _read(keys: Sequence[Key], num_workers: int | None, split: str) -> list[tuple[float | None, str]]:
    from tqdm import tqdm

    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(keys) // WORTH_A_PROCESS)
    chunks = [keys[i : i + CHUNK] for i in range(0, len(keys), CHUNK)]
    bar = tqdm(total=len(keys), desc=f"reading headers ({split})", unit=" files", leave=False, disable=None)
    results: list[tuple[float | None, str]] = []
    with bar:
        if num_workers < 2 or len(chunks) < 2:
            done: Iterable[list[tuple[float | None, str]]] = map(_read_chunk, chunks)
            for chunk in done:
                results += chunk
                bar.update(len(chunk))
            return results
        # forked where that can be done: nothing is imported again, and no thread of ours runs yet
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(min(num_workers, len(chunks)), mp_context=context, initializer=_leave_signals_to_parent) as pool:
            for chunk in pool.map(_read_chunk, chunks):
                results += chunk
                bar.update(len(chunk))
    return results


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _read_chunk(keys: Sequence[Key]) -> list[tuple[float | None, str]]:
    results: list[tuple[float | None, str]] = []
    for path, column, row in keys:
        try:
            results.append((audio.seconds_of(Path(path), column=column, row=row), ""))
        except DataError as error:
            results.append((None, str(error)))
    return results


class HeaderCache:
    """One file of facts a corpus and split, named by a fingerprint of the source's inputs.

    The first line holds the inputs, the last one count and hash of the lines between: a file cut short isn't trusted.
    """

    def __init__(self, folder: Path, corpus: str, split: str, inputs: Mapping[str, Any]) -> None:
        self.inputs = {"schema": SCHEMA, "split": split, **json.loads(json.dumps(inputs, default=str))}
        self.prefix = re.sub(r"[^\w.-]+", "_", f"{corpus}-{split}")[:80]
        fingerprint = hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{self.prefix}-{fingerprint}.jsonl"

    @classmethod
    def of(cls, source: Source, split: str) -> HeaderCache:
        return cls(cache_root(None, "headers"), source.name, split, source.inputs())

    def load(self) -> dict[Key, Fact]:
        """Return what is remembered; when that is nothing, the log says why."""
        try:
            content = self.path.read_bytes()
        except OSError:
            log.info("headers of %s: no cache is used, %s", self.inputs["split"], self._why_none())
            return {}
        try:
            return self._parsed(content)
        except (ValueError, KeyError, TypeError, IndexError):
            log.warning("headers of %s: %s is cut short or damaged; it is rebuilt", self.inputs["split"], self.path)
            return {}

    def _parsed(self, content: bytes) -> dict[Key, Fact]:
        first, _, rest = content.partition(b"\n")
        body, _, last = rest.rstrip(b"\n").rpartition(b"\n")
        end = json.loads(last)
        if json.loads(first) != self.inputs or hashlib.sha256(body).hexdigest() != end["sha256"]:
            raise ValueError("not what was written")
        facts = {}
        for line in body.splitlines():
            path, column, row, size, changed, seconds, problem = json.loads(line)
            facts[(path, column, row)] = Fact((size, changed), seconds, problem)
        return facts

    def save(self, facts: Mapping[Key, Fact]) -> None:
        """Write the facts beside their place and move them there; a cache that can't be written is only logged."""
        body = "\n".join(json.dumps([*key, *fact.stamp, fact.seconds, fact.problem]) for key, fact in facts.items())
        encoded = body.encode()
        end = json.dumps({"rows": len(facts), "sha256": hashlib.sha256(encoded).hexdigest()})
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(json.dumps(self.inputs).encode() + b"\n" + encoded + b"\n" + end.encode() + b"\n")
            aside.replace(self.path)
        except OSError as error:
            log.warning("headers are not remembered: %s can't be written (%s)", self.path, error.strerror)

    def _why_none(self) -> str:
        """Say which input differs from the newest cache of the same corpus and split."""
        if self.path.exists():
            return f"{self.path} can't be read"
        others = []
        for path in self.path.parent.glob(f"{self.prefix}-{'?' * 16}.jsonl"):
            with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
                others.append((path.stat().st_mtime, path, json.loads(file.readline())))
        for _, _, before in sorted(others, reverse=True)[:1]:
            keys = sorted(k for k in {*before, *self.inputs} if before.get(k) != self.inputs.get(k))
            return "because " + ", ".join(f"{k} is {self.inputs.get(k)!r} and was {before.get(k)!r}" for k in keys)
        return "none was made yet"
