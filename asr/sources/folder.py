"""A folder of audio files with their transcripts beside them, arranged as Hugging Face's audiofolder is.

In: <root>/<split>/ with metadata.csv, metadata.jsonl or a .txt file for every audio file. Out: rows in the order of
the metadata, or of the file names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, DataError
from asr.sources import Source, Utterance, check_column, folders_in, inside, json_lines, text_in

METADATA = ("metadata.csv", "metadata.jsonl")
AUDIO = frozenset(".aif .aiff .au .flac .mp3 .oga .ogg .opus .wav".split())


@dataclass(kw_only=True)
class Folder(Source):
    """Split folders below `root`. Metadata lies in a split's folder, or once in `root` with names such as train/a.wav."""

    train_split: str = "train"
    """A folder below `root`; "train+dev" joins two."""
    eval_split: str = "test"
    """A folder below `root`, or several joined by +."""
    audio_column: str = "file_name"
    """Column of the metadata that names the audio file, relative to the metadata's folder."""
    text_column: str = "text"
    """Column of the transcript."""
    speaker_column: str | None = None
    """Column of the speaker; null when there is none."""

    @property
    def name(self) -> str:
        return Path(self.root).name if self.root else "folder"

    def check_reachable(self) -> None:
        for split in (self.train_split, self.eval_split):
            self._names(split)

    def _names(self, split: str) -> list[str]:
        root = self.corpus_folder()
        folders = folders_in(root)
        if not folders:
            raise ConfigError(
                f"{root} has no folder a split; put the audio into {root / self.train_split} and {root / self.eval_split}, "
                "each with its metadata.csv, metadata.jsonl or .txt files.",
                key="root",
            )
        return self.split_names(split, folders)

    def utterances(self, split: str) -> Iterator[Utterance]:
        root = self.corpus_folder()
        for name in self._names(split):
            metadata = _metadata_in(root / name)
            shared = None if metadata else _metadata_in(root)
            if metadata:
                yield from self._listed(metadata, root, below=name)
            elif shared:
                yield from self._listed(shared, root, below=name)
            else:
                yield from _with_text_files(root / name, root)

    def _listed(self, metadata: Path, root: Path, *, below: str) -> Iterator[Utterance]:
        """Yield the rows of a metadata file whose audio lies in the split's folder."""
        rows = _rows(metadata)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{metadata} has no rows.")
        header = list(first[1])
        if metadata.suffix == ".csv" and len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise DataError(f"{metadata} separates its columns by something else than commas: its header is {header[0]!r}; convert it.")
        wanted = {key: getattr(self, key) for key in ("audio_column", "text_column", "speaker_column")}
        for key, column in wanted.items():
            if column is not None:
                check_column(column, header, key=key, where=metadata)
        empty = True
        for where, row in chain([first], rows):
            named = text_in(row, self.audio_column, where=where)
            if metadata.parent == root and Path(named).parts[:1] != (below,):
                continue
            empty = False
            speaker = "" if self.speaker_column is None else str(row.get(self.speaker_column) or "")
            audio = inside(metadata.parent, named, where=where)
            yield Utterance(_id_of(audio, root), audio, text_in(row, self.text_column, where=where), speaker)
        if empty:
            raise DataError(
                f"{metadata} names no file in {below}/; its {self.audio_column!r} starts with the split's folder, as in {below}/a.wav."
            )


def _metadata_in(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds both {' and '.join(METADATA)}; keep one.")
    return found[0] if found else None


def _rows(metadata: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a metadata file."""
    if metadata.suffix == ".jsonl":
        yield from json_lines(metadata)
        return
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{metadata}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where} has not as many fields as the header; put a field that holds a comma in quotes.")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{metadata} can't be read ({error}).") from error


def _with_text_files(folder: Path, root: Path) -> Iterator[Utterance]:
    """Yield the audio files of a folder and those below it; one without a .txt has an empty transcript, which is left out and listed."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)
    if not any(path.with_suffix(".txt").is_file() for path in found):
        raise DataError(f"{folder} holds no metadata.csv or metadata.jsonl, and no audio file with a .txt of the same name.")
    for path in found:
        beside = path.with_suffix(".txt")
        try:
            text = " ".join(beside.read_text(encoding="utf-8-sig").split()) if beside.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{beside} can't be read ({error}).") from error
        yield Utterance(_id_of(path, root), path, text)


def _id_of(audio: Path, root: Path) -> str:
    return (audio.relative_to(root) if audio.is_relative_to(root) else Path(audio.name)).with_suffix("").as_posix()
