"""The claims ledger as a table, as text and as a figure."""

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmas import paths
from vmas.records import Record
from vmas.report import table
from vmas.report.table import WIDTH, signed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("claim", "the paper's evidence (quoted)", "evidence here", "verdict", "record")
# What a finding says → its colour and marker (Okabe and Ito).
LOOKS = {"better": ("#009E73", "o"), "worse": ("#D55E00", "X"), "": ("#777777", "s")}
UNTOLD = "cannot tell: no record of "  # how the verdict of a claim begins for which something is missing


def told(f: dict[str, Any]) -> str:
    """A finding in words: "FAD (codec) +5.376 [+2.276, +8.477], 2 trainings, 300 clips: worse"."""
    percent = f["metric"].startswith("GFLOPs")
    text = f"{f['metric'].split(',')[0] if percent else f['metric']} {_signed(f['value'], percent)}"
    if f["metric"] == "number":
        text = f"{f['value']:.0f}"
    if f["lo"] is not None and f["hi"] is not None:
        lo, hi = (_signed(f[k], percent) for k in ("lo", "hi"))
        text += f" ({lo} to {hi} by the windows of stage 1)" if f["readings"] else f" [{lo}, {hi}]"
    trained = f["seeds"] and f"{f['seeds']} training{'s' * (f['seeds'] > 1)}"
    over = [x for x in (trained, f["n"] and f"{f['n']} clips") if x]
    return f"{', '.join([text, *over])}: {f['found']}{'' if f['counts'] else ' (beside, does not count)'}"


def _signed(x: float, percent: bool = False) -> str:
    return f"{100 * x:+.1f}%" if percent else signed(x)


def evidence(entry: dict[str, Any]) -> list[str]:
    """One line a comparison of a claim: what is compared, and its findings."""
    lines: dict[str, list[str]] = {}
    for f in entry["findings"]:
        lines.setdefault(f"{f['what']}; {_short(f['dataset'])}", []).append(told(f))
    return [f"{what}: {'; '.join(found)}" for what, found in lines.items()]


def _short(dataset: str) -> str:
    """\"corpus, test (stands for DISCO-MV)\" as \"test\"."""
    return dataset.split(" (")[0].removeprefix("corpus, ")


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


def summary(record: Record) -> str:
    """The counts in a line, those that wait for a record told apart."""
    waits = sum(e["verdict"].startswith(UNTOLD) for e in record.extra["ledger"])
    parts = [f"{v}: {n}" + (f" ({waits} of them for want of a record)" if v == "cannot tell" and waits else "")
             for v, n in counts(record).items()]  # fmt: skip
    return f"{len(record.extra['ledger'])} claims. {'; '.join(parts)}."


def footnotes(record: Record) -> list[str]:
    """The rule, how to read the signs, and what the profile's numbers are worth."""
    lines = [record.extra["rule"]]
    lines.append(
        '"a against b": a less b in the metric\'s own units, paired where both are rows of a sweep; for FAD, KL, frame'
        " similarity and GFLOPs less is better. Of the trained models an advantage above 0 means that the music"
        " follows; a share stands less the paper's."
    )
    if any(f["seeds"] and f["seeds"] > 1 for e in record.extra["ledger"] for f in e["findings"]):
        lines.append(
            "Neighbouring training seeds share two of three sampling seeds, so that intervals over trainings are"
            " somewhat narrow."
        )
    lines += [table.MEANING[s] + "." for s in dict.fromkeys(r.status for r in record.rows) if s != "unavailable"]
    return [*lines, record.extra["note"]] if record.extra.get("note") else lines


def markdown(record: Record) -> str:
    """The ledger as Markdown."""
    parts = [f"# {record.title}, profile {record.profile}", summary(record), frame(record).to_markdown(index=False)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in footnotes(record))]) + "\n"


