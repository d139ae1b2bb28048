"""The claims ledger as a table, as text and as a figure."""

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmas import paths
from vmas.records import Record
from vmas.report import table
from vmas.report.table import WIDTH, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("claim", "the paper's evidence (quoted)", "evidence here", "verdict", "record")
# What a finding says → its colour and marker (Okabe and Ito).
LOOKS = {"better": ("#009E73", "o"), "worse": ("#D55E00", "X"), "": ("#777777", "s")}


def told(f: dict[str, Any]) -> str:
    """A finding in words: "FAD (codec) +5.376 [+2.276, +8.477], 2 trainings, worse"."""
    text = f"{f['metric']} {_signed(f['value'])}"
    if f["lo"] is not None and f["hi"] is not None:
        text += f" [{_signed(f['lo'])}, {_signed(f['hi'])}]"
    over = [f"{f['seeds']} trainings" if (f["seeds"] or 1) > 1 else ""]
    over += [f"{f['n']} clips" if f["n"] else ""]
    return ", ".join([text, *(o for o in over if o), f["found"]])


def _signed(x: float) -> str:
    text = number(x)
    return text if text.startswith("-") or not float(text) else f"+{text}"


def evidence(entry: dict[str, Any]) -> list[str]:
    """One line a comparison of a claim: what is compared, and its findings."""
    lines: dict[str, list[str]] = {}
    for f in entry["findings"]:
        lines.setdefault(f"{f['what']}; {f['dataset']}", []).append(told(f))
    return [f"{what}: {'; '.join(found)}" for what, found in lines.items()]


def frame(record: Record, start: Path | None = None) -> "pd.DataFrame":
    """One line a claim, as text: the columns are `COLUMNS`, the index the claims' names.

    Links to tables and notebooks are relative to `start`, the ledger's own folder unless given.
    """
    import pandas as pd

    start = start or paths.target(record.profile, record.target)

    lines = [
        (
            f"{e['claim']} ({e['where']})",
            e["paper"],
            "<br>".join(evidence(e)) or "—",
            f"**{e['verdict']}**",
            ", ".join(_link(s, record.profile, start) for s in e["sources"]) or "—",
        )
        for e in record.extra["ledger"]
    ]
    index = pd.Index([e["name"] for e in record.extra["ledger"]], name="name")
    return pd.DataFrame(lines, columns=list(COLUMNS), index=index)


def _link(source: str, profile: str, start: Path) -> str:
    notebook = source.endswith(".ipynb")
    to = paths.NOTEBOOKS / source if notebook else paths.target(profile, source) / "table.md"
    return f"[{source}]({Path(os.path.relpath(to, start)).as_posix()})"


def counts(record: Record) -> dict[str, int]:
    """How many claims have each verdict, without its reason."""
    found = [e["verdict"].split(":")[0] for e in record.extra["ledger"]]
    return {v: found.count(v) for v in dict.fromkeys(found)}


def footnotes(record: Record) -> list[str]:
    """The rule, how to read the signs, and what the profile's numbers are worth."""
    lines = [record.extra["rule"]]
    lines.append(
        "A finding is the first row less the second, in the metric's own units: for FAD, KL, similarity and GFLOPs less"
        " is better, for all others more."
    )
    lines += [table.MEANING[s] + "." for s in dict.fromkeys(r.status for r in record.rows)]
    return [*lines, record.extra["note"]] if record.extra.get("note") else lines


def markdown(record: Record) -> str:
    """The ledger as Markdown."""
    total = "; ".join(f"{v}: {n}" for v, n in counts(record).items())
    parts = [f"# {record.title}, profile {record.profile}", total + ".", frame(record).to_markdown(index=False)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in footnotes(record))]) + "\n"


def plain(record: Record) -> str:
    """The ledger for a terminal: a paragraph a claim, lines of at most `WIDTH` characters."""
    parts = [f"{record.title}, profile {record.profile}"]
    for e in record.extra["ledger"]:
        lines = [f"{e['name']}: {e['verdict']}", f"  {e['claim']} ({e['where']})", f"  paper: {e['paper']}"]
        lines += [f"  here:  {line}" for line in evidence(e)]
        parts.append("\n".join(textwrap.fill(x, WIDTH, subsequent_indent=" " * 9) for x in lines))
    parts.append("; ".join(f"{v}: {n}" for v, n in counts(record).items()))
    parts.append("\n".join(textwrap.fill(x, WIDTH, subsequent_indent="  ") for x in footnotes(record)))
    return "\n\n".join(parts)


def figure(record: Record) -> "Figure":
    """Every finding that has an interval, one panel a metric; right is in the claim's favour.

    The axis is linear near 0 and logarithmic beyond, since some intervals over two trainings are a hundred times as
    wide as others.
    """
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

    found = [(e, f) for e in record.extra["ledger"] for f in e["findings"] if f["lo"] is not None]
    groups: dict[str, list] = {}
    for e, f in found:
        groups.setdefault(_group(f["metric"]), []).append((e, f))
    heights = [len(part) + 1.2 for part in groups.values()]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(9, 0.27 * sum(heights) + 0.9), layout="constrained")
        axes = fig.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for ax, (group, part) in zip(axes, groups.items(), strict=True):
            widest = 0.0
            for y, (_, f) in enumerate(part):
                sign = 1 if f["direction"] == "up" else -1
                colour, mark = LOOKS.get(f["found"], LOOKS[""])
                lo, hi = sorted((sign * f["lo"], sign * f["hi"]))
                widest = max(widest, abs(lo), abs(hi))
                ax.plot([lo, hi], [y, y], color=colour, lw=2.5, alpha=0.5, solid_capstyle="butt")
                ax.plot(sign * f["value"], y, mark, color=colour, ms=6, mec="white", mew=0.6)
            ax.axvline(0, color="black", lw=0.8)
            ax.set_yticks(range(len(part)), [f"{e['name']}: {_brief(f)}" for e, f in part], fontsize=7)
            ax.set_ylim(len(part) - 0.4, -0.6)
            if widest > 50:
                ax.set_xscale("symlog", linthresh=10)
                ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10))
            else:
                ax.xaxis.set_major_locator(MaxNLocator(6))
            ax.set_xlim(-1.1 * widest, 1.1 * widest)
            ax.set_xlabel(f"{group}: gain in the claim's favour", fontsize=8)
            sns.despine(ax=ax, left=True)
    head = f"{record.title} ({found[0][1]['status']}); bar: 95% interval; right of 0: as the paper says"
    fig.suptitle(
        f"{head}\ngreen dot: better, orange cross: worse, grey square: not shown", fontsize=9, x=0.01, ha="left"
    )
    return fig


def _group(metric: str) -> str:
    if metric.startswith(("FAD", "KL", "MV Align")):
        return metric
    return {"gain, nats": "likelihood or log-odds, nats", "gain, IoU": "MV Align (2025, 9.6 fps)"}.get(
        metric, "a share"
    )


def _brief(f: dict[str, Any]) -> str:
    text = f"{f['what']}; {f['dataset'].split(' (')[0]}"
    return text if len(text) <= 92 else f"{text[:89]}..."
