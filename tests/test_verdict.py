"""What an interval says of a difference."""

import pytest

from vmas.metrics import verdict
from vmas.metrics.verdict import BETTER, FEW, UNCLEAR, WORSE

NAN = float("nan")


@pytest.mark.parametrize(
    ("lo", "hi", "direction", "want"),
    [
        (0.1, 0.2, "up", BETTER),
        (-0.2, -0.1, "up", WORSE),
        (0.1, 0.2, "down", WORSE),
        (-0.2, -0.1, "down", BETTER),
        (-0.1, 0.2, "up", UNCLEAR),
        (0.0, 0.2, "up", UNCLEAR),
        (-0.2, 0.0, "down", UNCLEAR),
        (NAN, NAN, "up", UNCLEAR),
        (None, None, "down", UNCLEAR),
    ],
)
def test_an_interval_that_leaves_out_0_decides(lo, hi, direction, want):
    assert verdict.side(lo, hi, direction) == want
    assert verdict.side(lo, hi, direction, verdict.TRAININGS) == want
    assert verdict.side(lo, hi, direction, verdict.TRAININGS - 1) == FEW
