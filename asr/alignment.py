"""References and hypotheses word by word: what was heard right, what for something else, what not at all, and what wasn't said.

In: normalised references and hypotheses. Out: aligned words, by jiwer's alignment, which the error rates come from too; and how often
which words are confused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jiwer

TOGETHER = 256
"""Utterances that jiwer gets at once: it keeps an object for every edit until it returns."""

EQUAL, SUBSTITUTE, DELETE, INSERT = KINDS = ("equal", "substitute", "delete", "insert")
"""jiwer's words for them (jiwer 4.0.0, process.py:49)."""


class Aligned(NamedTuple):
    """A word of the reference beside one of the hypothesis; one of them is empty where a word was deleted or inserted."""

    kind: str
    reference: str
    hypothesis: str


def aligned(references: Sequence[str], hypotheses: Sequence[str]) -> Iterator[list[Aligned]]:
    """Yield the aligned words of each utterance; none where both sides are empty.

    >>> next(aligned(["one two"], ["one too many"]))[1:]
    [Aligned(kind='substitute', reference='two', hypothesis='too'), Aligned(kind='insert', reference='', hypothesis='many')]
    """
    import jiwer

    for first in range(0, len(references), TOGETHER):
        found = jiwer.process_words(list(references[first : first + TOGETHER]), list(hypotheses[first : first + TOGETHER]))
        for said, heard, chunks in zip(found.references, found.hypotheses, found.alignments, strict=True):
            yield [word for chunk in chunks for word in _words(chunk, said, heard)]


def _words(chunk: jiwer.AlignmentChunk, said: Sequence[str], heard: Sequence[str]) -> Iterator[Aligned]:
    ours, theirs = said[chunk.ref_start_idx : chunk.ref_end_idx], heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
    for i in range(max(len(ours), len(theirs))):
        yield Aligned(chunk.type, ours[i] if ours else "", theirs[i] if theirs else "")


@dataclass
class Confusions:
    """Which words were taken for which, missed or made up, and how often."""

    hits: int = 0
    substitutions: Counter[tuple[str, str]] = field(default_factory=Counter)
    deletions: Counter[str] = field(default_factory=Counter)
    insertions: Counter[str] = field(default_factory=Counter)

    def count(self, words: Sequence[Aligned]) -> tuple[int, int]:
        """Take an utterance in; return its errors and the words of its reference."""
        errors = inserted = 0
        for kind, reference, hypothesis in words:
            if kind == EQUAL:
                self.hits += 1
                continue
            errors += 1
            if kind == SUBSTITUTE:
                self.substitutions[reference, hypothesis] += 1
            elif kind == DELETE:
                self.deletions[reference] += 1
            else:
                inserted += 1
                self.insertions[hypothesis] += 1
        return errors, len(words) - inserted
