"""Planted gains are found where they were planted, and the readings of eq. 3 cover what they do."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

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
    assert by["every token", placement.MEAN].value == pytest.approx(total / LENGTH)
    assert by["where it is", placement.TOKENS].value == pytest.approx(0.03)
    assert by["where it is", placement.GAIN].value == pytest.approx(3 / total)
    assert by["where it is", placement.TIMES].value == pytest.approx(3 / total / 0.03)
    assert by["where it is", placement.TIMES].ci95 == pytest.approx((3 / total / 0.03,) * 2), "every clip is alike"
    assert by["three late", placement.TIMES].value < 0.3
    assert by["everything", placement.GAIN].value == pytest.approx(1.0)
    assert by["everything", placement.TIMES].value == pytest.approx(1.0)
    assert {r.n for r in rows} == {CLIPS - 1}, "a clip without a partner is left out"
    keep = ~np.isnan(gain.sum(1))
    moves = np.linspace(0, LENGTH, placement.SHIFTS + 2)[1:-1].astype(int)
    moved = np.mean([(gain * np.roll(there, m, axis=1))[keep].sum() for m in moves]) / gain[keep].sum()
    assert by["where it is", placement.GAIN].chance == pytest.approx(moved)
    assert by["everything", placement.TIMES].chance == pytest.approx(1.0)


def test_chance_is_told_for_weights_that_mean_nothing(mini):
    rng = np.random.default_rng(1)
    gain = rng.normal(0.05, 0.1, (200, LENGTH))
    ones = rng.random((200, LENGTH)) < 0.05
    (row,) = [r for r in placement.covered("m", gain, [Part("random", ones)], mini) if r.metric == placement.TIMES]
    assert row.ci95[0] < 1 < row.ci95[1]
    assert row.chance == pytest.approx(1, abs=0.3)


def test_no_share_is_told_of_a_gain_that_is_none(mini):
    gain = np.random.default_rng(3).normal(0, 1, (30, LENGTH))
    ones = np.zeros((30, LENGTH), bool)
    ones[:, 5] = True
    by = {(r.system, r.metric): r for r in placement.covered("m", gain, [Part("some", ones)], mini)}
    assert by["every token", placement.MEAN].ci95[0] < 0 < by["every token", placement.MEAN].ci95[1]
    for metric in (placement.GAIN, placement.TIMES):
        assert by["some", metric].status == "unavailable"
        assert "not told from 0" in by["some", metric].note
    (alone,) = placement.covered("m", gain[:1], [Part("some", ones[:1])], mini)
    assert alone.status == "unavailable"


def test_ratio_of_sums_and_its_interval():
    a, b = np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 4.0, 6.0, 1.0])
    got = placement.ratio(a, b, 200)
    assert (got.mean, got.lo, got.hi, got.n) == pytest.approx((0.5, 0.5, 0.5, 3))
    assert placement.ratio(a[:1], b[:1]) is None
    assert placement.ratio(np.ones(3), np.zeros(3)) is None


def test_effective_share_is_kishs(mini):
    ones = np.zeros((10, 100), bool)
    ones[:, :3] = True
    rows = {(r.system, r.metric): r.value for r in placement.weighed(Part("eq. 3", ones), mini)}
    first, second = 3 + 97 * 0.05, 3 + 97 * 0.05**2
    assert rows["α = 0.05", placement.EFFECTIVE] == pytest.approx(first**2 / second / 100)
    assert rows["α = 0.05", placement.WEIGHT] == pytest.approx(3 / first)
    assert rows["α = 0.3", placement.EFFECTIVE] > rows["α = 0.25", placement.EFFECTIVE]


class Sees:
    """Stands for a model: token 7 is surely code 1 when the video is the clip's own, else any code is as likely."""

    device = torch.device("cpu")

    def encode_video(self, frames):
        return frames[:, :1, 0, 0, :1].float()  # the clip's number

    @property
    def decoder(self):
        return self

    def codec_time_logits(self, codes, X_v, keep=None):
        logits = torch.zeros(*codes.shape, 4)
        own = codes[:, 0, 0] == X_v[:, 0, 0].long()
        logits[own, :, 7, 1] = 50.0
        return logits


def test_the_gain_is_where_the_own_video_tells_the_token():
    n, t_a = 6, 10
    frames = np.zeros((n, 2, 1, 1, 3), np.uint8)
    frames[:, :, 0, 0, 0] = np.arange(n)[:, None]
    tokens = np.zeros((n, 2, t_a), np.int16)
    tokens[:, 0, 0] = np.arange(n)
    tokens[:, 0, 0] %= 4
    frames[:, :, 0, 0, 0] %= 4
    tokens[:, :, 7] = 1
    genres = np.array([0, 0, 0, 1, 1, 2])  # the last has no other of its genre
    split = SimpleNamespace(frames=frames, tokens=tokens, genres=genres)
    done = []
    gain = placement.gains(Sees(), split, n, 2, done.append)
    assert sum(done) == (1 + placement.PARTNERS) * n
    assert np.isnan(gain[5]).all()
    # surely known against one chance in four, for either codebook
    np.testing.assert_allclose(gain[:5, 7], 2 * np.log(4), rtol=1e-4)
    np.testing.assert_allclose(np.delete(gain[:5], 7, axis=1), 0, atol=1e-5)


