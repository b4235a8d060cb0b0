"""Tokens of frames to text, and to words with the frames in which they are heard.

In: the token of every frame of a recording, and the tokenizer. Out: text as the tokenizer writes it, words with their frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PIECE_START = "\u2581"
"""What begins a word in vocabularies of SentencePiece."""


class Word(NamedTuple):
    """A word, the first of its frames and the first after it."""

    text: str
    begin: int
    end: int


def word_delimiter_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that stands between words; None for a tokenizer without one."""
    token = getattr(tokenizer, "word_delimiter_token", None)
    found = None if token is None else tokenizer.get_vocab().get(token)
    return None if found is None else int(found)


def runs(tokens: NDArray[Any], blank: int) -> list[tuple[int, int, int]]:
    """Return the tokens that are said, each with the first of its frames and the first after it: runs of equal ones, without blanks.

    >>> import numpy as np
    >>> runs(np.array([0, 5, 5, 0, 5, 7]), blank=0)
    [(5, 1, 3), (5, 4, 5), (7, 5, 6)]
    """
    import numpy as np

    if not len(tokens):
        return []
    begins = np.concatenate([[0], np.flatnonzero(np.diff(tokens)) + 1])
    ends = np.concatenate([begins[1:], [len(tokens)]])
    said = tokens[begins] != blank
    return list(zip(tokens[begins][said].tolist(), begins[said].tolist(), ends[said].tolist(), strict=True))


def words(said: Sequence[tuple[int, int, int]], tokenizer: PreTrainedTokenizerBase) -> list[Word]:
    """Return the words of tokens with their frames: between word delimiters, or from each token that begins a word.

    Where tokens tell no words apart, every token is one.
    """
    delimiter = word_delimiter_id(tokenizer)
    names = tokenizer.convert_ids_to_tokens([token for token, _, _ in said])
    by_pieces = delimiter is None and any(name.startswith(PIECE_START) for name in names)
    groups: list[list[tuple[int, int, int]]] = [[]]
    for item, name in zip(said, names, strict=True):
        if item[0] == delimiter:
            groups.append([])
            continue
        if delimiter is None and (not by_pieces or name.startswith(PIECE_START)):
            groups.append([])
        groups[-1].append(item)
    texts = [(written([token for token, _, _ in group], tokenizer), group) for group in groups if group]
    return [Word(text, group[0][1], group[-1][2]) for text, group in texts if text]


def written(said: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of tokens that are said, none of which stands for several frames any more."""
    # only tokenizers for CTC would take equal tokens together, and know the option
    options = {"group_tokens": False} if word_delimiter_id(tokenizer) is not None else {}
    return str(tokenizer.decode(list(said), **options)).strip()


def space(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what stands between words in this tokenizer's text."""
    has_pieces = any(name.startswith(PIECE_START) for name in tokenizer.get_vocab())
    return " " if word_delimiter_id(tokenizer) is not None or has_pieces else ""
