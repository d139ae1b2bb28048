"""What an interval says of a difference: one rule for tables, figures and the claims ledger."""

BETTER, WORSE, UNCLEAR, FEW = "better", "worse", "no difference shown", "too few trainings"
TRAININGS = 3  # of each side, before a row may be called better or worse than another


def side(lo: float | None, hi: float | None, direction: str, trainings: int | None = None) -> str:
    """BETTER or WORSE where the 95% interval [lo, hi] of a difference leaves out 0, else UNCLEAR.

    `direction` is that of the metric, "up" where more is better. What is trained is called neither with fewer than
    `TRAININGS` trainings (FEW); None for what is not. An interval that is not there, or not a number, is UNCLEAR.
    """
    if trainings is not None and trainings < TRAININGS:
        return FEW
    if lo is None or hi is None or not (lo > 0 or hi < 0):
        return UNCLEAR
    return BETTER if (lo > 0) == (direction == "up") else WORSE
