"""The figure of `placement`: where the video helps, and how much of that the readings of eq. 3 cover."""

from typing import TYPE_CHECKING

import numpy as np

from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANCHORS = {"eq. 3": ("#D55E00", "-"), "on the onset": ("#0072B2", "--")}
TIMES = "gain a token, times the mean"


def figure(record: Record) -> "Figure":
    """A row a model: left the gain a token around the tokens of weight 1, right each reading's gain over the mean.

    Bands and bars are 95% intervals over clips; the tick is chance, the same weights moved along the clip.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    curves = record.extra["curves"]
    ms = 1000 / record.extra["frame_rate"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(10.5, 2.9 * len(curves) + 0.5), layout="constrained")
        axes = fig.subplots(len(curves), 2, squeeze=False, gridspec_kw={"width_ratios": [1.2, 1]})
        for (left, right), (model, found) in zip(axes, curves.items(), strict=True):
            for anchor, points in found.items():
                colour, dash = ANCHORS[anchor]
                x = np.array([p["offset"] for p in points]) * ms
                mean, lo, hi = (np.array([p[k] for p in points], float) for k in ("mean", "lo", "hi"))
                left.plot(
                    x,
                    mean,
                    dash,
                    color=colour,
                    label=f"weight 1 by {anchor}" if anchor == "eq. 3" else f"weight 1 {anchor}",
                )
                left.fill_between(x, lo, hi, color=colour, alpha=0.2, lw=0)
            left.axvline(0, color="black", lw=0.8)
            left.axhline(0, color="black", lw=0.5)
            left.set_title(model, loc="left", fontsize=9, fontweight="bold")
            left.set_ylabel("gain by the own video,\nnats a token")
            left.legend(frameon=False, fontsize=7)
            rows = [r for r in record.rows if r.dataset.endswith(f": {model}") and r.metric == TIMES]
            for y, r in enumerate(rows):
                if r.chance is not None:
                    right.plot(r.chance, y, "|", color="#666666", ms=14, mew=1.5)
                if r.ci95:
                    right.plot(list(r.ci95), [y, y], color="#444444", lw=2.5, alpha=0.5, solid_capstyle="butt")
                colour = ANCHORS.get(r.system, ("#444444", ""))[0]
                right.plot(r.value, y, "o", color=colour, ms=6, mec="white", mew=0.6)
            right.axvline(1, color="black", lw=0.8)
            right.set_yticks(range(len(rows)), [r.system for r in rows])
            right.set_ylim(len(rows) - 0.5, -0.5)
            sns.despine(ax=left)
            sns.despine(ax=right, left=True)
        axes[-1][0].set_xlabel("time from the token of weight 1, ms")
        axes[-1][1].set_xlabel("gain a token of weight 1, times the mean")
    n = max(r.n or 0 for r in record.rows)
    status = next(r.status for r in record.rows)
    head = f"{record.title} ({status}, N = {n} clips)"
    fig.suptitle(
        f"{head}\nband, bar: 95% interval; grey tick: the same weights elsewhere", fontsize=9, x=0.01, ha="left"
    )
    return fig
