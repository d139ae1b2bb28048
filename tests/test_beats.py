"""Eq. 3 and its open choices: golden numbers, the literal reading, properties, broken input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vmas import compiled, config
from vmas.beats import (
    LITERAL,
    BeatOptions,
    align,
    audio_onsets,
    beat_weights,
    flow_to_grid,
    onset_vector,
    video_beats,
)
from vmas.errors import ConfigError, DataError, UsageError

O_GOLDEN = [0, 1, 3, 3, 1, 0, 2, 5, 2, 0, 0, 4]
ONSETS_GOLDEN = {4, 9}
CLICKS = np.array([0.5, 1, 1.5, 2.25, 3, 3.1, 4, 6.4, 9.9])
CLICK_TOKENS = [25, 50, 75, 113, 150, 155, 200, 320, 495]

signals = hnp.arrays(np.float32, st.integers(1, 60), elements=st.integers(0, 5).map(float))
deltas = st.integers(0, 8)


def where(x) -> set[int]:
    return set(np.flatnonzero(x).tolist())


def onsets(indices, n=12):
    P_a = np.zeros(n, bool)
    P_a[list(indices)] = True
    return P_a


def literal_video_beats(O, delta):
    """Section 4.4 word by word."""
    return [O[t] == max(O[max(0, t - delta) : t + delta + 1]) for t in range(len(O))]


def literal_weights(P_v, P_a, delta, alpha):
    """Eq. 3 word by word."""
    out = []
    for i in range(len(P_v)):
        near = sum(P_a[j] for j in range(max(0, i - delta), min(len(P_a), i + delta + 1)))
        out.append(1.0 if P_v[i] and near > 0 else alpha)
    return np.array(out, np.float32)


@pytest.mark.parametrize(("guard", "beats", "ones"), [(False, {2, 3, 7, 11}, {3}), (True, {2, 7, 11}, set())])
def test_golden(guard, beats, ones):
    P_v = video_beats(O_GOLDEN, 1, require_positive=guard)
    assert where(P_v) == beats
    assert where(beat_weights(P_v, onsets(ONSETS_GOLDEN), 1, 0.05) == 1) == ones


def test_onsets_of_clicks_land_on_the_token_grid():
    librosa = compiled.librosa()

    wav = librosa.clicks(times=CLICKS, sr=32000, length=320000)
    assert audio_onsets(wav, 32000, 640).tolist() == CLICK_TOKENS
    assert where(onset_vector(wav[None], 32000, 640, 500)) == set(CLICK_TOKENS)
    assert where(onset_vector(wav, 32000, 640, 300)) == {t for t in CLICK_TOKENS if t < 300}


@given(signals, deltas)
def test_literal_reading_is_the_papers_words(O, delta):
    P_v = video_beats(O, delta, require_positive=False)
    assert P_v.tolist() == literal_video_beats(O.tolist(), delta)


@given(signals, st.data(), deltas, st.floats(0, 1, width=32))
def test_weights_are_eq_3(O, data, delta, alpha):
    P_a = data.draw(hnp.arrays(bool, len(O)))
    P_v = video_beats(O, delta)
    got = beat_weights(P_v, P_a, delta, alpha)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, literal_weights(P_v, P_a, delta, alpha))


@given(signals, st.integers(1, 8))
def test_guarded_beats_are_few_and_true_maxima(O, delta):
    guarded, literal = video_beats(O, delta), video_beats(O, delta, require_positive=False)
    assert not (guarded & ~literal).any()
    assert (O[guarded] > 0).all()
    assert not (guarded[1:] & guarded[:-1]).any() or (O[1:] != O[:-1])[guarded[1:] & guarded[:-1]].all()


@given(signals, deltas, st.floats(0.5, 4))
def test_beats_do_not_depend_on_the_unit_of_flow(O, delta, scale):
    np.testing.assert_array_equal(video_beats(O, delta), video_beats(O.astype(np.float64) * scale, delta))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 30)), elements=st.integers(0, 9).map(float)))
def test_a_batch_equals_its_rows(flow):
    P_a = np.arange(50) % 7 == 0
    batch = align(flow, np.broadcast_to(P_a, (len(flow), 50)), fps=9.6)
    for i, row in enumerate(flow):
        one = align(row, P_a, fps=9.6)
        for name in ("O", "P_v", "P_av"):
            np.testing.assert_array_equal(getattr(batch, name)[i], getattr(one, name))


def test_still_video_has_no_beats_but_literally_it_is_all_beats():
    still, P_a = np.zeros(47), onsets({10, 100}, 250)
    assert not align(still, P_a, 9.6).P_v.any()
    literal = align(still, P_a, 9.6, options=LITERAL.but(delta=2))
    assert literal.P_v.all()
    assert where(literal.P_av == 1) == {8, 9, 10, 11, 12, 98, 99, 100, 101, 102}


def test_plateau_threshold_and_half_open_window():
    O = [0, 2, 2, 2, 2, 0, 1, 0]
    assert where(video_beats(O, 1)) == {1, 6}
    assert where(video_beats(O, 1, plateau="all")) == {1, 4, 6}
    assert where(video_beats(O, 1, threshold=1)) == {1}
    # O[t-1 : t+1] as a slice does not see t+1
    assert where(video_beats([0, 1, 2, 3, 0], 1, inclusive=False)) == {1, 2, 3}


def test_a_beat_at_the_ends_counts():
    assert where(video_beats([5, 1, 0, 1, 7], 2)) == {0, 4}


def test_places():
    P_v, P_a = onsets({5}), onsets({4, 7})
    assert where(beat_weights(P_v, P_a, 1, 0.1) == 1) == {5}
    assert where(beat_weights(P_v, P_a, 2, 0.1, "onset") == 1) == {4, 7}
    assert where(beat_weights(P_v, P_a, 1, 0.1, "onset") == 1) == {4}
    assert where(beat_weights(P_v, P_a, 1, 0.1, "dilated") == 1) == {4, 5, 6}
    assert set(np.unique(beat_weights(P_v, P_a, 1, 0.1))) == {np.float32(0.1), np.float32(1)}


def test_flow_time_is_the_end_of_the_pair():
    flow = np.zeros(95)
    flow[47] = 1  # frames 47 and 48: ends at 5 s
    assert flow_to_grid(flow, 9.6, 500).argmax() == 250
    assert flow_to_grid(flow, 9.6, 500, flow_time="mid").argmax() == 247  # 4.948 s
    assert align(flow, onsets({250}, 500), 9.6).P_av[250] == 1


def test_stretch_is_torch_interpolate_and_drifts():
    import torch
    import torch.nn.functional as F

    flow = np.random.default_rng(0).random((3, 95)).astype(np.float32)
    ours = flow_to_grid(flow, 9.6, 500, interpolation="stretch")
    theirs = F.interpolate(torch.from_numpy(flow)[:, None], 500, mode="linear", align_corners=False)[:, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    impulse = np.zeros(95)
    impulse[1] = 1
    late = flow_to_grid(impulse, 9.6, 500).argmax() - flow_to_grid(impulse, 9.6, 500, interpolation="stretch").argmax()
    assert 2 <= late <= 4  # tokens of 20 ms


@settings(max_examples=30)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 100)))
def test_interpolation_stays_within_the_flow(flow):
    O = flow_to_grid(flow, 9.6, 250)
    assert O.dtype == np.float32
    assert O.min() >= np.float32(flow.min()) - 1e-5
    assert O.max() <= np.float32(flow.max()) + 1e-5


def test_options_of_a_profile():
    profile = config.load("paper")
    options = BeatOptions.from_config(profile.align)
    assert (options.delta, options.alpha, options.place, options.flow_time) == (5, 0.05, "video", "end")
    assert options == BeatOptions()


def test_silence_and_short_audio_have_no_onsets():
    assert len(audio_onsets(np.zeros(32000, np.float32))) == 0
    assert not onset_vector(np.zeros(700, np.float32), 32000, 640, 3).any()


@pytest.mark.parametrize(
    "wav", [np.zeros(0), np.full(32000, np.nan), np.zeros((2, 32000)), np.r_[np.zeros(3000), np.inf]]
)
def test_broken_audio(wav):
    with pytest.raises(DataError):
        audio_onsets(wav)


def test_broken_flow_and_options():
    with pytest.raises(DataError, match="two frames"):
        flow_to_grid(np.zeros(0), 9.6, 500)
    with pytest.raises(DataError, match="NaN"):
        flow_to_grid([0.0, np.nan], 9.6, 500)
    with pytest.raises(DataError, match="grids"):
        beat_weights(onsets({1}), onsets({1}, 11), 1)
    with pytest.raises(UsageError, match="place"):
        beat_weights(onsets({1}), onsets({1}), 1, place="audio")
    with pytest.raises(UsageError, match="flow_time"):
        flow_to_grid([1.0], 9.6, 5, flow_time="start")
    with pytest.raises(UsageError, match="interpolation"):
        flow_to_grid([1.0], 9.6, 5, interpolation="cubic")
    with pytest.raises(UsageError, match="delta"):
        video_beats([1.0, 2.0], -1)
    with pytest.raises(UsageError, match="plateau"):
        video_beats([1.0, 2.0], 1, plateau="last")


@pytest.mark.parametrize("place", ["video", "onset", "dilated"])
def test_a_lead_moves_every_weight_earlier(place):
    P_v, P_a = np.zeros((2, 40), bool), np.zeros((2, 40), bool)
    P_v[:, [2, 20, 35]] = P_a[:, [3, 21, 34]] = True
    there = beat_weights(P_v, P_a, 2, 0.1, place)
    earlier = beat_weights(P_v, P_a, 2, 0.1, place, lead=3)
    np.testing.assert_array_equal(earlier[:, :-3], there[:, 3:])
    np.testing.assert_array_equal(earlier[:, -3:], np.float32(0.1))
    np.testing.assert_array_equal(beat_weights(P_v, P_a, 2, 0.1, place, lead=100), np.float32(0.1))
    with pytest.raises(UsageError, match="lead"):
        beat_weights(P_v, P_a, 2, 0.1, place, lead=-1)


def test_a_lead_of_the_profile_reaches_the_weights_that_training_sees():
    from vmas import config
    from vmas.training.tasks import clip_weights

    p = config.load("mini")
    rng = np.random.default_rng(0)
    flow = rng.random((3, p.clip.num_frames - 1)).astype(np.float32)
    P_a = rng.random((3, p.num_tokens)) < 0.05
    there, earlier = (
        clip_weights(flow, P_a, config.changed(p, {"align": {"place": "onset", **lead}})) for lead in ({}, {"lead": 3})
    )
    assert (there == 1).any()
    np.testing.assert_array_equal(earlier[:, :-3], there[:, 3:])
    with pytest.raises(ConfigError, match=r"align\.lead must be 0 or more"):
        config.changed(p, {"align": {"lead": -3}})
