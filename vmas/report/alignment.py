"""One clip as the video-beat alignment sees it (Figure 2): flow O, video beats P_v, music onsets P_a."""

from typing import TYPE_CHECKING

from vmas.config import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONSET, BEAT, FLOW = "#000000", "#D55E00", "#0072B2"


def figure(path, profile: Profile) -> "Figure":
    """O over time with its maxima P_v, and the onsets P_a of the file's own music below; weight-1 beats are filled.

    Raises MediaError for a file without pictures or sound.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from vmas.beats import beat_weights, flow_to_grid, video_beats
    from vmas.features import clip_features

    a, rate = profile.align, profile.codec.frame_rate
    got = clip_features(path, profile, dense=False)
    P_a = got["beats"]
    O = flow_to_grid(got["flow"], profile.clip.fps, len(P_a), rate, flow_time=a.flow_time)
    P_v = video_beats(O, a.delta, require_positive=a.require_positive)
    P_av = beat_weights(P_v, P_a, a.delta, a.alpha)
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
