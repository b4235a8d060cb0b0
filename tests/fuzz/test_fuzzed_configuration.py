"""Fuzzed command lines and YAML files: each is accepted, or refused in a few lines with an exit code of the contract."""

import collections

import pytest
from fuzzed_files import spoilt
from fuzzed_overrides import can_be_typed, command_line
from trial import Outcome, outcomes, real_launch

SEED = 6
MOST_BYTES = 1 << 30


def held(cases, folder):
    """Return how many cases ended with which code; fail with the first that breaks the contract."""
    cwd = folder / "a" / "b" / "c"  # what climbs out of it stays in the test's folder
    cwd.mkdir(parents=True)
    return counted(cases, outcomes("launch", list(cases.values()), cwd))


def counted(cases, ended):
    codes = collections.Counter()
    for (name, case), outcome in zip(cases.items(), ended, strict=True):
        broken = outcome.breaks() or (f"{outcome.peak_bytes >> 20} MiB" if outcome.peak_bytes > MOST_BYTES else "")
        assert not broken, f"{name}: {[word[:80] for word in case]}: {broken}\n{outcome.err[-2000:]}"
        codes[outcome.code] += 1
    return codes


def command_lines(numbers):
    return {f"seed {SEED}, command line {number}": command_line(SEED, number) for number in numbers}


def spoilt_trees(numbers, folder):
    cases = {}
    for number in numbers:
        said = spoilt(SEED, number, folder / "conf" / str(number))
        cases[f"seed {SEED}, tree {number}: {said}"] = ["--config-path", str(folder / "conf" / str(number)), "dry_run=true"]
    return cases


def test_a_fuzzed_command_line_is_accepted_or_refused_in_a_few_lines(tmp_path):
    codes = held(command_lines(range(150)), tmp_path)
    assert codes[2] > 100
    assert codes[0] > 2


def test_a_spoilt_tree_of_files_is_accepted_or_refused_in_a_few_lines(tmp_path):
    codes = held(spoilt_trees(range(30), tmp_path), tmp_path)
    assert min(codes[0], codes[2]) > 3


@pytest.mark.slow
def test_2000_fuzzed_command_lines(tmp_path):
    assert held(command_lines(range(2000)), tmp_path).total() == 2000


@pytest.mark.slow
def test_300_spoilt_trees_of_files(tmp_path):
    assert held(spoilt_trees(range(300), tmp_path), tmp_path).total() == 300


@pytest.mark.slow
def test_50_refused_launches_of_real_processes(tmp_path):
    lines = command_lines(range(200))
    refused = {
        name: words
        for (name, words), outcome in zip(lines.items(), outcomes("launch", list(lines.values()), tmp_path), strict=True)
        if outcome.code == 2 and can_be_typed(words)
    }
    chosen = dict(list(refused.items())[:50])
    assert len(chosen) == 50
    codes = counted(chosen, (real_launch(words, tmp_path) for words in chosen.values()))
    assert codes == {2: 50}


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