def plain(record: Record) -> str:
    """The ledger for a terminal: a paragraph a claim, lines of at most `WIDTH` characters."""
    parts = [f"{record.title}, profile {record.profile}"]
    for e in record.extra["ledger"]:
        lines = [f"{e['name']}: {e['verdict']}", f"  {e['claim']} ({e['where']})", f"  paper: {e['paper']}"]
        lines += [f"  here:  {line}" for line in evidence(e)]
        parts.append("\n".join(textwrap.fill(x, WIDTH, subsequent_indent=" " * 9) for x in lines))
    parts.append(textwrap.fill(summary(record), WIDTH, subsequent_indent="  "))
    parts.append("\n".join(textwrap.fill(x, WIDTH, subsequent_indent="  ") for x in footnotes(record)))
    return "\n\n".join(parts)


def drawn(record: Record) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """(claim, finding) by panel, of the findings that have an interval or a range; each comparison once."""
    panels: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    seen = set()
    for e in record.extra["ledger"]:
        for f in e["findings"]:
            what = (f["what"], f["dataset"], f["metric"])
            if f["lo"] is not None and what not in seen:
                seen.add(what)
                panels.setdefault(_panel(f), []).append((e["name"], f))
    return panels


def _panel(f: dict[str, Any]) -> str:
    """What a finding is drawn beside: its metric with the unit."""
    metric, align = f["metric"], "MV Align, intersection over union"
    if metric.startswith("MV Align"):
        return align
    if metric.startswith(("FAD", "KL")):
        return f"{metric}, {table.unit(metric)}"
    if metric.startswith("GFLOPs"):
        return "GFLOPs, share saved (bar: windows of stage 1)"
    return {
        "advantage, nats": "log-likelihood or log-odds, nats",
        "advantage, IoU": align,
        "advantage, share": "share of the slow-down",
        "frame similarity": "frame similarity (mean cosine)",
        "free of vocals": "free of vocals, share of clips",
    }.get(metric, metric)


def figure(record: Record) -> "Figure":
    """Every finding that has an interval, one panel a unit; right is in the claim's favour.

    The axis is linear near 0 and logarithmic beyond, since some intervals over two trainings are a hundred times as
    wide as others.
    """
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

    panels = drawn(record)
    heights = [len(part) + 1.2 for part in panels.values()]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(9.5, 0.25 * sum(heights) + 0.9), layout="constrained")
        axes = fig.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for ax, (unit, part) in zip(axes, panels.items(), strict=True):
            widest = 0.0
            for y, (_, f) in enumerate(part):
                sign = 1 if f["direction"] == "up" else -1
                colour, mark = LOOKS.get(f["found"], LOOKS[""])
                lo, hi = sorted((sign * f["lo"], sign * f["hi"]))
                widest = max(widest, abs(lo), abs(hi))
                ax.plot([lo, hi], [y, y], color=colour, lw=2.5, alpha=0.5, solid_capstyle="butt")
                ax.plot(sign * f["value"], y, mark, color=colour, ms=6, mec="white", mew=0.6)
            ax.axvline(0, color="black", lw=0.8)
            ax.set_yticks(range(len(part)), [f"{name}: {_brief(f)}" for name, f in part], fontsize=7)
            ax.set_ylim(len(part) - 0.4, -0.6)
            if widest > 50:
                ax.set_xscale("symlog", linthresh=10)
                ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10))
            else:
                ax.xaxis.set_major_locator(MaxNLocator(6))
            ax.set_xlim(-1.1 * widest, 1.1 * widest)
            ax.set_xlabel(f"{unit}: gain in the claim's favour", fontsize=8)
            sns.despine(ax=ax, left=True)
    fig.suptitle(
        f"{record.title} (profile {record.profile}); bar: 95% interval; right of 0: as the paper says\n"
        "green dot: better, orange cross: worse, grey square: not shown, or fewer than three trainings",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return fig


def _brief(f: dict[str, Any]) -> str:
    text = f["what"] if f["metric"].startswith(("GFLOPs", "frame")) else f"{f['what']}; {_short(f['dataset'])}"
    return text if len(text) <= 92 else f"{text[:89]}..."
