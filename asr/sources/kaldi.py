"""Kaldi data directories: wav.scp, text, and where there are, segments and utt2spk.

In: <root>/<split>/ with these files. Out: rows in the order of `text`. Format: https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.errors import DataError
from asr.sources import Source, Utterance, folders_in, inside, lines_of


@dataclass(kw_only=True)
class Kaldi(Source):
    """A data directory a split below `root`; a relative path in wav.scp is relative to `root`."""

    train_split: str = "train"
    """A data directory below `root`; "train+dev" joins two."""
    eval_split: str = "test"
    """A data directory below `root`, or several joined by +."""

    @property
    def name(self) -> str:
        return Path(self.root).name if self.root else "kaldi"

    def check_reachable(self) -> None:
        for split in (self.train_split, self.eval_split):
            self.split_names(split, folders_in(self.corpus_folder()))

    def utterances(self, split: str) -> Iterator[Utterance]:
        root = self.corpus_folder()
        for name in self.split_names(split, folders_in(root)):
            yield from _directory(root, root / name)


def _directory(root: Path, folder: Path) -> Iterator[Utterance]:
    """Yield the rows of a data directory; raises DataError for an utterance without its counterpart in the other files."""
    recordings = _recordings(folder / "wav.scp", root)
    segmented = (folder / "segments").is_file()
    parts = _segments(folder / "segments", recordings) if segmented else {name: (path, None, None) for name, path in recordings.items()}
    speakers = {name: speaker for _, name, speaker in _once(folder / "utt2spk")} if (folder / "utt2spk").is_file() else None
    written = set()
    for where, name, text in _pairs(folder / "text"):
        written.add(name)
        if name not in parts:
            raise DataError(f"{where}: {name!r} is not in {folder / ('segments' if segmented else 'wav.scp')}.")
        if speakers is not None and name not in speakers:
            raise DataError(f"{where}: {name!r} is not in {folder / 'utt2spk'}.")
        path, start, seconds = parts[name]
        yield Utterance(name, path, text, (speakers or {}).get(name, ""), seconds, start)
    for name, (path, start, seconds) in parts.items():  # without a line in text: an empty transcript, left out and listed
        if name not in written:
            yield Utterance(name, path, "", (speakers or {}).get(name, ""), seconds, start)


def _recordings(path: Path, root: Path) -> dict[str, Path]:
    recordings = {}
    for where, name, file in _once(path):
        if "|" in file:
            raise DataError(f"{where} is a command, which is not run; write the audio to files first and name them in wav.scp.")
        if not file:
            raise DataError(f"{where} has no path; a line is: <recording> <path>.")
        recordings[name] = inside(root, file, where=where)
    return recordings


def _segments(path: Path, recordings: dict[str, Path]) -> dict[str, tuple[Path, float | None, float | None]]:
    """Return (file, start_seconds, seconds) by utterance."""
    parts: dict[str, tuple[Path, float | None, float | None]] = {}
    for where, line in lines_of(path):
        try:
            name, recording, *bounds = line.split()
            start, end = map(float, bounds)
        except ValueError as error:
            raise DataError(f"{where}: a line is: <utterance> <recording> <start> <end>, in seconds.") from error
        if recording not in recordings:
            raise DataError(f"{where}: recording {recording!r} is not in {path.parent / 'wav.scp'}.")
        to_the_end = end == -1
        if not (math.isfinite(start) and start >= 0 and (to_the_end or (math.isfinite(end) and end > start))):
            raise DataError(f"{where}: from {start:g} s to {end:g} s is no part of a file; the end is after the start, or -1.")
        if name in parts:
            raise DataError(f"{where}: {name!r} has a line already; an utterance is one part.")
        file = recordings[recording]
        parts[name] = (file, start, None if to_the_end else end - start)
    return parts


def _once(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield `_pairs` of a file whose first words are keys; raise DataError for a key that comes twice."""
    seen = set()
    for where, name, rest in _pairs(path):
        if name in seen:
            raise DataError(f"{where}: {name!r} has a line already; keep one.")
        seen.add(name)
        yield where, name, rest


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (where, first word, the rest) of every line."""
    for where, line in lines_of(path):
        name, *rest = line.split(maxsplit=1)
        yield where, name, rest[0].strip() if rest else ""
