"""Sound that stands inside a page: a few seconds of an utterance each, few enough to open the page quickly.

In: utterances. Out: data URIs of FLAC, mono at 16 kHz, which every browser plays; or why there is nothing to hear.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from asr import audio
from asr.errors import DataError
from asr.sources import Utterance

SAMPLE_RATE_HZ = 16000
MOST_SECONDS = 15.0
"""Of one utterance."""
MOST_BYTES = 2_000_000
"""Of all of a page, encoded; in base64 a third more."""


@dataclass(frozen=True)
class Clip:
    """What is played, and what is to be said of it."""

    uri: str = ""
    note: str = ""


class Clips:
    """Makes clips until a page is full."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.bytes_left = most_bytes

    def of(self, utterance: Utterance) -> Clip:
        """Return an utterance's clip. Of a long one the beginning alone is read."""
        seconds = utterance.seconds or 0.0
        try:
            if not utterance.audio.is_file():  # nor a pipe, which would be waited for
                return Clip(note=f"{utterance.audio} is not there any more")
            sound = _flac(utterance, min(seconds, MOST_SECONDS))
        except (DataError, OSError) as error:  # a folder that may not be looked into
            return Clip(note=str(error))
        if not sound:
            return Clip(note="there is no sound in it")
        if len(sound) > self.bytes_left:
            return Clip(note="its sound is left out: the page holds enough")
        self.bytes_left -= len(sound)
        note = f"the first {MOST_SECONDS:g} s of {seconds:.1f}" if seconds > MOST_SECONDS else ""
        return Clip(f"data:audio/flac;base64,{base64.b64encode(sound).decode('ascii')}", note)


def _flac(utterance: Utterance, seconds: float) -> bytes:
    """Return a part of an utterance from its beginning, encoded; nothing where there are no samples."""
    import soundfile

    samples = audio.read(
        utterance.audio,
        SAMPLE_RATE_HZ,
        column=utterance.column,
        row=utterance.row,
        start_seconds=utterance.start_seconds or 0.0,
        seconds=seconds,
    )
    if not len(samples):
        return b""
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return encoded.getvalue()
