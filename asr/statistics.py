"""How far chance alone moves an error rate: bootstrap intervals, and whether two runs differ.

In: errors and words of each utterance. Out: an interval, or the difference of two runs with its interval and p-value. NumPy alone; the
same numbers give the same answer every time.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004): utterances are drawn again,
with replacement, and the rate of each such sample is taken. Utterances count as independent of each other; where few speakers say many of
them, the truth is wider.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1 << 22
"""Utterances that are drawn at a time: what bounds the memory of a million utterances."""
PAIRED_SAMPLES = 10_000
"""A p-value of 0.05 is then known to 0.002."""


class Interval(NamedTuple):
    """Where a rate lies; NaN where nothing was said, so that there is none."""

    low: float
    high: float


class Paired(NamedTuple):
    """The second run's rate less the first's over the same utterances: below zero the second is better."""

    difference: float
    low: float
    high: float
    p_value: float
    """How often chance alone gives a difference at least as far from zero, either way."""

    def is_significant(self, level: float = 0.95) -> bool:
        return self.p_value < 1 - level


def bootstrap(errors: NDArray[Any], words: NDArray[Any], *, samples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the interval of sum(errors) / sum(words); both are of shape [utterances].

    `words` is what errors are counted against: words of the reference for WER, its characters for CER.
    """
    import numpy as np

    rates = np.concatenate([e / w for e, w in _resampled(errors, words, samples, seed)] or [np.empty(0)])
    return _interval(rates, level)


def paired(
    errors_a: NDArray[Any],
    errors_b: NDArray[Any],
    words: NDArray[Any],
    *,
    samples: int = PAIRED_SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Paired:
    """Return how much higher b's rate is than a's over the same utterances, each of shape [utterances].

    Each sample has the same utterances of both, so that what is hard for both counts for neither.
    """
    import numpy as np

    more = np.asarray(errors_b) - np.asarray(errors_a)
    said = np.sum(words)
    difference = float(more.sum() / said) if said else float("nan")
    differences = np.concatenate([e / w for e, w in _resampled(more, words, samples, seed)] or [np.empty(0)])
    if not len(differences):
        return Paired(difference, float("nan"), float("nan"), 1.0)
    # one is added to either side, since the sample that was observed is one too (Davison and Hinkley, 1997, section 4.2)
    least = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * float(least + 1) / (len(differences) + 1))
    return Paired(difference, *_interval(differences, level), p_value)


def _resampled(errors: NDArray[Any], words: NDArray[Any], samples: int, seed: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield sums of errors and words of samples, some at a time; those in which nothing was said are left out."""
    import numpy as np

    errors, words = np.asarray(errors), np.asarray(words)
    if errors.shape != words.shape or errors.ndim != 1:
        raise ValueError(f"errors and words have the shapes {errors.shape} and {words.shape}; both must be [utterances].")
    if not len(words) or not words.any():
        return
    random = np.random.default_rng(seed)
    at_a_time = max(1, BLOCK // len(words))
    for first in range(0, samples, at_a_time):
        drawn = random.integers(len(words), size=(min(at_a_time, samples - first), len(words)), dtype=np.int32)
        counted, said = errors[drawn].sum(axis=1), words[drawn].sum(axis=1)
        yield counted[said > 0], said[said > 0]


def _interval(values: NDArray[Any], level: float) -> Interval:
    import numpy as np

    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
