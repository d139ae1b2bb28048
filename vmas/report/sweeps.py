"""What a sweep's record shows besides its table: paired differences, validation curves, quality against data size."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas.errors import DataError
from vmas.metrics.verdict import FEW, side
from vmas.records import Record, Row
from vmas.report import palette, paper, table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEGEND = 3  # columns of a figure's legend: names of rows are long
PAIR = ("row", "against", "trainings")  # what a line of `paired` begins with
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


def paired(record: Record, dataset: str) -> "pd.DataFrame":
    """`gains` on one data set for reading, as text: a line a pair, metrics across.

    Columns row, against, trainings and the metrics, each `+6.344 [+4.841, +7.846] worse`; no word where no difference
    is shown, or where fewer than three trainings cannot tell.
    """

    def told(g) -> str:
        ci = "" if np.isnan(g.lo) else f" [{table.signed(g.lo)}, {table.signed(g.hi)}]"
        return table.signed(g.difference) + ci + (f" {g.verdict}" if g.verdict in ("better", "worse") else "")

    return _pairs(record, dataset, told)


def improvement(record: Record, dataset: str) -> "pd.DataFrame":
    """The same lines with how probable it is that a clip of a training comes out better, `48% [44%, 52%]`; ties count
    half, 50% is no effect. Of FAD, which belongs to a set, the share of trainings, with Wilson's interval."""
    return _pairs(
        record, dataset, lambda g: "{} [{}, {}]".format(*map(table.percent, (g.better, g.better_lo, g.better_hi)))
    )


def _pairs(record: Record, dataset: str, told: Callable[[Any], str]) -> "pd.DataFrame":
    import pandas as pd

    lines: dict[tuple[str, str], dict[str, str]] = {}
    for g in gains(record).query("dataset == @dataset").itertuples():
        pair = str(g.condition), str(g.against)
        known = dict(zip(PAIR, (*pair, str(g.seeds)), strict=True))
        lines.setdefault(pair, known)[str(g.metric)] = told(g)
    return pd.DataFrame(list(lines.values()), columns=list(max(lines.values(), key=len, default=PAIR))).fillna("—")


def reached(record: Record) -> "pd.DataFrame":
    """How far every row gets towards the ceiling (`vmas.report.remarks.reached`), in percent: rows down, a column a
    data set and metric."""
    import pandas as pd

    found = {f"{r['metric']}, {table.short(r['dataset'])}": r["shares"] for r in record.extra.get("reach", ())}
    shown = pd.DataFrame({head: {s: table.percent(x) for s, x in shares.items()} for head, shares in found.items()})
    return shown.rename_axis("System")


def markdown(record: Record) -> str:
    """A sweep's table as Markdown: `table.markdown`, with all that is compared and how far every row gets."""
    more = []
    for head, of in (("Paired differences", paired), ("Probability of improvement", improvement)):
        more += [(f"{head}: {d}", of(record, d).set_index("row")) for d in table.datasets(record)]
    if reach := record.extra.get("reach"):
        more.append((f"How far every row gets to {reach[0]['ceiling'].lower()}", reached(record)))
    return table.markdown(record, [(head, found) for head, found in more if len(found)])


def plain(record: Record) -> str:
    """A sweep's table for a terminal: a line a row, under the name by which `--only` knows it."""
    return table.plain(record, list(record.extra["curves"]))


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


def ended(record: Record) -> "pd.DataFrame":
    """How each row's trainings went, means over its seeds: one line a condition.

    Columns trainings, updates, `lowest L after` (the update at which its own validation objective was lowest, of the
    seeds the first and the last), `last third, %` (by how much L still changed over it), and the unweighted
    cross-entropy and L_c (0 without a contrast) at the first validation and at the last.
    """
    import pandas as pd

    lines = {}
    for name, part in trained(record).groupby("condition", sort=False):
        curves = [c for c in record.extra["curves"][name] if c]
        first, last = (pd.DataFrame([c[at] for c in curves]).mean() for at in (0, -1))
        lines[name] = {
            "trainings": len(part),
            "updates": part.updates.max(),
            "lowest L after": " to ".join(map(str, sorted({part.best.min(), part.best.max()}))),
            "last third, %": part["last third"].mean(),
            **{"cross-entropy, first": first.ce, "cross-entropy, last": last.ce},
            **{"L_c, first": first.L_c, "L_c, last": last.L_c},
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("row").round(3)


def curves(record: Record, names: Sequence[str] = ()) -> "Figure":
    """Validation cross-entropy, L_g and L_c against updates: a line a condition (its seeds' mean), a band their range.

    Seeds that were validated after other updates are drawn where all of them were. `names` chooses conditions, () is
    all of them; more than a dozen cannot be told apart. Raises DataError when none of them has a curve.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    labels = dict(zip(record.extra["curves"], table.systems(record), strict=True))
    chosen = [n for n, runs in record.extra["curves"].items() if all(runs) and (not names or n in names)]
    if not chosen:
        raise DataError(f"{record.target}: no validation curve of {', '.join(names) or 'any row'}")
    below = -(-len(chosen) // LEGEND)  # lines of the legend
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(11, 3.2 + 0.16 * below), layout="constrained")
        for ax, (field, unit) in zip(fig.subplots(1, len(CURVES)), CURVES.items(), strict=True):
            for name, look in zip(chosen, _looks([labels[n] for n in chosen]), strict=True):
                runs = record.extra["curves"][name]
                steps = sorted(set.intersection(*({c["step"] for c in run} for run in runs)))
                y = np.array([[c[field] for c in run if c["step"] in steps] for run in runs], float)
                if field == "L_c" and not y.any():
                    continue  # the baseline has no contrast
                every = (max(1, len(steps) // 5), max(1, len(steps) // 5))
                ax.plot(steps, y.mean(0), label=labels[name], ms=4, mew=0, markevery=every, **look)
                if len(runs) > 1:
                    ax.fill_between(steps, y.min(0), y.max(0), color=look["color"], alpha=0.2, lw=0)
            ax.set_xlabel("updates of stage 2")
            ax.set_ylabel(f"validation {unit}")
            sns.despine(ax=ax)
        lines, texts = fig.axes[0].get_legend_handles_labels()
        fig.legend(lines, texts, loc="outside lower left", ncols=LEGEND, frameon=False, fontsize=7)
    return fig


def _looks(labels: Sequence[str]) -> list[dict[str, str]]:
    """Colour, dash and marker of each line: the colour is the system's, dash and marker tell lines of one colour."""
    dashes, markers, seen = ["-", "--", ":", "-."], "osD^vPX*", Counter[str]()
    found = []
    for label in labels:
        colour = palette.colour(label)
        n = seen[colour]
        seen[colour] += 1
        dash = dashes[(n + n // len(markers)) % len(dashes)]  # the same marker comes again with another dash
        found.append({"color": colour, "ls": dash, "marker": markers[n % len(markers)]})
    return found


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
