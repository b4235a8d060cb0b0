"""What is to be transcribed: audio files, folders of them, patterns, and manifests.

In: what a user names on the command line. Out: recordings as utterances without a transcript, and those that can't be read with the reason.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr import audio
from asr.errors import ConfigError, DataError
from asr.sources import Utterance, inside, json_lines

SUFFIXES = frozenset(".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .sph .w64 .wav".split())
"""What is taken from a folder; a file that is named is tried whatever its suffix."""
MANIFESTS = (".json", ".jsonl")
KEY = "AUDIO"


def find(named: Sequence[str]) -> list[Utterance]:
    """Return the recordings that a command line names, each once, in its order; raise ConfigError where a name leads to none.

    A file is itself, a folder all audio below it, a pattern (`*`, `?`, `[...]`, `**`) what it matches, a .jsonl file a manifest. `seconds`
    is set for the parts of files that a manifest names alone.
    """
    found = [recording for name in named for recording in _named(name)]
    if not found:
        raise ConfigError("names no audio: give files, folders, patterns or a manifest (.jsonl).", key=KEY)
    once: dict[tuple[object, ...], Utterance] = {}
    for recording in found:
        once.setdefault(
            (recording.audio.absolute(), recording.column, recording.row, recording.start_seconds, recording.seconds), recording
        )
    return list(once.values())


def _named(name: str) -> list[Utterance]:
    path = Path(name).expanduser()
    if path.is_dir():
        within = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        files = [file for file in within if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not files:
            raise ConfigError(f"{name} holds no audio (files of {', '.join(sorted(SUFFIXES))}).", key=KEY)
        return [_of(file) for file in files]
    if path.suffix.lower() in MANIFESTS and path.is_file():
        return list(_lines(path))
    if not path.exists() and any(sign in name for sign in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise ConfigError(f"no file matches {name!r}.", key=KEY)
        return [_of(file) for file in matches]
    return [_of(path)]  # one that isn't there is told with those that can't be read


def _of(path: Path) -> Utterance:
    return Utterance(id=str(path), audio=path, text="")


def _lines(manifest: Path) -> Iterator[Utterance]:
    """Yield the rows of a manifest as NeMo's, or as a run's own in manifest/."""
    for where, row in json_lines(manifest):
        name = row.get("audio_filepath", row.get("audio"))
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} has no 'audio_filepath', nor 'audio', that names a file.")
        start = row.get("offset", row.get("start_seconds"))
        seconds = row.get("duration", row.get("seconds")) if start is not None else None
        path, cell = inside(manifest.parent, name, where=where), row.get("row")
        shown = f"{path}@{start:g}" if _is_number(start) else str(path) if cell is None else f"{path}, row {cell}"
        if (start is not None and not (_is_number(start) and _is_number(seconds))) or not (cell is None or isinstance(cell, int)):
            raise DataError(f"{where}: a part of a file needs its offset and its duration in seconds, and a cell of a table its row.")
        given = next((str(row[key]) for key in ("id", "utt_id") if row.get(key) is not None), shown)
        yield Utterance(given, path, "", seconds=seconds, start_seconds=start, row=cell, column=str(row.get("column") or ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def measured(recordings: Sequence[Utterance]) -> tuple[list[Utterance], dict[int, str]]:
    """Return the recordings with their seconds, from their headers, and what is wrong with those that can't be read, by number.

    Those keep None for their seconds.
    """
    found, problems = list(recordings), dict[int, str]()
    for number, recording in enumerate(recordings):
        try:
            whole = audio.seconds_of(recording.audio, column=recording.column, row=recording.row)
        except DataError as error:
            problems[number], found[number] = str(error), replace(recording, seconds=None)
            continue
        start = recording.start_seconds
        if start is None:
            found[number] = replace(recording, seconds=whole)
        elif start + (recording.seconds or 0.0) > whole + audio.TOLERANCE_SECONDS:
            problems[number] = f"{recording.audio} ends after {whole:.2f} s, before the part at {start:g} s does; mend the part's times."
            found[number] = replace(recording, seconds=None)
    return found, problems
