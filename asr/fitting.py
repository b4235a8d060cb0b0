"""Which utterances a model and its batches can hold.

In: durations and labels of a split, and the bounds. Out: for each row that doesn't fit, why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.labels import Labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an utterance must fit into; None sets no bound.

    `frames` gives a CTC model's output frames for seconds of audio, float [rows] to int64 [rows]. `decoder_labels` is the most that
    a decoder takes (Whisper: 448), `window_seconds` what its encoder hears (30). `shape_seconds` and `shape_labels` are the most that
    a batch's fixed shape holds.
    `fastest` and `slowest` are what speed perturbation multiplies a duration by at least and at most.
    """

    frames: Callable[[Sequence[float]], NDArray[np.int64]] | None = None
    decoder_labels: int | None = None
    window_seconds: float | None = None
    shape_seconds: float | None = None
    shape_labels: int | None = None
    fastest: float = 1.0
    slowest: float = 1.0


def unfit(seconds: Sequence[float], labels: Labels, bounds: Bounds) -> dict[int, str]:
    """Return why rows can't be used, by row number.

    A row that speed perturbation makes too short or too long in some epoch doesn't fit in any.
    """
    reasons: dict[int, str] = {}
    at_speed = " at the fastest augment.speed_factors" if bounds.fastest < 1 else ""
    if bounds.frames is not None:
        short = labels.frames_needed() > bounds.frames([s * bounds.fastest for s in seconds])
        because = f"more labels than frames{at_speed} (CTC needs one for each, and one more between equal neighbours)"
        reasons |= {int(row): because for row in short.nonzero()[0]}
    at_speed = " at the slowest augment.speed_factors" if bounds.slowest > 1 else ""
    for row, (duration, count) in enumerate(zip(seconds, labels.lengths.tolist(), strict=True)):
        if bounds.decoder_labels is not None and count > bounds.decoder_labels:
            reasons[row] = f"more labels than the decoder takes ({bounds.decoder_labels})"
        elif bounds.window_seconds is not None and duration * bounds.slowest > bounds.window_seconds:
            reasons[row] = f"longer than the model hears ({bounds.window_seconds:g} s){at_speed}"
        elif bounds.shape_labels is not None and count > bounds.shape_labels:
            reasons[row] = f"more labels than batching.labels ({bounds.shape_labels})"
        elif bounds.shape_seconds is not None and duration * bounds.slowest > bounds.shape_seconds:
            reasons[row] = f"longer than batching.seconds ({bounds.shape_seconds:g}){at_speed}"
    return reasons
