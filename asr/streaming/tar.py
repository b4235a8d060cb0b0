"""Tar archives as shards, as WebDataset lays them out: what belongs to one utterance stands together under one name.

In: an archive with an audio file and a transcript an utterance (a.flac, a.txt; or a.json). Out: samples from any byte on at which one
begins. Format: https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asr.streaming.shards import Ref, Sample, Unit, opened

AUDIO = frozenset("wav flac mp3 ogg opus aif aiff au".split())
"""Endings of audio files that libsndfile reads."""
BLOCK = 512  # bytes; archives are made of them, and two of zeros end one


@dataclass(frozen=True)
class TarFormat:
    """`text_column` is the field of a `.json` member that holds the transcript where there is no `.txt`."""

    text_column: str = "text"
    speaker_column: str | None = None

    def samples(self, unit: Unit, start: Ref) -> Iterator[Sample]:
        """Yield the samples of an archive from a place on; raises tarfile.ReadError where it is cut short."""
        row, begin, name, files = start.row, start.offset, None, {}
        with opened(unit.shard) as file:
            for member, content, end in _members(file, begin):
                key, ending = _key(member)
                if key != name and name is not None:
                    yield self._sample(unit, name, files, Ref(start.unit, row, begin), Ref(start.unit, row + 1, member.offset))
                    row, begin, files = row + 1, member.offset, {}
                name = key
                files[ending] = content
                last = end
        if name is not None:
            yield self._sample(unit, name, files, Ref(start.unit, row, begin), Ref(start.unit, row + 1, last))

    def _sample(self, unit: Unit, name: str, files: dict[str, bytes], ref: Ref, after: Ref) -> Sample:
        where = f"{unit.shard}, {name}"
        audio = next((content for ending, content in files.items() if ending in AUDIO), None)
        text, speaker, problem = self._words(files, where)
        if audio is None:
            problem = f"{where}: there is no audio; it has {_endings(files)}, and audio is one of {', '.join(sorted(AUDIO))}."
        return Sample(ref, after, name, text, audio or b"", speaker, problem)

    def _words(self, files: dict[str, bytes], where: str) -> tuple[str, str, str]:
        """Return transcript, speaker and what is wrong with them."""
        try:
            fields: Any = json.loads(files["json"]) if "json" in files else {}
            plain = files["txt"].decode("utf-8").strip() if "txt" in files else None
        except (ValueError, RecursionError) as error:
            return "", "", f"{where}: its transcript can't be read ({str(error)[:100]})."
        if not isinstance(fields, dict):
            return "", "", f"{where}.json holds {type(fields).__name__}, not an object."
        speaker = fields.get(self.speaker_column or "speaker", "")
        text = plain if plain is not None else fields.get(self.text_column)
        if not isinstance(text, str):
            has = f"its .json has {', '.join(fields) or 'nothing'}" if "json" in files else f"it has {_endings(files)}"
            return "", "", f"{where}: there is no transcript: neither a .txt nor a .json with text in {self.text_column!r}; {has}."
        return text, str(speaker), ""


def _endings(files: dict[str, bytes]) -> str:
    return ", ".join(f".{ending}" for ending in files)


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """Return the name of a member's utterance and its ending: what stands before and after the first dot of the file's name."""
    folder, slash, file = member.name.rpartition("/")
    name, _, ending = file.partition(".")
    return f"{folder}{slash}{name}", ending.lower()


def _members(file: Any, offset: int) -> Iterator[tuple[tarfile.TarInfo, bytes, int]]:
    """Yield (member, its bytes, where the next begins) from a byte on; raise tarfile.ReadError for an archive without its end."""
    file.seek(offset)
    block = file.read(BLOCK)
    if not block.strip(b"\0") and len(block) == BLOCK:
        return
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
            following = archive.offset
            if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                continue
            stored = archive.extractfile(member)
            content = stored.read() if stored else b""
            if len(content) != member.size:
                raise tarfile.ReadError(f"{member.name} has {len(content)} of its {member.size} bytes")
            yield member, content, following
        file.seek(archive.offset)
        end = file.read(BLOCK)
    if len(end) != BLOCK or end.strip(b"\0"):  # tarfile takes a header that is cut or damaged for the end
        raise tarfile.ReadError(f"it ends at byte {archive.offset}, without the mark of an archive's end")
