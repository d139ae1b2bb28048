"""Figures of Table 6: the order of tokens in a window, cost against frames, quality against cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas.records import Record
from vmas.report import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmas.encoder import Layout

MODELS = {"CLIP ViT-B/16": "CLIP-style", "Hiera-B": "Hiera-style", "VMAs encoder": "VMAs encoder"}


def token_order(layout: "Layout") -> np.ndarray:
    """Where the tokens of the first time step go: int [2,H,W], the number of the window and the place in it."""
    import torch

    T, H, W = layout.grid
    order = layout.gather(torch.arange(T * H * W).view(1, T, H, W, 1))[..., 0].numpy()
    windows, length = order.shape
    out = np.empty((2, T * H * W), int)
    out[0, order.ravel()] = np.repeat(np.arange(windows), length)
    out[1, order.ravel()] = np.tile(np.arange(length), windows)
    return out.reshape(2, T, H, W)[:, 0]


def layouts(found: Sequence["Layout"], titles: Sequence[str]) -> "Figure":
    """One time step of each stage: a shade a window, a token's place in it as number, lines round pool cells."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2.6 * len(found), 3.2), layout="constrained")
    for ax, layout, title in zip(np.atleast_1d(fig.subplots(1, len(found))), found, titles, strict=True):
        window, place = token_order(layout)
        _, H, W = layout.grid
        # neighbouring windows alternate like a chessboard; a window over all of the clip is one shade
        across = W // layout.window[2]
        ax.imshow((window // across + window % across) % 2, cmap="Blues", vmin=-0.6, vmax=3)
        for (y, x), n in np.ndenumerate(place):
            ax.text(x, y, n, ha="center", va="center", fontsize=7 if H <= 8 else 4)
        p, q = layout.pool
        for k in range(0, H + 1, p):
            ax.axhline(k - 0.5, color="#333333", lw=1.6 if layout.cells > 1 else 0.3)
        for k in range(0, W + 1, q):
            ax.axvline(k - 0.5, color="#333333", lw=1.6 if layout.cells > 1 else 0.3)
        ax.set_title(title, fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
    return fig


def against_frames(rows: Sequence[dict[str, Any]], paper: dict[str, float]) -> "Figure":
    """GFLOPs against frames, logarithmic; a ring at the number of frames that the paper uses, `paper` as printed."""
    import seaborn as sns
    from matplotlib.figure import Figure

    used = {"CLIP ViT-B/16": 16, "Hiera-B": 16, "VMAs encoder": 96}
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(8, 3.4), layout="constrained")
        left, right = fig.subplots(1, 2)
        for model in dict.fromkeys(r["model"] for r in rows):
            found = [r for r in rows if r["model"] == model]
            colour, mark = palette.colour(MODELS[model]), palette.marker(MODELS[model])
            x = [r["frames"] for r in found]
            left.plot(x, [r["gflops"] for r in found], marker=mark, color=colour, label=model, ms=5)
            right.plot(x, [100 * r["attention_share"] for r in found], marker=mark, color=colour, label=model, ms=5)
            at = next((r for r in found if r["frames"] == used[model]), None)
            if at:
                left.plot(at["frames"], at["gflops"], "o", ms=12, mfc="none", mec=colour)
            if model in paper:
                left.plot(used[model], paper[model], "x", color=colour, ms=8, mew=2)
        left.plot([], [], "x", color="#666666", ms=8, mew=2, label="printed in Table 6")
        left.set(xlabel="frames of 224x224", ylabel="GFLOPs a clip, 2 a MAC, everything", yscale="log")
        right.set(xlabel="frames of 224x224", ylabel="share of attention, % of MACs", ylim=(0, None))
        left.legend(fontsize=7)
        sns.despine(fig=fig)
    return fig


def quality(record: Record) -> "Figure":
    """Quality against cost: a panel a metric of the corpus's own test set, GFLOPs across, intervals as bars."""
    import seaborn as sns
    from matplotlib.figure import Figure

    from vmas.experiments import table3, table6

    dataset = table3.DATASETS["test"]
    rows = [r for r in record.rows if r.dataset == dataset and r.value is not None]
    cost = {r.system: r.value for r in record.rows if r.metric == table6.GFLOPS and r.value is not None}
    metrics = [m for m in dict.fromkeys(r.metric for r in rows) if m.startswith(("FAD (codec)", "KL", "MV Align"))]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(2.9 * len(metrics) + 1, 3.3), layout="constrained")
        axes = np.atleast_1d(fig.subplots(1, len(metrics)))
        for ax, metric in zip(axes, metrics, strict=True):
            for r in (r for r in rows if r.metric == metric and r.system in cost):
                colour, mark = palette.colour(r.system), palette.marker(r.system)
                filled = colour if any(c.label == r.system and c.paper for c in table6.CONDITIONS) else "white"
                if r.chance is not None and not metric.startswith("KL"):  # KL's chance lies far off the panel
                    ax.plot(cost[r.system], r.chance, "_", color="#666666", ms=14, mew=1.5)
                if r.ci95:
                    ax.plot([cost[r.system]] * 2, r.ci95, color=colour, lw=2, alpha=0.6)
                ax.plot(cost[r.system], r.value, mark, ms=7, mfc=filled, mec=colour, label=r.system)
            arrow = (
                "lower is better"
                if next(r.direction for r in rows if r.metric == metric) == "down"
                else "higher is better"
            )
            ax.set(xlabel="GFLOPs a clip (2 a MAC)", title=f"{metric}\n{arrow}", xlim=(0, None))
            ax.title.set_fontsize(8)
        axes[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        sns.despine(fig=fig)
    fewest, most = min((r.seeds or 0) for r in rows), max((r.seeds or 0) for r in rows)
    seeds = f"{fewest} to {most}" if fewest != most else f"{most}"
    fig.suptitle(
        f"{record.title} ({rows[0].status}, {dataset}, training seeds: {seeds})\n"
        "bars: 95% intervals    grey: chance    open: variants",
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    return fig
