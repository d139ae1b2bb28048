"""Beat weights by corpus in one figure: MV Align with and without them, and what they change."""

from typing import TYPE_CHECKING

from vmas.errors import DataError
from vmas.metrics.verdict import FEW, TRAININGS, side
from vmas.records import Record, Row
from vmas.report import palette, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "MV Align"
COLOURS = {"test": ("#0072B2", "D"), "shifted": ("#009E73", "^")}


def _tick(name: str, sets: dict[str, dict[str, float]]) -> str:
    """A corpus and what its picture shows, as far as that is recorded."""
    about = sets.get(name)
    if not about:
        return f"{name} corpus"
    shown, besides = about["beats shown"], about["movements a second at random"]
    return f"{name} corpus\n{shown:.0%} of beats\n{besides:.1f} moves/s\nat random"


def figure(record: Record) -> "Figure":
    """Left and middle: MV Align of both rows by corpus, a panel a test set; right: the paired differences.

    Raises DataError for a record without MV Align.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    from vmas.experiments import corpora

    found = [r for r in record.rows if r.value is not None and r.metric.startswith(METRIC)]
    if not found:
        raise DataError(f"{record.target}: no row of {METRIC}")
    metric = found[0].metric  # of the profile's own frame rate; others follow it
    rows = {(r.system, r.dataset): r for r in found if r.metric == metric}
    datasets = list(dict.fromkeys(d for _, d in rows))
    sets = record.extra["sets"]
    order = [n for n in corpora.ORDER if any(c.name.startswith(f"{n}-") and (c.label, datasets[0]) in rows
                                             for c in corpora.CONDITIONS)]  # fmt: skip
    label = {c.name: c.label for c in corpora.CONDITIONS}
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(11, 3.6), layout="constrained")
        axes = fig.subplots(1, len(datasets) + 1)
        for ax, dataset in zip(axes, datasets, strict=False):
            for j, row in enumerate((corpora.BARE, corpora.WEIGHTED)):
                found = [(i, rows.get((label[f"{n}-{row}"], dataset))) for i, n in enumerate(order)]
                _points(ax, [(i + 0.16 * (j - 0.5), r) for i, r in found if r is not None])
            ax.set(ylabel=f"{metric},\n{table.unit(metric)}", title=dataset)
            ax.set_ylim(bottom=0)
            ax.legend(frameon=False, fontsize=7, loc="lower left")
        gain = axes[-1]
        for j, dataset in enumerate(datasets):
            colour, mark = COLOURS["shifted" if "shifted" in dataset else "test"]
            for i, name in enumerate(order):
                found = record.extra["differences"].get(f"{name}-{corpora.WEIGHTED}", [])
                for g in (g for g in found if (g["dataset"], g["metric"]) == (dataset, metric)):
                    x = i + 0.16 * (j - 0.5)
                    if g["lo"] is not None:
                        gain.plot([x, x], [g["lo"], g["hi"]], color=colour, lw=2, alpha=0.6)
                    known = dataset if dataset not in gain.get_legend_handles_labels()[1] else None
                    few = side(g["lo"], g["hi"], g["direction"], g["seeds"]) == FEW
                    gain.plot(x, g["difference"], mark, color=colour, mfc="white" if few else colour, label=known)
        gain.axhline(0, color="#666666", lw=0.8)
        gain.set(ylabel=f"with weights less without,\n{metric}", title="what beat weights change")
        lo, hi = gain.get_ylim()
        gain.set_ylim(lo, hi + 0.25 * (hi - lo))  # the legend above the data
        gain.legend(frameon=False, fontsize=7, loc="upper left")
        for ax in axes:
            ax.set_xticks(range(len(order)), [_tick(n, sets) for n in order], fontsize=7)
            ax.set_xlim(-0.5, len(order) - 0.5)
            ax.title.set_fontsize(8)
            sns.despine(ax=ax)
        fewest = min(r.seeds or 0 for r in rows.values())
        most = max(r.seeds or 0 for r in rows.values())
        trainings = f"{most} training{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} trainings"
        marks = f"bars: 95% intervals, dotted: chance; hollow: fewer than {TRAININGS} trainings"
        fig.suptitle(
            f"{record.title} ({record.rows[0].status}, {trainings} a row; {marks})", fontsize=9, x=0.01, ha="left"
        )
    return fig


def _points(ax, found: list[tuple[float, Row]]) -> None:
    """One system over the corpora: values, intervals and chance."""
    if not found:
        return
    system = found[0][1].system.rsplit(",", 1)[0]
    colour, mark = palette.colour(system), palette.marker(system)
    x = [i for i, _ in found]
    ax.plot(x, [r.value for _, r in found], mark, color=colour, label=system)
    for i, r in found:
        if r.ci95:
            ax.plot([i, i], list(r.ci95), color=colour, lw=2, alpha=0.6)
        if r.chance is not None:
            ax.plot([i - 0.07, i + 0.07], [r.chance] * 2, ":", color=colour, lw=1.5)
