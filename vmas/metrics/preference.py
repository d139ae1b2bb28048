"""Human preference between two systems (section 5.2, figure 3): one judgement is a win, a loss or a tie.

The paper does not say how it counts "Cannot tell"; the three usual ways stand side by side. Wilson's
interval takes judgements as independent; where subjects judge several pairs it is too narrow.
"""

from dataclasses import dataclass

from vmas.errors import DataError
from vmas.metrics.intervals import wilson


@dataclass(frozen=True)
class Share:
    """A share with its Wilson interval [lo, hi]; NaN when there is nothing to count."""

    value: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True)
class Preference:
    """`of_all`: wins / all; `decisive`: wins / (wins + losses); `half_ties`: (wins + ties/2) / all."""

    of_all: Share
    decisive: Share
    half_ties: Share
    wins: int
    losses: int
    ties: int


def preference(wins: int, losses: int, ties: int = 0, confidence: float = 0.95) -> Preference:
    """Preference of one system over another from counts. Raises DataError for negative or broken counts."""
    for name, count in (("wins", wins), ("losses", losses), ("ties", ties)):
        if int(count) != count or count < 0:
            raise DataError(f"{name} must be a count, got {count!r}")
    everything = wins + losses + ties
    return Preference(
        of_all=_share(wins, everything, confidence),
        decisive=_share(wins, wins + losses, confidence),
        half_ties=_share(wins + ties / 2, everything, confidence),
        wins=wins,
        losses=losses,
        ties=ties,
    )


def _share(part: float, n: int, confidence: float) -> Share:
    lo, hi = wilson(part, n, confidence)
    return Share(part / n if n else float("nan"), lo, hi, n)
