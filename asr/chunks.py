"""Recordings of any length in chunks that overlap, and what was heard in them joined again, without a word twice or left out.

In: blocks of samples; tokens by frame, or text, of each chunk. Out: chunks and batches of them; tokens of the whole, or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POOL = 4
"""Batches' worth of chunks that are put into an order by length at a time: what is kept in memory."""
LEAST_MATCH = 4
"""Characters that two texts must have in common for their overlap to be known by them."""

OFF_PENALTY, LEAST_OFF = 0.25, 8.0
"""What a character beside the place where the overlap is expected takes off a match's score, and how far off it may always be."""


@dataclass(frozen=True)
class Window:
    """How long chunks are, and how much of it a chunk shares with the next: samples, multiples of what gives one frame."""

    size: int
    overlap: int

    @classmethod
    def of(cls, seconds: float, overlap_seconds: float, rate_hz: int, unit: int = 1) -> Window:
        """Return the window of so many seconds, rounded to whole frames of `unit` samples: frames of all chunks lie on one grid."""
        size = max(round(seconds * rate_hz / unit), 2) * unit
        return cls(size, min(round(overlap_seconds * rate_hz / unit), size // unit - 1) * unit)

    @property
    def step(self) -> int:
        return self.size - self.overlap


@dataclass(frozen=True)
class Chunk:
    """A part of a recording: mono float32 samples from `start` on. `is_last`: where the recording ends."""

    recording: int
    number: int
    start: int
    samples: NDArray[np.float32]
    is_last: bool


def cut(recording: int, blocks: Iterable[NDArray[np.float32]], window: Window) -> Iterator[Chunk]:
    """Yield a recording's chunks; keeps one chunk and one block in memory. One of no length gives none."""
    import numpy as np

    kept, start, number = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        kept = np.concatenate([kept, block])
        while len(kept) > window.size:  # more follows: this one isn't the last
            yield Chunk(recording, number, start, kept[: window.size].copy(), False)
            kept, start, number = kept[window.step :], start + window.step, number + 1
    if len(kept):
        yield Chunk(recording, number, start, kept, True)


def batched(chunks: Iterable[Chunk], most_samples: int, *, rows: int | None = None) -> Iterator[list[Chunk]]:
    """Yield batches of chunks alike in length: at most `most_samples` with their padding, and `rows` where that is given."""
    pool: list[Chunk] = []
    size = 0
    for chunk in chunks:
        pool.append(chunk)
        size += len(chunk.samples)
        if size >= POOL * most_samples:
            batch, pool = _longest(pool, most_samples, rows)
            size -= sum(len(c.samples) for c in batch)
            yield batch
    while pool:
        batch, pool = _longest(pool, most_samples, rows)
        yield batch


def _longest(pool: list[Chunk], most_samples: int, rows: int | None) -> tuple[list[Chunk], list[Chunk]]:
    ordered = sorted(pool, key=lambda chunk: -len(chunk.samples))
    count = max(1, most_samples // max(len(ordered[0].samples), 1))
    count = min(count, rows or count)
    return ordered[:count], ordered[count:]


class Frames:
    """Tokens of a recording's frames, put together from its chunks as they come, in whatever order.

    Two chunks that overlap are joined where they agree the longest, so that no token is lost between them or said twice: near its
    edges a chunk hears less of what is around. `values` are what else each frame has, such as its log probabilities.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, NDArray[np.int32], NDArray[np.float32] | None]] = {}
        self._next = 0
        self._last: tuple[int, NDArray[np.int32], NDArray[np.float32] | None] | None = None
        self._tokens: list[NDArray[np.int32]] = []
        self._values: list[NDArray[np.float32]] = []

    def add(self, number: int, first_frame: int, tokens: NDArray[np.int32], values: NDArray[np.float32] | None = None) -> None:
        """Take in chunk `number`, whose tokens [frames] begin at `first_frame` of the recording; values are [frames, ...]."""
        self._waiting[number] = (first_frame, tokens, values)
        while self._next in self._waiting:
            self._follow(*self._waiting.pop(self._next))
            self._next += 1

    def _follow(self, first: int, tokens: NDArray[np.int32], values: NDArray[np.float32] | None) -> None:
        if self._last is not None:
            before, left, left_values = self._last
            shared = max(before + len(left) - first, 0)
            kept = seam(left[len(left) - shared :], tokens[:shared]) if shared else 0
            self._settle(left[: len(left) - shared + kept], None if left_values is None else left_values[: len(left) - shared + kept])
            first, tokens, values = first + kept, tokens[kept:], None if values is None else values[kept:]
        self._last = (first, tokens, values)

    def _settle(self, tokens: NDArray[np.int32], values: NDArray[np.float32] | None) -> None:
        self._tokens.append(tokens)
        if values is not None:
            self._values.append(values)

    def settled(self) -> NDArray[np.float32]:
        """Return the values of frames that no later chunk changes, and forget them."""
        import numpy as np

        taken, self._values = self._values, []
        return np.concatenate(taken) if taken else np.zeros((0, 0), np.float32)

    def end(self) -> NDArray[np.int32]:
        """Return the tokens of all frames."""
        import numpy as np

        if self._last is not None:
            self._settle(*self._last[1:])
            self._last = None
        return np.concatenate(self._tokens) if self._tokens else np.zeros(0, np.int32)


def seam(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    """Return how many frames of an overlap the left chunk keeps: to the middle of where both say the same the longest.

    Of stretches about as long the one nearest the overlap's middle; the middle itself where they agree on nothing.

    >>> import numpy as np
    >>> seam(np.array([5, 0, 0, 0, 7, 9]), np.array([2, 0, 0, 0, 7, 3]))
    3
    """
    import numpy as np

    middle = len(left) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (left == right).astype(np.int8), [0]])))
    stretches = [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    if not stretches:
        return int(middle)
    begin, end = max(stretches, key=lambda s: (s[1] - s[0]) - abs((s[0] + s[1]) / 2 - middle) / 4)
    return (begin + end + 1) // 2


class Texts:
    """Texts of a recording's chunks, put together as they come, in whatever order: what two that overlap both say is said once."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[str, int, int]] = {}

    def add(self, number: int, text: str, start: int, size: int) -> None:
        """Take in the text of chunk `number`: `size` samples from `start` on."""
        self._heard[number] = text, start, size

    def end(self) -> list[tuple[str, int, int]]:
        """Return the parts of the text, in order, each with its first sample and the first after it; overlaps end in their middles."""
        chunks = [self._heard[number] for number in sorted(self._heard)]
        parts = []
        kept, begin = chunks[0][0] if chunks else "", 0
        for (_, start, size), (text, next_start, next_size) in pairwise(chunks):
            shared = max(start + size - next_start, 0)
            keep, skip = text_seam(kept, text, shared / size, shared / next_size)
            middle = next_start + shared // 2
            parts.append((kept[:keep], begin, middle))
            kept, begin = text[skip:], middle
        if chunks:
            parts.append((kept, begin, chunks[-1][1] + chunks[-1][2]))
        return parts


def text_of(parts: Iterable[str]) -> str:
    """Return parts of a text as one: with a space where either side has one, so that writing without spaces stays so."""
    text = ""
    for part in parts:
        glued = not text or not part.strip() or not (text[-1:].isspace() or part[:1].isspace())
        text = text + part if glued else f"{text.rstrip()} {part.lstrip()}"
    return text.strip()


def text_seam(left: str, right: str, left_share: float, right_share: float) -> tuple[int, int]:
    """Return how many characters of `left` are kept, and how many of `right` left out, for what both say to be said once.

    The shares are how much of each text's chunk is the overlap. The texts are aligned by characters (Smith and Waterman's local
    alignment), so that half a word at an edge, and writing without spaces, are no obstacle, and cut at the space nearest the middle of
    what both say. Texts that have nothing in common there are each cut in the overlap's middle.

    >>> left, right = "one two three fo", "wo three four five"
    >>> keep, skip = text_seam(left, right, 0.7, 0.5)
    >>> left[:keep] + right[skip:]
    'one two three four five'
    """
    if not left.strip() or not right.strip():
        return len(left), 0
    expected = min((left_share * len(left) + right_share * len(right)) / 2, len(left), len(right))
    if not expected:
        return len(left), 0
    most = int(1.5 * expected) + 10
    tail, head = _folded(left[-most:]), _folded(right[:most])
    pairs = _aligned(tail, head, len(tail) - expected)
    if len(pairs) < min(LEAST_MATCH, expected):
        return _at_space(left, len(left) * (1 - left_share / 2)), _at_space(right, len(right) * right_share / 2)
    middle = len(pairs) / 2
    spaces = [i for i, (a, b) in enumerate(pairs) if tail[a].isspace() and head[b].isspace()]
    a, b = pairs[min(spaces, key=lambda i: abs(i - middle)) if spaces else int(middle)]
    return len(left) - len(tail) + a, b


def _folded(text: str) -> str:
    """Return text whose letters are compared whatever their case, as long as it was."""
    return "".join(low if len(low := character.casefold()) == 1 else character for character in text)


def _at_space(text: str, position: float) -> int:
    """Return the end, or beginning, of a word nearest a position; the position itself where there are no spaces."""
    places = [0, *(i for i, character in enumerate(text) if character.isspace()), len(text)]
    return min(places, key=lambda place: abs(place - position)) if len(places) > 2 else round(position)


def _aligned(left: str, right: str, shift: float) -> list[tuple[int, int]]:
    """Return the pairs of equal characters of the best local alignment near the expected `shift`: what is said again, as a refrain is,
    must not be taken for what is heard twice.
    """
    most_off = max(LEAST_OFF, 0.6 * (len(left) - shift))
    scores = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    best, end = 0.0, (0, 0)
    for i, a in enumerate(left, 1):
        above, row = scores[i - 1], scores[i]
        for j, b in enumerate(right, 1):
            here = max(0.0, above[j - 1] + (1.0 if a == b else -1.0), above[j] - 1.0, row[j - 1] - 1.0)
            row[j] = here
            off = abs((i - j) - shift)
            value = here - OFF_PENALTY * off
            if here and off <= most_off and value > best:
                best, end = value, (i, j)
    i, j = end
    pairs = []
    while i and j and scores[i][j] > 0:
        if scores[i][j] == scores[i - 1][j - 1] + (1.0 if left[i - 1] == right[j - 1] else -1.0):
            if left[i - 1] == right[j - 1]:
                pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif scores[i][j] == scores[i - 1][j] - 1.0:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
