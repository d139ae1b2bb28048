"""Figure 2's target: the marks of every step against a truth that is put in by hand, the record, the drawing."""

from types import SimpleNamespace

import numpy as np
import pytest

from vmas import config
from vmas.beats import align
from vmas.errors import DataError
from vmas.experiments import fig2
from vmas.records import Record
from vmas.report import table

RATE, TOKENS = 50.0, 250
TRUE = fig2.Truth(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.5]), np.array([1.0]))


@pytest.fixture(scope="module")
def mini():
    return config.load("mini")


@pytest.fixture(scope="module")
def clips(mini):
    """Three clips: onsets at every note; the flow peaks where the picture has its events, each clip 3 tokens later."""
    P_a = np.zeros((3, TOKENS), bool)
    pairs = round(mini.clip.seconds * mini.clip.fps) - 1
    flow = np.full((3, pairs), 0.01, np.float32)
    truths = []
    for i in range(3):
        t = fig2.Truth(*(x + 0.06 * i for x in (TRUE.notes, TRUE.events, TRUE.shown)))
        P_a[i, np.round(t.notes * RATE).astype(int)] = True
        flow[i, np.round(t.events * mini.clip.fps).astype(int) - 1] = 2.0
        truths.append(t)
    return P_a, flow, truths


def test_near_counts_times_within_reach():
    assert fig2.near([1.0, 2.0], [1.04, 5.0], 0.05) == 0.5
    assert fig2.near([1.0], [], 0.05) == 0.0
    assert np.isnan(fig2.near([], [1.0], 0.05))
    assert fig2.near([1.0], [1.05], 0.05) == 1.0  # the edge counts


def test_lateness_is_signed_and_leaves_out_what_is_far():
    assert fig2.lateness([1.05, 2.1, 3.5], [1.0, 2.0]) == pytest.approx(75)
    assert fig2.lateness([0.9], [1.0]) == pytest.approx(-100)
    assert fig2.lateness([1.15], [1.0]) == pytest.approx(150)  # the edge counts
    assert np.isnan(fig2.lateness([1.2], [1.0]))
    assert np.isnan(fig2.lateness([], [1.0]))
    assert np.isnan(fig2.lateness([1.0], []))


def test_truth_takes_the_shown_beats_only():
    row = SimpleNamespace(beats_s=[0.5, 1.5], shown=[False, True], onsets_s=[0.5, 1.0], video_events_s=[1.5, 2.0])
    found = fig2.truth(row)
    assert (found.shown.tolist(), found.notes.tolist(), found.events.tolist()) == ([1.5], [0.5, 1.0], [1.5, 2.0])


def test_perfect_beats_have_perfect_marks(mini, clips):
    P_a, flow, truths = clips
    rows = list(fig2._steps(P_a, {"Farneback": flow}, truths, mini, {"seed": 0, "n": 50}))
    by = {(r.system, r.metric): r for r in rows}
    assert by["librosa's onsets", "precision"].value == by["librosa's onsets", "recall"].value == 1.0
    assert by["librosa's onsets", "precision"].chance < 0.5  # the other clips' notes lie 60 and 120 ms off
    assert by["librosa's onsets", "beats per clip"].value == 4
    assert by["Farneback, δ = 5", "recall"].value == 1.0
    # the flow between two frames, put at the later one, has its peak half a frame after its middle
    half = 500 / mini.clip.fps
    late = [by[f"Farneback, δ = 5, O > 0.1 px{at}", fig2.LATE].value for at in ("", ", mid frame")]
    assert late[0] - late[1] == pytest.approx(half, abs=1000 / RATE)
    still = by["Farneback, δ = 5, O > 0.1 px", "beats per clip"]
    assert still.value == 2 <= by["Farneback, δ = 5", "beats per clip"].value


def test_weights_of_every_reading(mini, clips):
    P_a, flow, truths = clips
    rows = {(r.system, r.metric): r for r in fig2._weights(P_a, flow, truths, mini, {"seed": 0, "n": 50})}
    for name, option in fig2.OPTIONS.items():
        P_av = align(flow, P_a, mini.clip.fps, RATE, option).P_av
        assert rows[name, fig2.SHARE].value == pytest.approx((P_av == 1).mean())
        assert rows[name, fig2.MEAN].value == pytest.approx(P_av.mean(), rel=1e-5)
    assert rows["weight on the onset", fig2.NOTED].value == 1.0
    assert rows["weight dilated by δ", fig2.SHARE].value > rows["O > 0 required", fig2.SHARE].value
    assert rows["eq. 3 as written", fig2.SHARE].value >= rows["O > 0 required", fig2.SHARE].value


def test_figure_draws_what_the_record_says(mini, clips):
    P_a, flow, truths = clips
    rows = fig2._weights(P_a, flow, truths, mini, {"seed": 0, "n": 50})
    split = SimpleNamespace(flow=flow, beats=P_a, ids=list("abc"), waveform=lambda i: np.ones(TOKENS * 640) * 0.5)
    clip = fig2._clip(split, truths, mini)
    assert clip["id"] == "a"
    assert clip["P_a"] == [50, 100, 150, 200]
    assert clip["met"] == [52]  # frame 10 at 9.6 fps, not the note at token 50: eq. 3 weights the video's beat
    record = Record(fig2.TARGET, "mini", fig2.TITLE, "k", tuple(rows), {}, {"clip": clip})
    fig = fig2.figure(record)
    (right,) = [ax for ax in fig.axes if "log" in ax.get_xlabel()]
    assert [t.get_text() for t in right.get_yticklabels()] == list(fig2.OPTIONS)
    music, motion, weight = fig.axes[:3]
    assert np.allclose(motion.lines[0].get_ydata(), clip["O"])
    assert int((weight.lines[0].get_ydata() == 1).sum()) == len(clip["met"])
    assert "time, s" in weight.get_xlabel()
    assert motion.get_ylabel() == "px per frame"
    assert music.get_ylabel() == "amplitude"
    assert table.png(fig)[:4] == b"\x89PNG"


def test_profile_paper_says_why_not():
    with pytest.raises(DataError, match="known"):
        fig2.compute(config.load("paper"), progress=False)
