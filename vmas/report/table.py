"""What a reader opens: table.md, table.csv, figure.png and result.json of a record."""

import dataclasses
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmas import records
from vmas.records import Record, Row
from vmas.report import palette

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WIDTH = 120  # of a line in the terminal
HEAD = 12  # at which the head of a narrow column is folded
WIDE = 8  # times the smallest value of a metric, beyond which its axis is logarithmic
ARROWS = {"up": " ↑", "down": " ↓", "none": ""}
MEANING = {
    "reproduced": "reproduced: paper scale, run here",
    "scaled_down": "scaled_down: small models on the procedural corpus, run here; no verdict on the paper's values",
    "smoke": "smoke: every stage ran, the numbers mean nothing",
    "quoted": "quoted: the paper's own number, on its own data",
    "unavailable": "unavailable (—): no number to quote",
}
COUNTS = ("videos",)  # metrics whose values are whole
# What a metric must be read beside; printed under a table that has the metric.
CAVEATS = {
    "FAD (codec)": "FAD (codec) compares with the real music after the codec, so that it judges the model and not "
    "the codec; FAD (real) compares with the real music itself. Both use the small embedder trained here.",
    "KL": "KL is 0 for real music by definition.",
    "MV Align": "MV Align names its version and frame rate: values of another version or rate do not compare. "
    "lift: what it has over chance.",
    "shift of the maximum": "In the rows of the shifted video chance is the clips' own peaks, moved by three frames or "
    "more (circular).",
    "extra NLL": "extra NLL: nats a clip more than under its own video, or with X_v in time; positive = that helps.",
    "log-odds": "log-odds: the tagger's, of the second clip's genre against the first's, in nats.",
    "share of the slow-down": "share of the slow-down: 1 = the music slows down as much as the video, 0 = not at all.",
    "late by": "late by: found minus true time, of the beats with a true one within 150 ms.",
    "Onsets per clip": "Onsets per clip stand beside MV Align because more onsets alone raise it.",
}


def number(x: float) -> str:
    """Three decimals below 10, one above; never in scientific notation."""
    text = f"{x:.3f}" if abs(x) < 9.9995 else f"{x:.1f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(x: float) -> str:
    """The same with its sign; 0 has none."""
    text = number(x)
    return text if text.startswith("-") or not float(text) else f"+{text}"


def percent(x: float) -> str:
    """A share as whole percents, never "-0%"."""
    return f"{round(x, 2) + 0.0:.0%}"


def lift(row: Row) -> str:
    """`+0.162`: how far a value of MV Align lies above its chance; "" for any other."""
    if row.value is None or row.chance is None or not row.metric.startswith("MV Align"):
        return ""
    return f"{row.value - row.chance:+.3f}"


def cell(row: Row, chance: bool = True) -> str:
    """`0.372 [0.361, 0.383] (chance 0.210, lift +0.162)`, the paper's string, or a dash."""
    if row.value is None:
        return row.paper or "—"
    text = f"{row.value:.0f}" if row.metric in COUNTS else number(row.value)
    if row.ci95:
        text += f" [{number(row.ci95[0])}, {number(row.ci95[1])}]"
    if not chance or row.chance is None:
        return text
    return f"{text} (chance {number(row.chance)}{f', lift {lift(row)}' if lift(row) else ''})"


def datasets(record: Record) -> list[str]:
    """Data sets with a number computed here, in order."""
    return list(dict.fromkeys(r.dataset for r in record.rows if r.value is not None))


def short(dataset: str) -> str:
    """\"corpus, test (stands for DISCO-MV)\" as \"test\"."""
    return dataset.split(" (")[0].split(", ")[-1]


def systems(record: Record) -> list[str]:
    """Systems with a number computed here, in order."""
    return list(dict.fromkeys(r.system for r in record.rows if r.value is not None))


