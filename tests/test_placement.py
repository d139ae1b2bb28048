"""Planted gains are found where they were planted, and the readings of eq. 3 cover what they do."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vmas import config, paths, records
from vmas.beats import BeatOptions, align
from vmas.errors import DataError
from vmas.experiments import placement
from vmas.experiments.placement import Part

CLIPS, LENGTH = 40, 100


@pytest.fixture(scope="module")
def mini():
    return config.load("mini", {"eval": {"bootstrap": 300}})


@pytest.fixture(scope="module")
def planted():
    """Ones at three places a clip, and a gain of 1 nat three tokens earlier, of .01 elsewhere; clip 5 has none."""
    rng = np.random.default_rng(0)
    ones = np.zeros((CLIPS, LENGTH), bool)
    gain = np.full((CLIPS, LENGTH), 0.01)
    for i in range(CLIPS):
        at = rng.choice(np.arange(20, LENGTH - 20, 8), 3, replace=False)
        ones[i, at] = True
        gain[i, at - 3] = 1.0
    gain[5] = np.nan
    return gain, ones


def test_the_curve_peaks_where_the_gain_is(planted):
    curve = placement.around(*planted, 300)
    assert [c["offset"] for c in curve] == list(range(-placement.REACH, placement.REACH + 1))
    best = max(curve, key=lambda c: c["mean"])
    assert best["offset"] == -3
    assert best["mean"] == pytest.approx(1.0)
    assert best["lo"] == pytest.approx(1.0)
    assert next(c for c in curve if c["offset"] == 0)["mean"] < 0.2


def test_tokens_at_the_ends_have_no_neighbours_beyond():
    gain = np.tile(np.arange(6.0), (3, 1))
    ones = np.zeros((3, 6), bool)
    ones[:, 0] = True
    curve = {c["offset"]: c["mean"] for c in placement.around(gain, ones, 50)}
    assert curve[0] == 0.0
    assert curve[2] == 2.0
    assert curve[-1] is None, "there is nothing before the first token"


def test_what_a_reading_covers(planted, mini):
    gain, ones = planted
    there = np.roll(ones, -3, axis=1)
    found = [Part("where it is", there), Part("three late", ones), Part("everything", np.ones_like(ones))]
    rows = placement.covered("model", gain, found, mini)
    by = {(r.system, r.metric): r for r in rows}
    total = 3 + 0.01 * (LENGTH - 3)
    assert by["where it is", placement.TOKENS].value == pytest.approx(0.03)
    assert by["where it is", placement.GAIN].value == pytest.approx(3 / total)
    assert by["where it is", placement.TIMES].value == pytest.approx(3 / total / 0.03)
    assert by["three late", placement.TIMES].value < 0.3
    assert by["everything", placement.GAIN].value == pytest.approx(1.0)
    assert by["everything", placement.TIMES].value == pytest.approx(1.0)
    assert {r.n for r in rows} == {CLIPS - 1}, "a clip without a partner is left out"
    chance = [by[p.name, placement.TIMES].chance for p in found]
    assert chance[2] == pytest.approx(1.0)
    assert all(c < 3 for c in chance), "the same weights elsewhere find little"


def test_chance_is_told_for_weights_that_mean_nothing(mini):
    rng = np.random.default_rng(1)
    gain = rng.normal(0.05, 0.1, (200, LENGTH))
    ones = rng.random((200, LENGTH)) < 0.05
    (row,) = [r for r in placement.covered("m", gain, [Part("random", ones)], mini) if r.metric == placement.TIMES]
    assert row.ci95[0] < 1 < row.ci95[1]
    assert row.chance == pytest.approx(1, abs=0.3)


def test_ratio_of_sums_and_its_interval():
    a, b = np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 4.0, 6.0, 1.0])
    got = placement.ratio(a, b, 200)
    assert (got.mean, got.lo, got.hi, got.n, got.left_out) == pytest.approx((0.5, 0.5, 0.5, 3, 1))
    assert np.isnan(placement.ratio(a[:1], b[:1]).mean)
    assert np.isnan(placement.ratio(np.ones(3), np.zeros(3)).mean)


def test_effective_share_is_kishs(mini):
    ones = np.zeros((10, 100), bool)
    ones[:, :3] = True
    rows = {(r.system, r.metric): r.value for r in placement._weighed(Part("eq. 3", ones), mini)}
    first, second = 3 + 97 * 0.05, 3 + 97 * 0.05**2
    assert rows["α = 0.05", placement.EFFECTIVE] == pytest.approx(first**2 / second / 100)
    assert rows["α = 0.05", placement.WEIGHT] == pytest.approx(3 / first)
    assert rows["α = 0.3", placement.EFFECTIVE] > rows["α = 0.05", placement.EFFECTIVE]


def test_parts_are_the_readings_and_the_truth(mini):
    n, t_a = 4, mini.num_tokens
    rng = np.random.default_rng(2)
    flow = rng.random((n, mini.clip.num_frames - 1)).astype(np.float32)
    P_a = rng.random((n, t_a)) < 0.05
    table = pd.DataFrame(
        {
            "beats_s": [[0.5, 1.0, 3.0]] * n,
            "shown": [[True, False, True]] * n,
            "onsets_s": [[0.5]] * n,
            "video_events_s": [[0.5]] * n,
        }
    )
    found = {p.name: p.ones for p in placement.parts(SimpleNamespace(flow=flow, beats=P_a, manifest=table), mini, n)}
    assert list(found) == [*placement.OPTIONS, placement.EVERY, placement.TRUE]
    want = align(flow, P_a, mini.clip.fps, mini.codec.frame_rate, BeatOptions()).P_av == 1
    np.testing.assert_array_equal(found["eq. 3"], want)
    np.testing.assert_array_equal(found[placement.EVERY], P_a)
    true = np.flatnonzero(found[placement.TRUE][0])
    assert set(true) == {*range(22, 29), *range(147, 154)}, "half a frame to either side, only what is shown"
    earlier = found["on the onset, 60 ms earlier"]
    np.testing.assert_array_equal(earlier[:, :-3], found["on the onset"][:, 3:])


def test_paper_scale_is_refused():
    with pytest.raises(DataError, match="whose beats are known"):
        placement.compute(config.load("paper"))


def test_splits_have_keys_of_their_own():
    p = config.load("mini")
    assert placement.key(p) == placement.key(p, split="test") != placement.key(p, split="val")


def test_the_committed_record_holds_and_is_drawn():
    record = records.read(records.committed("placement", "mini", 0))
    assert record.key == placement.key(config.load("mini"))
    assert (paths.target("mini", "placement") / "figure.png").is_file()
    told = (paths.target("mini", "placement") / "table.md").read_text(encoding="utf-8")
    assert "chance: the same weights moved along the clip" in told
    fig = placement.figure(record)
    assert len(fig.axes) == 2 * len(record.extra["curves"]) == 4
    left = fig.axes[0]
    assert left.get_ylabel().endswith("nats a token")
    peak = max(record.extra["curves"][placement.BASELINE]["on the onset"], key=lambda c: c["mean"])
    line = next(x for x in left.lines if "onset" in str(x.get_label()))
    assert line.get_ydata().max() == pytest.approx(peak["mean"])
