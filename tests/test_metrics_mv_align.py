"""MV Align: golden numbers of both versions, the reference's loops, chance, broken input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmas import compiled
from vmas.errors import DataError, UsageError
from vmas.metrics import mv_align as mv

TRAJECTORY = [0.05, 0.3, 0.3, 0.2, 0.5, 0.1, 0.08, 0.09, 0.02, 0.7, 0.7, 0.7, 0.1, 0.9]
times = st.lists(st.integers(0, 400).map(lambda i: i / 40), max_size=25, unique=True).map(sorted)
rates = st.sampled_from([4, 8, 9.6, 24, 30])


def reference_matches(audio, video, fps, one_to_one):
    """The published loops, in words: each audio peak takes the first (free) video peak closer than a frame."""
    used, matches = set(), 0
    for a in audio:
        for j, v in enumerate(video):
            if j not in used and v - 1 / fps < a < v + 1 / fps:
                matches += 1
                if one_to_one:
                    used.add(j)
                break
    return matches


@pytest.mark.parametrize(
    ("audio", "video", "fps", "v2023", "v2025"),
    [
        ([0.95, 1, 1.05], [1], 10, 3.0, 0.333333),
        ([1.125], [1], 8, 0, 0),
        ([1.1249], [1], 8, 1, 1),
        ([0.10, 0.52, 1, 1.49, 2.05, 3.3], [0.5, 1, 1.5, 2, 2.5], 9.6, 0.5714285714, 0.5714285714),
        ([0.10, 0.52, 1, 1.49, 2.05, 3.3], [0.5, 1, 1.5, 2, 2.5], 30, 0.375, 0.375),
    ],
)
def test_golden(audio, video, fps, v2023, v2025):
    assert mv.iou(audio, video, fps, "2023") == pytest.approx(v2023, abs=1e-6)
    assert mv.iou(audio, video, fps, "2025") == pytest.approx(v2025, abs=1e-6)
    assert mv.iou(audio, video, fps) == mv.iou(audio, video, fps, "2025")


def test_golden_peaks():
    np.testing.assert_allclose(mv.local_maxima(TRAJECTORY, 10, mv.MIN_FLOW["2025"]), [0.4])
    np.testing.assert_allclose(mv.local_maxima(TRAJECTORY, 10), [0.4, 0.7])


def test_first_flow_value_is_put_twice():
    flow = [0.2, 0.1, 0.5, 0.3, 0.05, 0.08, 0.01]
    np.testing.assert_allclose(mv.video_peaks(flow, 10), [0.3])
    np.testing.assert_allclose(mv.video_peaks(flow, 10, "2023"), [0.3, 0.6])
    assert mv.video_peaks(np.array([0.1, 0.2]), 10).size == 0  # the last frame is no interior maximum
    assert mv.video_peaks(np.array([]), 10).size == 0


def test_golden_audio_peaks():
    librosa = compiled.librosa()

    clicks = librosa.clicks(times=np.array([0.5, 1, 1.5, 2.25, 3, 3.1, 4, 6.4, 9.9]), sr=22050, length=220500)
    expected = np.array([22, 44, 65, 98, 130, 134, 173, 276, 427]) * 512 / 22050
    np.testing.assert_allclose(mv.audio_peaks(clicks, 22050), expected)
    np.testing.assert_allclose(mv.audio_peaks(np.stack([clicks, clicks]), 22050), expected)


def test_audio_is_resampled_as_librosa_loads_it(tmp_path):
    librosa = compiled.librosa()
    import soundfile

    wav = librosa.clicks(times=np.arange(1, 9) / 2, sr=32000, length=160000)
    soundfile.write(tmp_path / "a.wav", wav, 32000, subtype="FLOAT")
    loaded, sr = librosa.load(tmp_path / "a.wav")
    frames = librosa.onset.onset_detect(onset_envelope=librosa.onset.onset_strength(y=loaded, sr=sr), sr=sr)
    np.testing.assert_allclose(mv.audio_peaks(wav, 32000), librosa.frames_to_time(frames, sr=sr))


@given(times, times, rates)
def test_versions_are_the_published_loops(audio, video, fps):
    for version, one_to_one in (("2023", False), ("2025", True)):
        got = mv.iou(audio, video, fps, version)
        if not audio and not video:
            assert np.isnan(got)
            continue
        matches = reference_matches(audio, video, fps, one_to_one)
        assert got == matches / (len(audio) + len(video) - matches)


@given(times, times, rates)
def test_2025_is_a_largest_matching_between_0_and_1(audio, video, fps):
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not audio or not video:
        return
    v, a = np.array(video), np.array(audio)[:, None]
    near = (v - 1 / fps < a) & (a < v + 1 / fps)
    largest = (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()
    got = mv.iou(audio, video, fps)
    assert got == largest / (len(audio) + len(video) - largest)
    assert 0 <= got <= 1


@given(times, rates)
def test_equal_peaks_score_one(audio, fps):
    if audio:
        assert mv.iou(audio, audio, fps) == 1


@given(times, times, rates, st.randoms())
def test_order_of_peaks_does_not_matter(audio, video, fps, random):
    if audio or video:
        shuffled = random.sample(audio, len(audio)), random.sample(video, len(video))
        assert mv.iou(*shuffled, fps) == mv.iou(audio, video, fps)


def test_empty_sides():
    assert mv.iou([], [1.0], 10) == 0
    assert mv.iou([1.0], [], 10) == 0
    scores, empty = mv.mv_align([([], []), ([1.0], [1.0]), ([1.0], [])], 10)
    assert empty == 1
    np.testing.assert_array_equal(scores, [np.nan, 1, 0])


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 99))
def test_derangements_leave_nobody_in_place(n, seed):
    orders = mv.derangements(n, 3, seed)
    for order in orders:
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()
    np.testing.assert_array_equal(orders, mv.derangements(n, 3, seed))


@pytest.mark.parametrize(
    ("peaks", "fps", "expected"),
    [
        (20, 4, 0.346),
        (20, 9.6, 0.178),
        (20, 30, 0.066),
        ((40, 30), 4, 0.466),
        ((40, 30), 9.6, 0.260),
        ((40, 30), 30, 0.104),
    ],
)
def test_chance_of_random_peaks(peaks, fps, expected):
    """Uniform peaks over 10 s, 2025 version: chance is high and falls with the frame rate."""
    rng = np.random.default_rng(0)
    a, v = peaks if isinstance(peaks, tuple) else (peaks, peaks)
    audio, video = ([rng.uniform(0, 10, k) for _ in range(1500)] for k in (a, v))
    got = mv.score(audio, video, fps, shuffles=1)
    assert got.mean == pytest.approx(expected, abs=0.012)
    assert got.chance == pytest.approx(expected, abs=0.012)
    assert abs(got.lift) < 0.02


def test_score_carries_what_it_must_be_read_beside():
    rng = np.random.default_rng(1)
    beats = [np.sort(rng.uniform(0, 5, 8)) for _ in range(30)]
    audio = [*beats, np.zeros(0), np.zeros(0)]
    video = [b + 0.01 for b in beats] + [np.zeros(0), np.zeros(0)]
    got = mv.score(audio, video, 9.6, seed=3)
    assert got.name == "MV Align (2025, 9.6 fps)"
    assert (got.n, got.both_empty) == (30, 2)
    assert got.mean == 1
    assert 0 < got.chance < 0.5
    assert got.lift == got.mean - got.chance
    assert got.audio_peaks == pytest.approx(8 * 30 / 32)
    np.testing.assert_array_equal(got.chance_per_clip, mv.score(audio, video, 9.6, seed=3).chance_per_clip)
    assert not np.array_equal(got.chance_per_clip, mv.score(audio, video, 9.6, seed=4).chance_per_clip)


def test_silent_and_still_clips_only():
    got = mv.score([[], []], [[], []], 9.6)
    assert np.isnan(got.mean)
    assert np.isnan(got.chance)
    assert (got.n, got.both_empty) == (0, 2)


def test_real_audio_and_motion_find_each_other():
    """Clicks and jumps at the same moments, through the detectors."""
    librosa = compiled.librosa()

    from vmas.flow import flow_magnitude

    fps, at = 10, np.array([1.0, 2.0, 3.0, 4.0])
    scene = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    scene = np.repeat(np.repeat(scene[::6, ::6], 6, 0), 6, 1)
    frames = []
    for i in range(50):
        shift = int(sum(i / fps >= t for t in at)) * 3
        frames.append(scene[shift : shift + 64, shift : shift + 64])
    video = mv.video_peaks(flow_magnitude(np.stack(frames), cache=False), fps)
    audio = mv.audio_peaks(librosa.clicks(times=at, sr=22050, length=5 * 22050), 22050)
    assert mv.iou(audio, video, fps) == 1
    assert mv.iou(audio + 0.5, video, fps) == 0


def test_broken_input():
    with pytest.raises(UsageError, match="2025"):
        mv.iou([1.0], [1.0], 10, "2024")
    with pytest.raises(DataError, match="NaN"):
        mv.audio_peaks(np.full(22050, np.nan), 22050)
    with pytest.raises(DataError, match="waveform"):
        mv.audio_peaks(np.zeros(0), 22050)
    with pytest.raises(DataError, match="finite flow"):
        mv.video_peaks([0.1, np.nan], 10)
    with pytest.raises(DataError, match="2 clips"):
        mv.score([[1.0]], [[1.0]], 10)
    with pytest.raises(DataError, match="pair up"):
        mv.score([[1.0], [2.0]], [[1.0]], 10)
    assert mv.audio_peaks(np.zeros(22050), 22050).size == 0