def frame(record: Record, dataset: str, apart: bool = False) -> "pd.DataFrame":
    """What was computed here on one dataset, as text: systems down, metrics across.

    `apart` gives chance and the lift over it columns of their own beside their metric, for narrow cells.
    """
    import pandas as pd

    chosen = [r for r in record.rows if r.dataset == dataset and r.value is not None]
    columns: dict[str, dict[str, str]] = {}
    for r in chosen:
        columns.setdefault(r.metric + ARROWS[r.direction], {})[r.system] = cell(r, chance=not apart)
        if apart and r.chance is not None:
            columns.setdefault(f"{r.metric}, chance", {})[r.system] = number(r.chance)
        if apart and lift(r):
            columns.setdefault(f"{r.metric}, lift", {})[r.system] = lift(r)
    columns |= record.extra.get("columns", {}).get(dataset, {})  # what is no number, such as a licence
    index = pd.Index(dict.fromkeys(r.system for r in chosen), name="System")
    return pd.DataFrame(columns, index=index).fillna("—")


def quoted(record: Record) -> "pd.DataFrame":
    """The paper's own numbers beside: systems down, dataset and metric across; empty when there are none."""
    import pandas as pd

    chosen = [r for r in record.rows if r.value is None]
    columns = list(dict.fromkeys(f"{r.dataset}, {r.metric}{ARROWS[r.direction]}" for r in chosen))
    table = pd.DataFrame("—", index=pd.Index(dict.fromkeys(r.system for r in chosen), name="System"), columns=columns)
    for r in chosen:
        table.loc[r.system, f"{r.dataset}, {r.metric}{ARROWS[r.direction]}"] = cell(r)
    return table


def footnotes(record: Record) -> list[str]:
    """What the numbers mean: intervals, statuses, caveats of the metrics, deviations of the profile."""
    computed = [r for r in record.rows if r.value is not None]
    n = sorted({r.n for r in computed if r.n})
    draws = sorted({r.seeds for r in computed if r.seeds})
    lines = []
    if n:
        clips = " or ".join(map(str, n))
        if "seeds" in record.extra:  # a sweep
            lines += _sweep_notes(record, clips)
        else:
            many = f"; {draws[-1]} {record.extra.get('draws', 'sampling seeds')}" if draws and draws[-1] > 1 else ""
            lines.append(f"[low, high]: 95% bootstrap interval over {clips} clips per data set{many}.")
    lines += record.extra.get("remarks", [])
    lines += [MEANING[s] + "." for s in dict.fromkeys(r.status for r in record.rows)]
    lines += [text for name, text in CAVEATS.items() if any(r.metric.startswith(name) for r in computed)]
    if against := [r for r in computed if r.chance is not None]:
        usual = "the same music judged against other clips, by their pictures, their music or their genres."
        own = dict.fromkeys(r.note for r in against)
        if all(text.startswith("chance: ") for text in own):
            lines += [f"{text}." for text in own]
        else:
            lines.append(f"chance: {record.extra.get('chance', usual)}")
    lines += [f"{d}: random halves of the reference (N = {f['n']}) lie FAD {number(f['value'])} apart." for d, f in
              record.extra.get("fad_floor", {}).items()]  # fmt: skip
    if record.extra.get("note"):
        lines.append(record.extra["note"])
    return lines


def _sweep_notes(record: Record, clips: str) -> list[str]:
    """Over what a sweep's intervals go, what its rows change in the profile, and which rows are not trained yet."""
    trained = {name: len(seeds) for name, seeds in record.extra["seeds"].items()}
    if max(trained.values()) == 1:
        over = f"{clips} clips per data set, one training seed: what another seed would give is not in it"
    else:
        few = ", ".join(f"{name} {n}" for name, n in trained.items() if n != max(trained.values()))
        over = f"{max(trained.values())} training seeds{f' ({few})' if few else ''} and {clips} clips per data set"
    lines = [f"[low, high]: 95% bootstrap interval over {over}."]
    if max(trained.values()) > 1:
        lines.append("FAD, one number a set: Student's t over the seeds and the bootstrap over clips, in quadrature.")
    changes = record.extra.get("changes", {})
    for name, label in zip(record.extra["seeds"], systems(record), strict=True):
        lines.append(f"{name}: {label}{f'; {changes[label]}' if label in changes else ''}.")
    if missing := record.extra.get("missing"):
        lines.append(f"No record yet: {', '.join(missing)}.")
    return lines


