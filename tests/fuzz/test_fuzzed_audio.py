"""Spoilt audio files: each is decoded or reported; none crashes, hangs, or lets through what is no number."""

import pytest
from fuzzed_sounds import FORMATS, spoilt
from trial import outcomes

SEED = 6
MOST_BYTES = 1 << 30
"""Of the process that reads them, which has imported torch."""


def held(numbers, folder):
    counted = {"decoded": 0, "reported": 0}
    cases = [{"seed": SEED, "number": number} for number in numbers]
    for case, outcome in zip(cases, outcomes("sound", cases, folder), strict=True):
        assert outcome.code in counted, f"{case}: {outcome.code}"
        assert outcome.code == "decoded" or "case-" in outcome.err, f"{case}: reported without its name: {outcome.err}"
        assert outcome.peak_bytes < MOST_BYTES, f"{case}: {outcome.peak_bytes >> 20} MiB"
        counted[outcome.code] += 1
    return counted


def test_a_spoilt_file_is_decoded_or_reported(tmp_path):
    counted = held(range(60), tmp_path)
    assert min(counted.values()) > 10, counted  # else it isn't the files that are tried


@pytest.mark.slow
def test_500_spoilt_files_are_decoded_or_reported(tmp_path):
    assert sum(held(range(500), tmp_path).values()) == 500


def test_a_case_is_the_same_again_and_most_formats_come():
    files = [spoilt(SEED, number) for number in range(60)]
    assert files == [spoilt(SEED, number) for number in range(60)]
    assert len({suffix for suffix, _ in files}) > len({container for container, _ in FORMATS}) // 2
