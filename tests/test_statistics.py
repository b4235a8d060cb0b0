"""Bootstrap intervals and paired differences: against theory, and what they must never do."""

import math

import numpy as np
import pytest

from asr import statistics
from asr.statistics import Interval, bootstrap, paired


@pytest.fixture
def utterances():
    random = np.random.default_rng(3)
    words = random.integers(1, 20, 400)
    return random.binomial(words, 0.2), words


def test_an_interval_is_about_what_theory_says(utterances):
    """A ratio's standard error by the delta method: the deviations of errors from rate * words."""
    errors, words = utterances
    rate = errors.sum() / words.sum()
    error = np.sqrt(((errors - rate * words) ** 2).sum()) / words.sum()
    found = bootstrap(errors, words, samples=4000)
    assert found.low == pytest.approx(rate - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(rate + 1.96 * error, abs=0.1 * error)
    narrower = bootstrap(errors, words, samples=4000, level=0.5)
    assert found.low < narrower.low < rate < narrower.high < found.high


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        words = random.integers(1, 15, 150)
        low, high = bootstrap(random.binomial(words, 0.1), words, samples=300)
        held += low <= 0.1 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_the_same_numbers_give_the_same_answer_whatever_the_blocks(utterances, monkeypatch):
    errors, words = utterances
    first = bootstrap(errors, words)
    assert bootstrap(errors, words) == first
    assert bootstrap(errors, words, seed=1) != first
    monkeypatch.setattr(statistics, "BLOCK", 3 * len(words))
    assert bootstrap(errors, words) == pytest.approx(first, abs=0.005)


@pytest.mark.parametrize(("errors", "words"), [([], []), ([2, 1], [0, 0])], ids=["no utterances", "empty references"])
def test_where_nothing_was_said_there_is_no_rate(errors, words):
    found = bootstrap(np.array(errors), np.array(words))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    difference = paired(np.array(errors), np.array(errors), np.array(words))
    assert math.isnan(difference.difference)
    assert not difference.is_significant()


def test_samples_without_a_word_are_left_out():
    """One reference of two is empty: a quarter of the samples would divide by zero."""
    assert bootstrap(np.array([1, 1]), np.array([0, 2])) == Interval(0.5, 1.0)


def test_a_difference_that_chance_makes_is_not_significant_and_a_large_one_is(utterances):
    errors, words = utterances
    noise = np.random.default_rng(5).binomial(words, 0.2)
    alike, worse = paired(errors, noise, words), paired(errors, np.minimum(errors + 1, words), words)
    assert alike.difference == pytest.approx((noise.sum() - errors.sum()) / words.sum())
    assert alike.low < 0 < alike.high
    assert alike.p_value > 0.05
    assert worse.is_significant()
    assert 0 < worse.low < worse.difference < worse.high
    turned = paired(np.minimum(errors + 1, words), errors, words)
    assert (turned.difference, turned.p_value) == (-worse.difference, worse.p_value)


def test_a_run_does_not_differ_from_itself(utterances):
    errors, words = utterances
    assert paired(errors, errors, words) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_of_runs_that_are_alike_are_even():
    random = np.random.default_rng(1)
    words = random.integers(1, 15, 100)
    values = [paired(random.binomial(words, 0.2), random.binomial(words, 0.2), words, samples=300).p_value for _ in range(300)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10


def test_pairing_sees_what_intervals_side_by_side_do_not():
    """One more error in one utterance of ten, none less: the intervals of either run overlap, the difference is sure."""
    random = np.random.default_rng(2)
    words = np.full(300, 10)
    errors = random.binomial(words, 0.3)
    more = errors + (random.random(300) < 0.1)
    assert bootstrap(more, words).low < bootstrap(errors, words).high
    assert paired(errors, more, words).is_significant()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"both must be \[utterances\]"):
        bootstrap(np.zeros(3), np.zeros(2))
