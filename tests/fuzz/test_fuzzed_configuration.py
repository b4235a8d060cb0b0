"""Fuzzed command lines and YAML files: each is accepted, or refused in a few lines with an exit code of the contract."""

import pytest
import tallies
from trial import Outcome, outcomes

SEED = 6


@pytest.mark.optimum_habana
def test_a_fuzzed_command_line_is_accepted_or_refused_in_a_few_lines(tmp_path):
    tally = tallies.command_lines(SEED, 25, tmp_path)
    assert tally.failures == []
    assert tally.codes[2] > 15
    assert tally.codes[0] > 1


def test_a_spoilt_tree_of_files_is_accepted_or_refused_in_a_few_lines(tmp_path):
    tally = tallies.trees(SEED, 10, tmp_path)
    assert tally.failures == []
    assert min(tally.codes[0], tally.codes[2]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("command_lines", 2000), ("trees", 300), ("launches", 50)])
def test_the_full_number(kind, number, tmp_path):
    tally = getattr(tallies, kind)(SEED, number, tmp_path)
    assert tally.failures == []
    assert tally.codes.total() == number


@pytest.mark.parametrize(
    ("outcome", "broken"),
    [
        (Outcome(0), ""),
        (Outcome(2, "error: seed: 'x' is not of type integer.\n"), ""),
        (Outcome(2, ""), "exit code 2 without a message"),
        (Outcome(1, "error: x"), "exit code 1 before a run began"),
        (Outcome(7, "error: x"), "ended with 7"),
        (Outcome("a hang of 120 s"), "ended with a hang of 120 s"),
        (Outcome(2, "error: x\nTraceback (most recent call last):\nValueError: y"), "shows a traceback: ValueError: y"),
        (Outcome(2, "error: " + "x" * 5000), "a message of 5007 characters"),
        (Outcome(2, "error: x\n" * 20), "a message of 20 lines"),
    ],
)
def test_what_breaks_the_contract(outcome, broken):
    assert outcome.breaks() == broken


def test_a_child_that_dies_is_named_and_the_next_case_goes_on(tmp_path):
    """The first argument of a case is what `child.py deadly` does."""
    ended = list(outcomes("deadly", ["segfault", "live", "exit", "live"], tmp_path))
    assert [outcome.code for outcome in ended] == ["a child killed: SIGSEGV", 0, "a child killed: exit code 5", 0]
