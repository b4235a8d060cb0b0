"""Manifests as NeMo writes them: one JSON object a line, {"audio_filepath": ..., "duration": ..., "text": ...}.

In: a file a split. Out: rows in the order of the lines; with "offset", a part of a longer file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asr.errors import DataError
from asr.sources import Source, Utterance, inside, json_lines, text_in


@dataclass(kw_only=True)
class JsonLines(Source):
    """A manifest a split; audio that it names by a relative path lies relative to the manifest's own folder."""

    train_split: str = "train.jsonl"
    """A manifest, relative to `root`, or to the working directory when that is null; "a.jsonl+b.jsonl" joins two."""
    eval_split: str = "test.jsonl"
    """A manifest, or several joined by +."""
    audio_column: str = "audio_filepath"
    """Field that names the audio file."""
    text_column: str = "text"
    """Field of the transcript."""

    @property
    def name(self) -> str:
        return "jsonl"

    def check_reachable(self) -> None:
        for split in (self.train_split, self.eval_split):
            self._manifests(split)

    def utterances(self, split: str) -> Iterator[Utterance]:
        rows = [row for manifest in self._manifests(split) for row in self._rows(manifest)]
        parts_of = Counter(row.audio for row in rows if not row.id)
        files_called = Counter(audio.stem for audio in parts_of)
        for row in rows:
            name = row.audio.stem if files_called[row.audio.stem] == 1 else self._relative(row.audio.with_suffix(""))
            part = "" if parts_of[row.audio] == 1 or row.start_seconds is None else f"@{row.start_seconds}"
            yield row if row.id else replace(row, id=name + part)

    def _folder(self) -> Path:
        return self.corpus_folder() if self.root else Path.cwd()

    def _relative(self, path: Path) -> str:
        return (path.relative_to(self._folder()) if path.is_relative_to(self._folder()) else path).as_posix()

    def _manifests(self, split: str) -> list[Path]:
        root = self._folder()
        manifests = []
        for name in split.split("+"):
            path = root / Path(name.strip()).expanduser()
            if not path.is_file():
                beside = path.parent if path.parent.is_dir() else root
                there = sorted(self._relative(file) for file in beside.iterdir() if file.suffix in (".json", ".jsonl"))
                raise self.no_such_split(split, name.strip(), there)
            manifests.append(path)
        return manifests

    def _rows(self, manifest: Path) -> Iterator[Utterance]:
        for where, row in json_lines(manifest):
            yield Utterance(
                id=next((str(row[key]) for key in ("id", "utt_id") if row.get(key) is not None), ""),
                audio=inside(manifest.parent, text_in(row, self.audio_column, where=where), where=where),
                text=text_in(row, self.text_column, where=where),
                speaker=str(row.get("speaker") or ""),
                # without an offset the header decides: a manifest's duration may be rounded or stale
                start_seconds=None if row.get("offset") is None else _seconds(row, "offset", where),
                seconds=None if row.get("offset") is None else _seconds(row, "duration", where),
            )


def _seconds(row: dict[str, Any], field: str, where: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9 or not math.isfinite(value):
        raise DataError(f"{where}: {field!r} is {str(value)[:40]}, not seconds; a row with an offset needs both.")
    return float(value)
