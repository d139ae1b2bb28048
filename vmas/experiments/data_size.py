"""Figures 6 and 7, quality against the share of the training data: 10, 25, 50 and 100%, as the paper has them."""

from vmas.experiments.sweep import Condition

TARGET = "data-size"
TITLE = "Figures 6 and 7. Data size"
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
