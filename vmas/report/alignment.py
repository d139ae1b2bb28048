"""One clip as the video-beat alignment sees it (Figure 2): flow O, video beats P_v, music onsets P_a."""

from typing import TYPE_CHECKING, Any, cast

from vmas.config import Profile
from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONSET, BEAT, FLOW = "#000000", "#D55E00", "#0072B2"


def figure(path, profile: Profile) -> "Figure":
    """O over time with its maxima P_v, and the onsets P_a of the file's own music below; weight-1 beats are filled.

    Raises MediaError for a file without pictures or sound.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from vmas.beats import BeatOptions, align
    from vmas.features import clip_features

    rate = profile.codec.frame_rate
    got = clip_features(path, profile, dense=False)
    P_a = got["beats"]
    got = align(
        got["flow"], P_a, profile.clip.fps, rate, BeatOptions.from_config(profile.align).but(place="video", lead=0)
    )
    O, P_v, P_av = got.O, got.P_v, got.P_av
    t = np.arange(len(O)) / rate
    fig = Figure(figsize=(9, 2.6), layout="constrained")
    ax = fig.subplots()
    ax.plot(t, O, color=FLOW, lw=1.2, label="O, mean optical flow")
    beats = np.flatnonzero(P_v)
    hit = P_av[beats] == 1
    for chosen, face, label in ((hit, BEAT, "P_v met by an onset: weight 1"), (~hit, "white", "P_v unmet: weight α")):
        ax.plot(t[beats[chosen]], O[beats[chosen]], "o", mfc=face, mec=BEAT, ms=6, label=label)
    low = -0.16 * max(float(O.max()), 1e-6)
    ax.plot(t[P_a], np.full(int(P_a.sum()), low), "|", color=ONSET, ms=12, label="P_a, onsets")
    ax.set_xlabel("time, s")
    ax.set_ylabel("flow, px per frame")
    ax.set_xlim(0, profile.clip.seconds)
    fig.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return fig


def steps(record: Record, part: str, metric: str) -> "Figure":
    """Figure 2 from a record: the steps of eq. 3 on one clip, and how often each reading of it gives weight 1.

    Left, on one time axis: the music with its notes and P_a; O with P_v, its windows ±δ and the picture's events;
    P_av. Right: `metric` of the systems of `part` with intervals, chance as a tick.
    """
    import numpy as np
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    c = record.extra["clip"]
    rate, delta = c["frame_rate"], c["delta"]
    t = np.arange(len(c["O"])) / rate
    P_a, P_v, met = (np.array(c[k], int) for k in ("P_a", "P_v", "met"))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(11, 5), layout="constrained")
        left, right = cast(Any, fig.subfigures(1, 2, width_ratios=(2.3, 1)))
        music, flow, weight = left.subplots(3, 1, sharex=True, height_ratios=(1, 1.5, 0.9))
        music.fill_between(t, c["envelope"], color="#999999", lw=0)
        top = max(c["envelope"]) * 1.25
        music.plot(c["notes"], np.full(len(c["notes"]), top * 1.12), "v", color="#009E73", ms=4, label="notes (true)")
        music.vlines(P_a / rate, 0, top, color=ONSET, lw=1, label="P_a, music beats found")
        music.set_ylabel("amplitude")
        flow.plot(t, c["O"], color=FLOW, lw=1.2, label="O, mean optical flow")
        for k, b in enumerate(P_v):
            flow.axvspan((b - delta) / rate, (b + delta) / rate, color=BEAT, alpha=0.15, lw=0,
                         label=None if k else f"±δ = {delta} tokens")  # fmt: skip
        hit = np.isin(P_v, met)
        for chosen, face, label in ((hit, BEAT, "P_v with an onset within δ"), (~hit, "white", "P_v without")):
            flow.plot(P_v[chosen] / rate, np.array(c["O"])[P_v[chosen]], "o", mfc=face, mec=BEAT, ms=6, label=label)
        high = max(c["O"]) * 1.12
        flow.plot(c["events"], np.full(len(c["events"]), high), "v", color="#009E73", ms=4,
                  label="events of the picture (true)")  # fmt: skip
        flow.plot(P_a / rate, np.full(len(P_a), -0.1 * high), "|", color=ONSET, ms=8)
        flow.set_ylabel("px per frame")
        P_av = np.full(len(t), c["alpha"])
        P_av[met] = 1
        weight.step(t, P_av, where="mid", color=BEAT, lw=1)
        weight.set_ylim(0, 1.1)
        weight.set_yticks((c["alpha"], 1), ("α", "1"))
        weight.set_ylabel("P_av")
        weight.set_xlabel(f"time, s ({rate:g} tokens a second)")
        weight.set_xlim(0, len(t) / rate)
        for ax in (music, flow):
            ax.legend(fontsize=7, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, borderaxespad=0.1)
        left.suptitle(f"one clip ({c['id']})", fontsize=9, x=0.02, ha="left")
        ax = right.subplots()
        rows = [r for r in record.rows if r.dataset == part and r.metric == metric]
        for y, r in enumerate(rows):
            if r.ci95:
                ax.plot(r.ci95, [y, y], color=BEAT, lw=2.5, alpha=0.6, solid_capstyle="butt")
            ax.plot(r.value, y, "o", color=BEAT, mec="white", ms=6)
            ax.plot(r.chance, y, "|", color="#666666", ms=16, mew=1.5)
        ax.set_yticks(range(len(rows)), [r.system for r in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xlabel("share of tokens\nwith weight 1 (log)")
        ax.set_title("grey tick:\npictures of other clips", fontsize=8, loc="left")
        sns.despine(ax=ax, left=True)
    n = max(r.n or 0 for r in rows)
    fig.suptitle(
        f"{record.title} ({rows[0].status}, N = {n} clips)    bar: 95% interval", fontsize=9, x=0.01, ha="left"
    )
    return fig
