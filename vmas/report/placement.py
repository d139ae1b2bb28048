"""The figure of `placement`: where the video helps, and how much of that the readings of eq. 3 cover."""

from typing import TYPE_CHECKING

import numpy as np

from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANCHORS = {
    "eq. 3": ("weight 1 by eq. 3", "#D55E00", "-"),
    "on the onset": ("weight 1 on the onset", "#0072B2", "--"),
    "shown beats (truth)": ("beat that is shown (truth)", "#009E73", ":"),
}
MEAN, TIMES = "gain, nats a token", "gain a token, times the mean"


def figure(record: Record) -> "Figure":
    """A row a model: left the gain a token around the tokens of weight 1, right each reading's gain over the mean.

    Bands and bars are 95% intervals over clips; the tick is chance, the same weights moved along the clip. The grey
    line on the left, in the first row, is the codec's look-ahead.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    curves = record.extra["curves"]
    ms = 1000 / record.extra["frame_rate"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(10.5, 3.3 * len(curves) + 0.5), layout="constrained")
        axes = fig.subplots(len(curves), 2, squeeze=False, gridspec_kw={"width_ratios": [1.2, 1]})
        for i, ((left, right), (model, found)) in enumerate(zip(axes, curves.items(), strict=True)):
            for anchor, points in found.items():
                label, colour, dash = ANCHORS[anchor]
                x = np.array([p["offset"] for p in points]) * ms
                mean, lo, hi = (np.array([p[k] for p in points], float) for k in ("mean", "lo", "hi"))
                left.plot(x, mean, dash, color=colour, label=label)
                left.fill_between(x, lo, hi, color=colour, alpha=0.2, lw=0)
            rows = [r for r in record.rows if r.dataset.endswith(f": {model}")]
            for r in rows:
                if r.metric == MEAN and r.value is not None:
                    left.axhline(r.value, color="#666666", lw=0.8, ls=(0, (1, 1)), label="mean token")
            left.axvline(0, color="black", lw=0.8)
            left.axhline(0, color="black", lw=0.5)
            left.set_title(model, loc="left", fontsize=9, fontweight="bold")
            left.set_ylabel("gain by the own video,\nnats a token")
            if i == 0 and record.extra["lookahead"]:
                _lookahead(left, record.extra["lookahead"], ms)
            left.legend(frameon=False, fontsize=7, loc="upper right")
            times = [r for r in rows if r.metric == TIMES and r.value is not None]
            for y, r in enumerate(times):
                if r.chance is not None:
                    right.plot(r.chance, y, "|", color="#666666", ms=12, mew=1.5)
                if r.ci95:
                    right.plot(list(r.ci95), [y, y], color="#444444", lw=2.5, alpha=0.5, solid_capstyle="butt")
                colour = ANCHORS.get(r.system, ("", "#444444", ""))[1]
                right.plot(r.value, y, "o", color=colour, ms=6, mec="white", mew=0.6)
            if not times:
                right.text(0.5, 0.5, "the mean gain is not told from 0", ha="center", transform=right.transAxes)
            right.axvline(1, color="black", lw=0.8)
            right.set_yticks(range(len(times)), [r.system for r in times], fontsize=8)
            right.set_ylim(max(len(times), 1) - 0.5, -0.5)
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


def _lookahead(ax, points: list[dict], ms: float) -> None:
    """Share of the first codebook's tokens that tell of a note before its onset, on an axis of its own."""
    beside = ax.twinx()
    x = [p["offset"] * ms for p in points]
    beside.plot(x, [p["first"] for p in points], color="#999999", lw=1)
    beside.set_ylim(0, 1.6)
    beside.set_yticks([0, 0.5, 1])
    beside.set_ylabel("grey: first codebook\nchanged by the note", fontsize=7, color="#666666", loc="bottom")
    beside.grid(False)
    for side in ("top", "left"):
        beside.spines[side].set_visible(False)
