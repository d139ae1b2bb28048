"""The five tests of `vmas.experiments.follow` in one figure: what changes when the video is changed."""

from typing import TYPE_CHECKING, Any

from vmas.records import Record
from vmas.report import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#666666"
TONES = ("#D55E00", "#56B4E9", "#009E73", "#000000")  # videos that one test shows, in its order
MARKS = ("o", "D", "^", "s")


def figure(record: Record) -> "Figure":
    """Six panels: swap, shift (sound), shift (X_v), cut, slow, still; intervals as bars or bands."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(11, 6.6), layout="constrained")
        axes = fig.subplots(2, 3).ravel()
        _swap(axes[0], record.extra["swap"]["nats"])
        _curves(axes[1], record)
        _rows(axes[2], record.extra["shift"]["nats"])
        _cut(axes[3], record.extra["cut"])
        _slow(axes[4], record.extra["slow"]["rates"])
        _still(axes[5], record.extra["still"]["align"])
        for ax in axes:
            sns.despine(ax=ax)
            ax.title.set_fontsize(9)
    status, x = record.rows[0].status, record.extra
    fig.suptitle(
        f"{record.title} ({status}, {x['split']} split, N = {x['clips']}; bars and bands: 95% intervals)",
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    return fig


def _legend(ax) -> None:
    """Above the data: the axis is made taller by what the entries need."""
    lo, hi = ax.get_ylim()
    entries = len(ax.get_legend_handles_labels()[0])
    ax.set_ylim(lo, hi + 0.09 * entries * (hi - lo))
    ax.legend(fontsize=7, frameon=False, loc="upper right")


def _short(system: str) -> str:
    return system.removeprefix("VMAs, ")


def _numbers(found: list[dict[str, Any]], key: str) -> list[float]:
    """One value of every entry, NaN (not drawn) where it has none."""
    return [float("nan") if f[key] is None else f[key] for f in found]


def _bars(ax, x: list[float], found: list[dict[str, Any]], colour: str, mark: str, label: str) -> None:
    """Means with their intervals; an interval that could not be had is left out."""
    y, lo, hi = (_numbers(found, k) for k in ("mean", "lo", "hi"))
    # max(0, NaN) is 0: a bar of no length
    err = [[max(0.0, m - a) for m, a in zip(y, lo, strict=True)], [max(0.0, b - m) for m, b in zip(y, hi, strict=True)]]
    ax.errorbar(x, y, err, fmt=mark, color=colour, ms=5, lw=2, mec="white", mew=0.5, label=label)


def _swap(ax, nats: list[dict[str, Any]]) -> None:
    windows = list(dict.fromkeys(f["window"] for f in nats))
    for j, system in enumerate(dict.fromkeys(f["system"] for f in nats)):
        found = [f for f in nats if f["system"] == system]
        _bars(ax, [i + 0.2 * (j - 1) for i in range(len(found))], found, TONES[j], MARKS[j], _short(system))
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_xticks(range(len(windows)), [w.replace(" ", "\n", 1) for w in windows], fontsize=7)
    ax.set_ylabel("more nats than with the own video")
    ax.set_title("a. swap: above 0 = its own video helps", loc="left")
    _legend(ax)


def _band(ax, found: list[dict[str, Any]], colour: str, mark: str, label: str) -> None:
    x = [f["shift"] for f in found]
    ax.fill_between(x, _numbers(found, "lo"), _numbers(found, "hi"), color=colour, alpha=0.2, lw=0)
    ax.plot(x, _numbers(found, "mean"), marker=mark, color=colour, ms=4, lw=1.2, label=label)


def _curves(ax, record: Record) -> None:
    for system, found in record.extra["shift"]["curves"].items():
        _band(ax, found, palette.colour(system), palette.marker(system), system)
    ax.axvline(0, color=GREY, lw=0.8)
    metric = next(r.metric.split(" at the")[0] for r in record.rows if " at the right time" in r.metric)
    ax.set(ylabel=f"{metric}, IoU", ylim=(0, None))
    fps = metric.split(", ")[-1].removesuffix(" fps)")
    ax.set_xlabel(f"picture's peaks moved by, frames of 1/{fps} s")
    ax.set_title("b. shift: a peak at 0 = in time", loc="left")
    _legend(ax)


def _rows(ax, nats: list[dict[str, Any]]) -> None:
    _band(ax, nats, palette.colour("VMAs"), palette.marker("VMAs"), "VMAs")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel="X_v moved by, rows", ylabel="more nats than in time")
    ax.set_title("b. shift of X_v: a valley at 0 = in time", loc="left")


def _cut(ax, extra: dict[str, Any]) -> None:
    for j, system in enumerate(dict.fromkeys(f["system"] for f in extra["odds"])):
        found = [f for f in extra["odds"] if f["system"] == system]
        at = [i + 0.15 * (j - 1.5) for i in range(len(found))]
        _bars(ax, at, found, TONES[j], MARKS[j], _short(system))
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_xticks([0, 1], ["before the cut", "after the cut"])
    ax.set_ylabel("log-odds of the second genre, nats")
    ax.set_title(f"c. cut at {extra['at_s']:g} s: the genre moves with the picture?", loc="left")
    _legend(ax)


def _slow(ax, rates: list[dict[str, Any]]) -> None:
    chosen = [f for f in rates if not f["metric"].startswith("tempo")]
    for j, system in enumerate(dict.fromkeys(f["system"] for f in chosen)):
        found = [f for f in chosen if f["system"] == system]
        known = system in palette.SYSTEMS
        colour, mark = (palette.colour(system), palette.marker(system)) if known else ("#009E73", "^")
        label = {"Picture": "motion peaks of the picture", "Real music": "real music, stretched"}.get(system, system)
        _bars(ax, [f["speed"] + 0.01 * (j - 1) for f in found], found, colour, mark, label)
        ax.plot([f["speed"] + 0.01 * (j - 1) for f in found], _numbers(found, "mean"), color=colour, lw=0.8)
    ax.set_xticks(sorted({f["speed"] for f in chosen}))
    ax.set(xlabel="speed of the video", ylabel="onsets (peaks) per second", ylim=(0, None))
    ax.set_title("d. slow: falls with the picture?", loc="left")
    _legend(ax)


def _still(ax, found: list[dict[str, Any]]) -> None:
    for i, f in enumerate(found):
        _bars(ax, [i], [f], TONES[i], MARKS[i], _short(f["system"]))
        ax.plot([i - 0.25, i + 0.25], _numbers([f], "chance") * 2, color=GREY, lw=1.5, label=None if i else "chance")
    ax.set_xticks(range(len(found)), [_short(f["system"]) for f in found])
    ax.set(xlim=(-0.6, len(found) - 0.4), ylim=(0, None), ylabel="MV Align with the video's peaks, IoU")
    ax.set_title("e. still: what motion gives", loc="left")
    _legend(ax)
