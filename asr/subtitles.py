"""Transcripts as text, JSON and subtitles (SubRip and WebVTT).

In: what was heard of a recording, with the times of words where they are known. Out: the content of a file of each format.
Source: https://www.w3.org/TR/webvtt1/; SubRip as players read it: https://www.matroska.org/technical/subtitles.html#srt-subtitles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_CHARACTERS, MOST_SECONDS, PAUSE_SECONDS = 84, 7.0, 0.8
"""Of a subtitle: two lines of 42 characters, as long as one reads them; a pause begins another."""


class Said(NamedTuple):
    """A word, or a longer part, and when it is heard, in seconds from the recording's beginning."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """What was heard of a recording. `words` have their times (CTC); without them `parts` are chunks, whose times are the chunks'."""

    name: str
    seconds: float
    text: str
    words: Sequence[Said] | None = None
    parts: Sequence[Said] = ()
    space: str = " "
    """What stands between words: nothing where a model's tokens don't tell words apart."""


def as_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def as_json(transcript: Transcript) -> str:
    """Return one JSON object in one line: times in seconds."""
    timed = {"words": _listed(transcript.words)} if transcript.words is not None else {"parts": _listed(transcript.parts)}
    content = {"audio": transcript.name, "seconds": round(transcript.seconds, 3), "text": transcript.text, **timed}
    return json.dumps(content, ensure_ascii=False) + "\n"


def _listed(said: Sequence[Said]) -> list[dict[str, object]]:
    return [{"text": item.text, "start": round(item.start, 3), "end": round(item.end, 3)} for item in said]


def as_srt(transcript: Transcript) -> str:
    """Return SubRip: numbered subtitles."""
    lines = [f"{i}\n{_time(c.start, ',')} --> {_time(c.end, ',')}\n{_lines(c.text)}\n" for i, c in enumerate(cues(transcript), 1)]
    return "\n".join(lines)


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT, in whose text & and < are written as entities."""
    lines = [f"{_time(c.start, '.')} --> {_time(c.end, '.')}\n{_escaped(_lines(c.text))}\n" for c in cues(transcript)]
    return "WEBVTT\n\n" + "\n".join(lines)


FORMATS: dict[str, Callable[[Transcript], str]] = {"text": as_text, "json": as_json, "srt": as_srt, "vtt": as_vtt}
SUFFIX = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def cues(transcript: Transcript) -> Iterator[Said]:
    """Yield subtitles: words together up to a pause, two lines or a few seconds. Without times of words they are shared out by length."""
    words = transcript.words if transcript.words is not None else [word for part in transcript.parts for word in _shared_out(part)]
    group: list[Said] = []
    for word in words:
        if group and _ends(group, word):
            yield _together(group, transcript.space)
            group = []
        group.append(word)
    if group:
        yield _together(group, transcript.space)


def _ends(group: Sequence[Said], word: Said) -> bool:
    length = sum(len(w.text) + 1 for w in group) + len(word.text)
    return word.start - group[-1].end >= PAUSE_SECONDS or length > MOST_CHARACTERS or word.end - group[0].start > MOST_SECONDS


def _together(group: Sequence[Said], space: str) -> Said:
    return Said(space.join(word.text for word in group), group[0].start, group[-1].end)


def _shared_out(part: Said) -> Iterator[Said]:
    """Yield a part's words, each with a share of its time by its length; writing without spaces is cut in lines."""
    words = [word[i : i + MOST_CHARACTERS // 2] for word in part.text.split() for i in range(0, len(word), MOST_CHARACTERS // 2)]
    total = sum(map(len, words)) or 1
    rate, at = (part.end - part.start) / total, part.start
    for word in words:
        yield Said(word, at, at + rate * len(word))
        at += rate * len(word)


def _lines(text: str) -> str:
    """Return text in two lines about as long, where one would be too long to read."""
    if len(text) <= MOST_CHARACTERS // 2:
        return text
    spaces = [i for i, character in enumerate(text) if character == " "]
    at = min(spaces, key=lambda i: abs(i - len(text) / 2), default=0)
    return f"{text[:at]}\n{text[at + 1 :]}" if at else text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    """Return a time as subtitles have it.

    >>> _time(3661.5, ",")
    '01:01:01,500'
    """
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
