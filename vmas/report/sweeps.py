"""What a sweep's record shows besides its table: paired differences, validation curves, quality against data size."""

import re
from typing import TYPE_CHECKING

import numpy as np

from vmas.errors import DataError
from vmas.metrics.verdict import FEW, side
from vmas.records import Record, Row
from vmas.report import palette, paper, table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CURVES = {
    "ce": "cross-entropy,\nnats per token",
    "L_g": "L_g (eq. 4), nats",
    "L_c": "L_c (eq. 2), nats",
}


def verdict(direction: str, lo: float | None, hi: float | None, seeds: int) -> str:
    """Whether a difference is one (`vmas.metrics.verdict.side`): "better", "worse", "no difference shown", or with too
    few trainings "cannot tell"."""
    said = side(lo, hi, direction, seeds)
    return f"cannot tell: {seeds} training{'s' * (seeds > 1)} each" if said == FEW else said


def compared(record: Record) -> list[tuple[str, str, list]]:
    """Every comparison of two rows: condition, the one that it is compared with, and what changes; each row's own
    first, then further pairs (`extra["pairs"]`)."""
    own = [(name, record.extra["against"][name], found) for name, found in record.extra["differences"].items()]
    return own + [(p["condition"], p["against"], p["differences"]) for p in record.extra.get("pairs", ())]


def gains(record: Record) -> "pd.DataFrame":
    """Paired differences of every two rows that are `compared`, one line a pair, data set and metric.

    Columns condition, against, dataset, metric, difference, lo, hi (95% interval over seeds and clips), better (share
    of the clips of a seed that come out better than the other row's; of FAD: of the seeds), better_lo, better_hi,
    seeds, verdict.
    """
    import pandas as pd

    lines = [
        {
            "condition": name,
            "against": to,
            **{k: g[k] for k in ("dataset", "metric", "difference", "lo", "hi")},
        }
        | {"better": g["improvement"], "better_lo": g["improvement_lo"], "better_hi": g["improvement_hi"]}
        | {"seeds": g["seeds"], "verdict": verdict(g["direction"], g["lo"], g["hi"], g["seeds"])}
        for name, to, found in compared(record)
        for g in found
    ]
    columns = [
        "condition",
        "against",
        "dataset",
        "metric",
        "difference",
        "lo",
        "hi",
        "better",
        "better_lo",
        "better_hi",
        "seeds",
    ]
    return pd.DataFrame(lines, columns=[*columns, "verdict"]).astype({k: float for k in columns[4:10]})


def trained(record: Record) -> "pd.DataFrame":
    """How the trainings ended, by their own objective L on the validation split: one line a condition and seed.

    Columns condition, seed, updates, best (the update with the lowest L), L best, L last, cross-entropy best and last
    (unweighted), and `last third`, by how much L changed over it, in percent: near 0 is flat.
    """
    import pandas as pd

    lines = []
    for name, runs in record.extra["curves"].items():
        for seed, curve in zip(record.extra["seeds"][name], runs, strict=True):
            if not curve:
                continue
            last, best = curve[-1], min(curve, key=lambda c: c["loss"])
            before = min(curve, key=lambda c: abs(c["step"] - last["step"] * 2 / 3))
            lines.append(
                {"condition": name, "seed": seed, "updates": last["step"], "best": best["step"]}
                | {"L best": best["loss"], "L last": last["loss"]}
                | {"cross-entropy best": min(c["ce"] for c in curve), "cross-entropy last": last["ce"]}
                | {"last third": 100 * (last["loss"] / before["loss"] - 1)}
            )
    return pd.DataFrame(lines)


def _labels(record: Record) -> list[str]:
    return list(dict.fromkeys(r.system for r in record.rows if r.value is not None))