def _sections(record: Record, apart: bool = False) -> list[tuple[str, "pd.DataFrame"]]:
    status = {
        d: next(r.status for r in record.rows if r.dataset == d and r.value is not None) for d in datasets(record)
    }
    out = [(f"Computed here ({status[d]}): {d}", frame(record, d, apart)) for d in datasets(record)]
    paper = quoted(record)
    return [*out, ("The paper's own numbers (quoted)", paper)] if len(paper) else out


def markdown(record: Record, more: "Sequence[tuple[str, pd.DataFrame]]" = ()) -> str:
    """The whole table as Markdown, with what every number is worth under it; `more`: further heads and tables."""
    parts = [f"# {record.title}, profile {record.profile}"]
    parts += [f"## {head}\n\n{table.to_markdown()}" for head, table in [*_sections(record), *more]]
    parts.append("\n".join(f"- {line}" for line in footnotes(record)))
    return "\n\n".join(parts) + "\n"


def plain(record: Record, names: Sequence[str] = ()) -> str:
    """The tables for a terminal, lines of at most `WIDTH` characters: metrics down, systems across.

    With `names`, short ones for the systems in their order, systems go down and metrics across, in blocks that fit.
    """
    parts = [f"{record.title}, profile {record.profile}"]
    called = dict(zip(systems(record), names, strict=True)) if names else {}
    for head, table in _sections(record, apart=True):
        ours = not head.startswith("The paper")
        if called and ours:
            cut = blocks(table.rename(index=called))
        else:
            cut = [table.T if ours else table]
        folds = 18 if ours and not called else HEAD
        first, *more = (_simple(part, folds) for part in cut)
        parts += [f"{head}\n{first}", *more]
    parts.append("\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in footnotes(record)))
    return "\n\n".join(parts)


def blocks(table: "pd.DataFrame", width: int = WIDTH) -> list["pd.DataFrame"]:
    """`table` cut between its columns into parts that `_simple` prints within `width` characters.

    What stands beside a metric ("MV Align, chance") stays with it.
    """
    names = max((len(str(i)) for i in table.index), default=0)
    groups: list[list[str]] = []
    for c in table.columns:
        beside = groups and c.rsplit(", ", 1)[0] == groups[-1][0].rstrip("".join(ARROWS.values()))
        groups[-1].append(c) if beside else groups.append([c])
    found: list[list[str]] = []
    left = 0
    for group in groups:
        takes = sum(_width(c, table[c]) for c in group)
        if not found or takes > left:
            found.append([])
            left = width - names
        found[-1] += group
        left -= takes
    return [table[columns] for columns in found]


def _width(head: str, cells: "pd.Series[str]") -> int:
    """Characters of a column in `_simple`, which keeps 2 between columns and 2 beside a head."""
    return 2 + max(2 + max(map(len, _fold(head, HEAD).split("\n"))), *map(len, cells))


def _simple(table: "pd.DataFrame", head: int) -> str:
    """A table for the terminal, its heads folded at `head` characters."""
    heads = ["", *(_fold(c, head) for c in table.columns)]
    return table.to_markdown(tablefmt="simple", disable_numparse=True, headers=heads)


def _fold(head: str, width: int) -> str:
    """A long column head over several lines."""
    return "\n".join(textwrap.wrap(head, width, break_long_words=False))


def csv(record: Record) -> str:
    """Every row, one line each, for machines."""
    import pandas as pd

    table = pd.DataFrame([dataclasses.asdict(r) for r in record.rows])
    at = list(table.columns).index("ci95")
    bounds = [c or (None, None) for c in table.pop("ci95")]
    table.insert(at, "ci_lo", [lo for lo, _ in bounds])
    table.insert(at + 1, "ci_hi", [hi for _, hi in bounds])
    return table.to_csv(index=False, lineterminator="\n")


def unit(metric: str) -> str:
    """What a metric's axis counts."""
    if metric.startswith("FAD"):
        return "squared distance"
    if metric.startswith("KL") or metric == "log loss":
        return "nats"
    if metric.startswith("MV Align"):
        return "intersection over union"
    return "share of clips" if "accuracy" in metric else "onsets"


SHARES = ("intersection over union", "share of clips")  # between 0 and 1: always on a linear axis


def figure(record: Record) -> "Figure":
    """Dot plot: a panel per metric and dataset computed here, intervals as bars, chance as a tick.

    In a sweep a row of one training is hollow: its interval holds clips alone, and looks narrower than it is.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    computed = [r for r in record.rows if r.value is not None]
    names, metrics = datasets(record), list(dict.fromkeys(r.metric for r in computed))
    systems = list(dict.fromkeys(r.system for r in computed))
    trained = record.extra.get("seeds", {}).values()
    alone = any(len(seeds) > 1 for seeds in trained) and any(len(seeds) == 1 for seeds in trained)
    beside = max(2.2, 0.075 * max(map(len, systems)))  # inches that the names take
    free = [m for m in metrics if unit(m) not in SHARES]
    wide = {m for m in free if _wide([r for r in computed if r.metric == m])}
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(
            figsize=(max(6.5, 1.95 * len(metrics) + beside), max(1.7, 0.25 * len(systems) + 0.5) * len(names) + 1.1),
            layout="constrained",
        )
        axes = fig.subplots(len(names), len(metrics), squeeze=False, sharey=True, sharex="col")
        for i, dataset in enumerate(names):
            for j, metric in enumerate(metrics):
                ax = axes[i][j]
                for r in (r for r in computed if r.dataset == dataset and r.metric == metric):
                    _dot(ax, r, systems.index(r.system), alone and r.seeds == 1)
                ax.set_ylim(len(systems) - 0.5, -0.5)
                ax.set_yticks(range(len(systems)), systems)
                ax.margins(x=0.12)
                if metric in wide:
                    ax.set_xscale("log")
                sns.despine(ax=ax, left=True)
                if i == len(names) - 1:
                    direction = next(r.direction for r in computed if r.metric == metric)
                    ax.set_xlabel(f"{metric}{ARROWS[direction]}\n{unit(metric)}")
            axes[i][0].set_title(dataset, loc="left", fontsize=9, fontweight="bold")
    n = max(r.n or 0 for r in computed)
    head = f"{record.title} ({computed[0].status}, N = {n})"
    fig.suptitle(
        f"{head}    bar: 95% interval    grey tick: chance{'    hollow: one training, clips alone' * alone}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return fig


def _wide(rows: list[Row]) -> bool:
    """Whether a metric's values lie so far apart that a linear axis would show the largest alone."""
    values = [r.value for r in rows if r.value is not None]
    return min([*values, *(r.ci95[0] for r in rows if r.ci95)]) > 0 and max(values) > WIDE * min(values)


def png(fig: "Figure") -> bytes:
    """A figure as PNG, without the date and the software that would make equal figures differ."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _dot(ax, r: Row, y: int, hollow: bool = False) -> None:
    colour, marker = palette.colour(r.system), palette.marker(r.system)
    if r.chance is not None:
        ax.plot(r.chance, y, "|", color="#666666", ms=16, mew=1.5)
    if r.ci95:
        ax.plot(r.ci95, [y, y], color=colour, lw=2.5, alpha=0.6, solid_capstyle="butt")
    face, edge = ("white", colour) if hollow else (colour, "white")
    ax.plot(r.value, y, marker, color=colour, ms=6, mfc=face, mec=edge, mew=1.2 if hollow else 0.6)


def save(
    record: Record,
    folder,
    draw: "Callable[[Record], Figure] | None" = None,
    tell: Callable[[Record], str] | None = None,
) -> Path:
    """Write table.md, table.csv, figure.png and result.json, each whole or not at all; returns the folder.

    `draw` makes the figure and `tell` the Markdown of a target that has one of its own. Raises DataError when the
    folder cannot be written.
    """
    folder = Path(folder)
    records.write_text(folder / "table.md", (tell or markdown)(record))
    records.write_text(folder / "table.csv", csv(record))
    records.write_bytes(folder / "figure.png", png((draw or figure)(record)))
    records.write_result(record, folder / "result.json")
    return folder
