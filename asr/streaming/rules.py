"""What an utterance must be to be trained on, told from its header and transcript as it comes by.

In: a sample of a shard. Out: an utterance with its seconds and label ids, or the reason why it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asr import audio, fitting, manifest
from asr.errors import DataError
from asr.labels import Labels
from asr.sources import Source
from asr.streaming.shards import Ref, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


INCOMPLETE = "no transcript or no audio"
BAD_SHARD = "rest of a shard that can't be read"
"""What utterances, and shards, are counted under."""


class Item(NamedTuple):
    """An utterance that is waiting for its batch, its audio still encoded."""

    ref: Ref
    epoch: int
    id: str
    text: str
    speaker: str
    seconds: float
    labels: Sequence[int]
    audio: bytes


class LeftOut(NamedTuple):
    """Why an utterance isn't used: what it is counted under, and its own case."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Frames:
    """Seconds of audio to a CTC model's output frames: asr.fitting's bound, in a form that a worker can be sent."""

    length: Callable[[float], int]
    count: Callable[[Sequence[int]], Any]

    def __call__(self, seconds: Sequence[float]) -> NDArray[np.int64]:
        return self.count([self.length(s) for s in seconds])  # type: ignore[no-any-return]


def heard(sample: Sample, shard: str) -> float | LeftOut:
    """Return the seconds that an utterance's header says, or what is wrong with the utterance."""
    if sample.problem:
        return LeftOut(INCOMPLETE, sample.problem)
    try:
        return audio.seconds_of(Path(shard), row=sample.ref.row, content=sample.audio)
    except DataError as error:
        return LeftOut("unreadable audio", str(error))


@dataclass(frozen=True)
class Rules:
    """The bounds of a source, the rules of its text and what a model can hold, for one utterance at a time."""

    source: Source
    normalise: Callable[[str], str]
    encode: Callable[[str], Sequence[int]]
    """Label ids of a normalised transcript."""
    bounds: fitting.Bounds

    def __call__(self, sample: Sample, shard: str, epoch: int) -> Item | LeftOut:
        """Return the utterance or why it is left out; raise DataError for one that is unreadable, with on_bad=fail."""
        seconds = heard(sample, shard)
        if isinstance(seconds, LeftOut):
            if self.source.on_bad == "fail":
                raise DataError(f"{seconds.detail} (dataset.on_bad=drop leaves it out)")
            return seconds
        text = self.normalise(sample.text)
        reason = manifest.reason_to_leave_out(self.source, seconds, text)
        if reason:
            return LeftOut(reason, f"{shard}, row {sample.ref.row}")
        labels = self.encode(text)
        unfit = fitting.unfit([seconds], Labels.of([labels]), self.bounds)
        if unfit:
            return LeftOut(unfit[0], f"{shard}, row {sample.ref.row}")
        return Item(sample.ref, epoch, sample.id, sample.text, sample.speaker, seconds, labels, sample.audio)