def curves(record: Record) -> "Figure":
    """Validation cross-entropy, L_g and L_c against updates: a line a condition (its seeds' mean), a band their range.

    Seeds that were validated after other updates are drawn where all of them were.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    labels = dict(zip(record.extra["curves"], _labels(record), strict=True))
    dashes = ["-", "--", ":", "-."]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(11, 3.5), layout="constrained")
        for ax, (field, unit) in zip(fig.subplots(1, len(CURVES)), CURVES.items(), strict=True):
            seen: dict[str, int] = {}
            for name, runs in record.extra["curves"].items():
                steps = sorted(set.intersection(*({c["step"] for c in run} for run in runs)))
                y = np.array([[c[field] for c in run if c["step"] in steps] for run in runs], float)
                if field == "L_c" and not y.any():
                    continue  # the baseline has no contrast
                colour = palette.colour(labels[name])
                dash = dashes[seen.get(colour, 0) % len(dashes)]
                seen[colour] = seen.get(colour, 0) + 1
                ax.plot(steps, y.mean(0), dash, color=colour, label=labels[name])
                if len(runs) > 1:
                    ax.fill_between(steps, y.min(0), y.max(0), color=colour, alpha=0.2, lw=0)
            ax.set_xlabel("updates of stage 2")
            ax.set_ylabel(f"validation {unit}")
            sns.despine(ax=ax)
        lines, names = fig.axes[0].get_legend_handles_labels()
        fig.legend(lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return fig


def _share(row: Row) -> float:
    """The share of the data, in percent, that a row's name says. Raises DataError when it says none."""
    found = re.search(r"(\d+)%", row.system)
    if not found:
        raise DataError(f"row {row.system!r} names no share of the data")
    return float(found[1])


def data_size(record: Record, figure: str) -> "Figure":
    """Figure 6 (FAD) or 7 (MV Align): ours left, with intervals and chance; the paper's points right, quoted.

    The two have an axis each: data, scale and embedder differ. The paper prints Figure 7's points nowhere as
    numbers, so it has no right side. Raises DataError for another `figure`.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    if figure not in ("fig6", "fig7"):
        raise DataError(f"figure must be 'fig6' or 'fig7', got {figure!r}")
    starts = "FAD (codec)" if figure == "fig6" else "MV Align"
    ours = [r for r in record.rows if r.value is not None and r.metric.startswith(starts)]
    metric = ours[0].metric
    ours = [r for r in ours if r.metric == metric]
    quoted = paper.load(figure) if figure in paper.tables() else None
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(9 if quoted is not None else 4.8, 3.5), layout="constrained")
        left = fig.add_subplot(1, 1 if quoted is None else 2, 1)
        for dataset, colour, mark, aside in zip(
            dict.fromkeys(r.dataset for r in ours), ("#0072B2", "#D55E00"), "Do", (-0.7, 0.7), strict=False
        ):
            rows = sorted((r for r in ours if r.dataset == dataset), key=_share)
            x = [_share(r) + aside for r in rows]  # so that intervals of the two do not hide each other
            left.plot(x, np.array([r.value for r in rows], float), mark, ls="-", color=colour, label=dataset)
            for at, r in zip(x, rows, strict=True):
                if r.ci95:
                    left.plot([at, at], list(r.ci95), color=colour, lw=2.5, alpha=0.5)
            if rows[0].chance is not None:
                left.plot(x, np.array([r.chance for r in rows], float), ":", color=colour, lw=1)
        most = max(r.seeds or 0 for r in ours)
        head = f"computed here ({ours[0].status}, {f'up to {most} seeds' if most > 1 else 'one seed'})"
        chance = "; dotted: chance" if any(r.chance is not None for r in ours) else ""
        left.set_title(f"{head}\nbar: 95% interval{chance}", fontsize=8, loc="left")
        left.set_ylabel(f"{metric},\n{table.unit(metric)}")
        if quoted is not None:
            right = fig.add_subplot(1, 2, 2)
            for name, colour, mark in zip(dict.fromkeys(quoted.dataset), ("#0072B2", "#D55E00"), "Do", strict=False):
                part = quoted[quoted.dataset == name]
                right.plot(
                    [float(s.rstrip("%")) for s in part.row],
                    part.verbatim.astype(float),
                    mark,
                    ls="-",
                    color=colour,
                    label=name,
                )
            right.set_title("the paper's (quoted): its own data and embedder", fontsize=8, loc="left")
            right.set_ylabel(str(quoted.metric.iloc[0]))
        for ax in fig.axes:
            ax.set_xlabel("share of the training clips, %")
            ax.set_xlim(0, 105)
            ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22))  # clear of intervals
            sns.despine(ax=ax)
    return fig
