"""Word error rates of parts of a split."""

import math

import numpy as np
import pytest

from asr.breakdown import MOST_SPEAKERS, by_seconds, by_speaker, by_words

ERRORS, WORDS = np.array([1, 0, 3, 2]), np.array([2, 4, 0, 8])


def test_durations_are_in_ranges_that_hold_their_ends():
    groups = by_seconds([1.0, 1.5, 2.0, 4000.0], ERRORS, WORDS)
    assert [(group.name, group.utterances, group.words, group.errors) for group in groups] == [
        ("up to 1 s", 1, 2, 1),
        ("1 to 2 s", 2, 4, 3),
        ("over 300 s", 1, 8, 2),
    ]


def test_empty_references_are_a_group_without_a_rate():
    groups = by_words(ERRORS, WORDS)
    assert [group.name for group in groups] == ["none", "2 to 3", "4 to 6", "7 to 10"]
    assert math.isnan(groups[0].rate)
    assert math.isnan(groups[0].low)
    assert groups[1].rate == pytest.approx(0.5)
    assert groups[0].errors == 3


def test_ranges_of_words_leave_no_number_out():
    words = np.arange(0, 130)
    groups = by_words(np.zeros_like(words), words)
    assert sum(group.utterances for group in groups) == 130
    assert [group.name for group in groups][:3] == ["none", "1", "2 to 3"]
    assert groups[-1].name == "over 100"


def test_speakers_with_the_most_errors_are_named_and_the_others_together():
    count = MOST_SPEAKERS + 5
    speakers, errors, words = [f"s{i:02}" for i in range(count)] * 2, np.tile(np.arange(count), 2), np.full(2 * count, 50)
    groups = by_speaker(speakers, errors, words)
    assert [group.name for group in groups[:2]] == [f"s{count - 1:02}", f"s{count - 2:02}"]
    assert len(groups) == MOST_SPEAKERS + 1
    assert (groups[-1].name, groups[-1].utterances, groups[-1].errors) == ("5 more", 10, 20)
    assert sum(group.errors for group in groups) == errors.sum()


def test_an_interval_holds_the_rate_and_is_narrower_with_more_utterances():
    dice = np.random.default_rng(0)
    errors, words = dice.integers(0, 4, 1000), np.full(1000, 10)
    few, many = (by_seconds([1.0] * n, errors[:n], words[:n])[0] for n in (20, 1000))
    for group in (few, many):
        assert group.low < group.rate < group.high
    assert many.high - many.low < few.high - few.low
