"""What a smoke run is asked for at its end."""

import pytest

from vmas.errors import DataError
from vmas.experiments import smoke
from vmas.records import Record, Row


def smoke_run(value=0.5, chance=0.2, **val):
    same = {"status": "smoke", "n": 4, "seeds": 1}
    align = Row("Real", "test", "MV Align (2025, 9.6 fps)", "up", value, chance=chance, **same)
    training = {"motion": {"val": {"loss": 1.0}}, "vmas": {"val": {"step": 60, "ce": 3.9, "L_c": 2.0, **val}}}
    return Record("t", "smoke", "t", "k", (align,)), training


def test_a_working_smoke_run_passes():
    record, training = smoke_run()
    smoke.check(record, "Real", training, 64)  # ln 64 = 4.159


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": 0.2}, "'Real' \\(test\\) is 0.200, not above its chance 0.200"),
        ({"chance": None}, "has no value or no chance"),
        ({"ce": 4.16}, "cross-entropy ended at 4.16, not below ln 64 = 4.159"),
        ({"ce": float("nan")}, "cross-entropy ended at nan"),
        ({"L_c": float("nan")}, "the last L_c of stage vmas is nan"),
    ],
)
def test_a_broken_smoke_run_says_what_is_amiss(change, says):
    record, training = smoke_run(**change)
    with pytest.raises(DataError, match=says):
        smoke.check(record, "Real", training, 64)
