"""Figures 6 and 7, quality against the share of the training data: 10, 25, 50 and 100%, as the paper has them.

Both figures come from the same runs; each shows its own metrics.
"""

import dataclasses
from typing import TYPE_CHECKING

from vmas.config import Profile
from vmas.experiments.sweep import Condition
from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "data-size"
TITLE = "Figures 6 and 7. Data size"
METRICS = {"fig6": ("FAD",), "fig7": ("MV Align", "Onsets")}  # what the names of each figure's metrics begin with
SHARES = (0.1, 0.25, 0.5, 1.0)
QUOTED = ("fig6",)  # the paper's numbers beside ours; it prints none of Figure 7's
REFERENCE = "share-100"
CONDITIONS: tuple[Condition, ...] = tuple(
    Condition(f"share-{round(100 * share)}", f"VMAs, {share:.0%} of the clips", {}, f"{share:.0%}", share)
    for share in SHARES
)
PAPER = tuple(c.name for c in CONDITIONS)
EVERY_SEED = PAPER
VARIANT_SEEDS = 0


def finish(record: Record, profile: Profile, file: str | None = None) -> Record:
    """The record of one of the figures: the rows, ours and quoted, and the differences of its own metrics."""

    def shown(metric: str) -> bool:
        return metric.startswith(METRICS[record.target])

    gains = {name: [g for g in found if shown(g["metric"])] for name, found in record.extra["differences"].items()}
    rows = tuple(r for r in record.rows if shown(r.metric))
    return dataclasses.replace(record, rows=rows, extra={**record.extra, "differences": gains})


def figure(record: Record) -> "Figure":
    """Ours against the share of the data, the paper's points beside on an axis of their own."""
    from vmas.report import sweeps

    return sweeps.data_size(record, record.target)
