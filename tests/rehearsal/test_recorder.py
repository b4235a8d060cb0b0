"""How a resumed run's weights are compared with those of one that never stopped."""

import math

import pytest
import torch

from asr.rehearsal.recorder import largest_difference


@pytest.mark.parametrize("broken", ["first", "last"])
def test_weights_that_are_no_numbers_are_never_equal(broken):
    ours = {"first": torch.zeros(2), "last": torch.zeros(2), "empty": torch.zeros(0)}
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, {**ours, "last": torch.tensor([0.0, -3.0])}) == 3
    theirs = {**ours, broken: torch.tensor([0.0, math.nan])}
    assert math.isnan(largest_difference(ours, theirs))
    assert math.isnan(largest_difference(theirs, theirs))
