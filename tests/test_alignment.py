"""Words of a reference beside those of a hypothesis, and which are confused."""

import pytest

from asr.alignment import Aligned, Confusions, aligned


def test_each_kind_of_error_stands_beside_its_word():
    (words,) = aligned(["the cat sat on it"], ["a cat sat down on"])
    assert words == [
        Aligned("substitute", "the", "a"),
        Aligned("equal", "cat", "cat"),
        Aligned("equal", "sat", "sat"),
        Aligned("insert", "", "down"),
        Aligned("equal", "on", "on"),
        Aligned("delete", "it", ""),
    ]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "kinds"),
    [
        ("", "", []),
        ("", "uh huh", ["insert"] * 2),
        ("yes", "", ["delete"]),
        ("שלום עולם", "שלום", ["equal", "delete"]),
        ("👋 hi", "👋 hi", ["equal"] * 2),
    ],
)
def test_empty_sides_and_any_script(reference, hypothesis, kinds):
    (words,) = aligned([reference], [hypothesis])
    assert [word.kind for word in words] == kinds


def test_counts_are_jiwer_s_over_many_utterances():
    import random

    import jiwer

    dice = random.Random(0)
    texts = [[" ".join(dice.choices("abcde", k=dice.randrange(9))) for _ in range(600)] for _ in range(2)]
    counted = Confusions()
    each = [counted.count(words) for words in aligned(*texts)]
    whole = jiwer.process_words(*texts)
    assert len(each) == 600
    assert (counted.hits, counted.substitutions.total(), counted.deletions.total(), counted.insertions.total()) == (
        whole.hits, whole.substitutions, whole.deletions, whole.insertions,
    )  # fmt: skip
    assert [words for _, words in each] == [len(text.split()) for text in texts[0]]
    assert sum(errors for errors, _ in each) / sum(words for _, words in each) == pytest.approx(whole.wer)


def test_confused_words_are_counted_in_their_direction():
    counted = Confusions()
    for words in aligned(["two cats", "two", "to go"], ["to cats", "to", "two go now"]):
        counted.count(words)
    assert counted.substitutions == {("two", "to"): 2, ("to", "two"): 1}
    assert counted.insertions == {"now": 1}
    assert not counted.deletions
