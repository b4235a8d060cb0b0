"""Spoilt audio files: each is decoded or reported; none crashes, hangs, or lets through what is no number."""

import pytest
from fuzzed_sounds import FORMATS, spoilt
from tallies import sounds

SEED = 6


def test_a_spoilt_file_is_decoded_or_reported(tmp_path):
    tally = sounds(SEED, 40, tmp_path)
    assert tally.failures == []
    assert min(tally.codes["decoded"], tally.codes["reported"]) > 10  # else it isn't the files that are tried


@pytest.mark.slow
def test_500_spoilt_files_are_decoded_or_reported(tmp_path):
    tally = sounds(SEED, 500, tmp_path)
    assert tally.failures == []
    assert tally.codes["decoded"] + tally.codes["reported"] == 500


def test_a_case_is_the_same_again_and_most_formats_come():
    files = [spoilt(SEED, number) for number in range(60)]
    assert files == [spoilt(SEED, number) for number in range(60)]
    assert len({suffix for suffix, _ in files}) > len({container for container, _ in FORMATS}) // 2