def test_the_codec_tells_of_a_note_before_its_onset(mini):
    """A codec whose tokens look two tokens ahead: they change from two tokens before the note on."""

    class Ahead:
        def encode(self, x):
            hop = mini.codec.hop
            loud = x[:, 0].abs().reshape(len(x), -1, hop).amax(-1)
            ahead = torch.stack([torch.roll(loud, -k, 1) for k in range(3)]).amax(0)
            return (ahead > 0.5).long()[:, None].repeat(1, 2, 1)

    t_a, at = mini.num_tokens, 100
    wave = np.zeros(t_a * mini.codec.hop, np.float32)
    wave[at * mini.codec.hop : (at + 1) * mini.codec.hop] = 1.0
    beats = np.zeros((1, t_a), bool)
    beats[0, at] = True
    second = at / mini.codec.frame_rate
    none = {"beats_s": [[]], "shown": [[]], "video_events_s": [[]]}
    split = SimpleNamespace(
        beats=beats, waveform=lambda i: wave, manifest=pd.DataFrame({"onsets_s": [[second]], **none})
    )
    got = {p["offset"]: (p["first"], p["every"]) for p in placement.lookahead(Ahead(), split, mini, 1)}
    assert [k for k in got if got[k] == (1.0, 1.0)] == [-2, -1, 0]
    assert all(v == (0.0, 0.0) for k, v in got.items() if k < -2)
    far = SimpleNamespace(beats=beats, waveform=lambda i: wave, manifest=pd.DataFrame({"onsets_s": [[0.1]], **none}))
    assert placement.lookahead(Ahead(), far, mini, 1) == []


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
    controls = [placement.EVERY, placement.UNMET, placement.FOREIGN]
    assert list(found) == [*placement.OPTIONS, *controls, placement.TRUE]
    want = align(flow, P_a, mini.clip.fps, mini.codec.frame_rate, BeatOptions()).P_av == 1
    np.testing.assert_array_equal(found["eq. 3"], want)
    np.testing.assert_array_equal(found[placement.EVERY][:, :-3], P_a[:, 3:])
    np.testing.assert_array_equal(found[placement.UNMET][:, :-3], (P_a & ~found["on the onset"])[:, 3:])
    other = align(np.roll(flow, 1, axis=0), P_a, mini.clip.fps, mini.codec.frame_rate, BeatOptions(place="onset"))
    np.testing.assert_array_equal(found[placement.FOREIGN][:, :-3], (other.P_av == 1)[:, 3:])
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


def test_the_place_was_confirmed_on_validation_clips():
    """What SWEEPS.md tells of the validation split, from its record."""
    record = records.read(paths.target("mini", "placement") / "validation.json")
    assert record.key == placement.key(config.load("mini"), split="val")
    text = " ".join(paths.target("mini", "SWEEPS.md").read_text(encoding="utf-8").split())
    curve = record.extra["curves"][placement.BASELINE]["on the onset"]
    assert max(curve, key=lambda c: c["mean"])["offset"] == -3
    best, there = (
        record.row(s, f"val: {placement.BASELINE}", placement.TIMES) for s in ("on the onset, 60 ms earlier", "eq. 3")
    )
    assert f"three tokens before a matched onset the gain is {best.value:.1f} times that of the mean token" in text
    assert there.ci95[0] < 0 < there.ci95[1]


def test_the_committed_record_holds_and_is_drawn():
    record = records.read(records.committed("placement", "mini", 0))
    assert record.key == placement.key(config.load("mini"))
    assert (paths.target("mini", "placement") / "figure.png").is_file()
    told = (paths.target("mini", "placement") / "table.md").read_text(encoding="utf-8")
    assert "chance: the same weights moved along the clip" in told
    fig = placement.figure(record)
    assert len(fig.axes) == 2 * len(record.extra["curves"]) + 1 == 5, "two a model, and the look-ahead's axis"
    left = fig.axes[0]
    assert left.get_ylabel().endswith("nats a token")
    peak = max(record.extra["curves"][placement.BASELINE]["on the onset"], key=lambda c: c["mean"])
    line = next(x for x in left.lines if "onset" in str(x.get_label()))
    assert line.get_ydata().max() == pytest.approx(peak["mean"])
