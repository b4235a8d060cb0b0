"""Word error rates of parts of a split: by duration, by the number of words, by speaker.

In: every utterance's errors and words, and what it is grouped by. Out: groups, each with its rate and the interval that
chance leaves it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from asr.statistics import bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECONDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 60, 300)
"""Where groups of durations end."""
WORDS = (0, 1, 3, 6, 10, 15, 20, 30, 50, 100)
"""The most words of each group; the first is of empty references."""
MOST_SPEAKERS = 15
"""That are shown: those with the most errors."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Utterances that have something in common."""

    name: str
    utterances: int
    words: int
    errors: int
    low: float = math.nan
    high: float = math.nan

    @property
    def rate(self) -> float:
        """The word error rate; NaN where nothing was said, so that all errors are insertions."""
        return self.errors / self.words if self.words else math.nan


def by_seconds(seconds: Sequence[float], errors: NDArray[Any], words: NDArray[Any]) -> list[Group]:
    """Return a group for each range of durations that has utterances, the shortest first."""
    names = [
        f"up to {SECONDS[0]} s",
        *(f"{low} to {high} s" for low, high in pairwise(SECONDS)),
        f"over {SECONDS[-1]} s",
    ]
    found = _rows(_place(value, SECONDS) for value in seconds)
    return [_group(names[place], found[place], errors, words) for place in sorted(found)]


def by_words(errors: NDArray[Any], words: NDArray[Any]) -> list[Group]:
    """Return a group for each range of numbers of words in the reference, the shortest first."""
    ranges = [(low + 1, high) for low, high in pairwise(WORDS)]
    names = ["none", *(str(low) if low == high else f"{low} to {high}" for low, high in ranges), f"over {WORDS[-1]}"]
    found = _rows(_place(value, WORDS) for value in words.tolist())
    return [_group(names[place], found[place], errors, words) for place in sorted(found)]


def by_speaker(speakers: Sequence[str], errors: NDArray[Any], words: NDArray[Any]) -> list[Group]:
    """Return a group for each of the speakers with the most errors, these first; of all others together, if there are, the last."""
    found = _rows(speakers)
    ranked = sorted(found, key=lambda name: (-int(errors[found[name]].sum()), name))
    shown, others = ranked[:MOST_SPEAKERS], ranked[MOST_SPEAKERS:]
    groups = [_group(name or "not known", found[name], errors, words) for name in shown]
    if others:
        groups.append(_group(f"{len(others)} more", [row for name in others for row in found[name]], errors, words))
    return groups


def _place(value: float, ends: Sequence[int]) -> int:
    """Return the number of the range that a value lies in; ranges hold their ends."""
    return sum(value > end for end in ends)


def _rows(keys: Iterable[Key]) -> dict[Key, list[int]]:
    found: dict[Key, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        found[key].append(row)
    return found


def _group(name: str, rows: list[int], errors: NDArray[Any], words: NDArray[Any]) -> Group:
    interval = bootstrap(errors[rows], words[rows])
    return Group(name, len(rows), int(words[rows].sum()), int(errors[rows].sum()), *interval)
