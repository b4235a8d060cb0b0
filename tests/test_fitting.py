import numpy as np
import pytest

from asr.fitting import Bounds, unfit
from asr.labels import Labels

LABELS = Labels.of([[1, 2, 3], [1, 1, 2], [4], [5] * 449])
SECONDS = [0.3, 0.3, 20.5, 30.0]


def ten_frames_a_second(seconds):
    return np.array([int(10 * s + 1e-9) for s in seconds])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, {}),
        ({"frames": ten_frames_a_second}, {1: "more labels than frames (", 3: "more labels than frames ("}),
        (
            {"frames": ten_frames_a_second, "fastest": 0.9},
            dict.fromkeys((0, 1, 3), "more labels than frames at the fastest augment.speed_factors ("),
        ),
        ({"decoder_labels": 448}, {3: "more labels than the decoder takes (448)"}),
        ({"shape_seconds": 20.5}, {3: "longer than batching.seconds (20.5)"}),
        (
            {"shape_seconds": 20.5, "slowest": 1.1},
            dict.fromkeys((2, 3), "longer than batching.seconds (20.5) at the slowest augment.speed_factors"),
        ),
        ({"shape_labels": 2}, dict.fromkeys((0, 1, 3), "more labels than batching.labels (2)")),
    ],
)
def test_what_does_not_fit_says_why(bounds, expected):
    reasons = unfit(SECONDS, LABELS, Bounds(**bounds))
    assert reasons.keys() == expected.keys()
    assert all(reasons[row].startswith(said) for row, said in expected.items())
