"""Does the music follow the video: the tests' stimuli, and that they tell a follower from one who does not look."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vmas import config, paths, records
from vmas.corpus.sound import render_audio
from vmas.corpus.spec import sample_spec
from vmas.embedders.tagger import MiniTagger, TaggerConfig, load_tagger
from vmas.errors import DataError, UsageError
from vmas.experiments import data_size, follow, follow_stimuli, follow_tests, sweep
from vmas.experiments.evaluate import Analysis, Evaluator, Reference
from vmas.experiments.follow_tests import Bench
from vmas.metrics import intervals
from vmas.records import Record, Row

RATE, N, T = 32000, 12, 48
FPS, SECONDS = 9.6, 5.0
PERIOD = 12  # frames between the picture's peaks
SMOKE = {"eval": {"bootstrap": 200}, "sampling": {"batch_size": 5}}


# ---------------------------------------------------------------- what is shown


def test_partners_are_other_clips_of_the_wanted_genre():
    genres = np.array([0, 0, 0, 1, 1, 2])
    same, other = (follow_stimuli.other_video(genres, s, 3) for s in (True, False))
    assert same[5] == -1, "nobody else has its genre"
    assert all(genres[j] == genres[i] and i != j for i, j in enumerate(same[:5]))
    assert all(genres[j] != genres[i] for i, j in enumerate(other))
    assert np.array_equal(other, follow_stimuli.other_video(genres, False, 3))
    assert (follow_stimuli.other_video(np.zeros(4), False) == -1).all()


def test_cut_and_freeze():
    a, b = (np.random.default_rng(s).integers(0, 255, (2, 6, 4, 4, 3), np.uint8) for s in (0, 1))
    got = follow_stimuli.cut(a, b, 2)
    assert np.array_equal(got[:, :2], a[:, :2])
    assert np.array_equal(got[:, 2:], b[:, 2:])
    assert (follow_stimuli.freeze(a) == a[:, :1]).all()
    assert follow_stimuli.freeze(a).shape == a.shape
    for at in (0, 6):
        with pytest.raises(UsageError, match="cannot cut"):
            follow_stimuli.cut(a, b, at)


def test_shifts_are_circular_and_keep_the_number_of_peaks():
    peaks = np.array([1, 20, 47]) / FPS
    for k in (-8, -1, 3, 8):
        got = follow_stimuli.shifted(peaks, k, FPS, T)
        assert np.allclose(got * FPS, sorted((p + k) % T for p in (1, 20, 47)))
    assert np.allclose(follow_stimuli.shifted(peaks, T, FPS, T), peaks)


def test_shift_curve_peaks_where_the_music_is():
    rng = np.random.default_rng(0)
    peaks = [np.sort(rng.choice(np.arange(1, T - 1), 5, replace=False)) / FPS for _ in range(40)]
    late = [follow_stimuli.shifted(p, 3, FPS, T) for p in peaks]
    scores = follow_stimuli.shift_scores(late, peaks, follow_tests.SHIFTS, FPS, T, "2025")
    assert scores.shape == (17, 40)
    best = follow_tests.best_shift(scores, follow_tests.SHIFTS, 200)
    assert (best.mean, best.lo, best.hi) == (3, 3, 3)
    flat = follow_tests.best_shift(rng.normal(size=(17, 40)), follow_tests.SHIFTS, 200)
    assert flat.hi - flat.lo > 3, "noise has no best shift"


def test_tempo_of_clicks():
    t = np.zeros(int(SECONDS * RATE), np.int16)
    for i in range(10):
        t[int(i * 0.5 * RATE) : int(i * 0.5 * RATE) + 400] = 20000
    octaves = np.log2(follow_stimuli.tempo(t, RATE) / 120)
    assert octaves == pytest.approx(round(octaves), abs=0.05), "clicks all alike: which octave is open"
    assert np.isnan(follow_stimuli.tempo(np.zeros(RATE, np.int16), RATE))


def test_half_the_tempo_is_heard_and_not_folded_back():
    """librosa's own prior hears 80 BPM again where 40 are played."""
    clicks = np.zeros((1, 8 * RATE), np.int16)
    for i in range(11):
        clicks[0, int(i * 0.75 * RATE) : int(i * 0.75 * RATE) + 400] = 20000
    slower = follow_stimuli.stretched(clicks, 0.5, RATE)
    assert slower.shape == clicks.shape
    first, half = follow_stimuli.tempi(np.concatenate([clicks, slower]), RATE)
    assert (first, half) == (pytest.approx(80, abs=3), pytest.approx(40, abs=2))


def test_stretched_music_is_the_same_music_slower():
    t = np.arange(2 * RATE) / RATE
    tone = np.round(9000 * np.sin(2 * np.pi * 800 * t)).astype(np.int16)[None]
    for speed, hertz in ((0.5, 400), (0.75, 600), (1.0, 800)):
        made = follow_stimuli.stretched(tone, speed, RATE)[0].astype(float)
        assert np.abs(np.fft.rfft(made)).argmax() / 2 == pytest.approx(hertz, abs=1)
        assert np.abs(made[RATE // 2 :]).max() == pytest.approx(9000, rel=0.02)
    for wrong in (0.0, 1.5):
        with pytest.raises(UsageError, match="speed"):
            follow_stimuli.stretched(tone, wrong, RATE)


def test_speeds_that_would_repeat_pictures_are_refused(tmp_path):
    smoke = config.load("smoke")
    for speed in (0.1, 1.5):
        with pytest.raises(UsageError, match="pictures a second"):
            follow_stimuli.slowed(tmp_path / "x.mp4", smoke, speed)


def test_slowed_files_show_their_own_pictures(tmp_path, monkeypatch):
    from vmas import corpus, media

    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    smoke = config.load("smoke")
    corpus.make(tmp_path / "clips", smoke, ids=["test-00000"], progress=False)
    file = tmp_path / "clips" / "test" / "test-00000.mp4"
    frames, _ = follow_stimuli.slowed(file, smoke, 1.0)
    assert np.array_equal(frames, media.read_frames(file, FPS, 64, duration_s=SECONDS))
    half, peaks = follow_stimuli.slowed(file, smoke, 0.5)
    assert half.shape == frames.shape
    # every second picture of the slow clip is a picture of the first half of the clip
    assert np.array_equal(half[::2], frames[:24])
    assert all(0 < p < SECONDS for p in peaks)


# ---------------------------------------------------------------- ratios


def test_ratio_of_means():
    rng = np.random.default_rng(0)
    b = rng.uniform(1, 2, 300)
    got = intervals.ratio(0.5 * b + rng.normal(0, 0.05, 300), b)
    assert got.lo < 0.5 < got.hi
    assert got.hi - got.lo < 0.02
    exact = intervals.ratio(0.5 * b, b)
    assert (exact.mean, exact.lo, exact.hi) == pytest.approx((0.5, 0.5, 0.5))
    assert intervals.ratio([1.0, np.nan, 3.0], [2.0, 5.0, 2.0]).left_out == 1
    assert np.isnan(intervals.ratio([1.0, 2.0], [0.0, 0.0]).mean)
    assert np.isnan(intervals.ratio([1.0], [2.0]).lo)
    with pytest.raises(DataError, match="same clips"):
        intervals.ratio([1.0], [1.0, 2.0])


# ---------------------------------------------------------------- the tests, on players whose skill is known


class Player:
    """Clicks where the picture is bright (`looks`), or at times of its own; its likelihood knows X_v or does not."""

    def __init__(self, profile, looks: bool):
        self.profile, self.looks, self.decoder, self.device = profile, looks, self, torch.device("cpu")

    def generate_waveform(self, frames, seed=0, first=0, progress=None):
        out = np.zeros((len(frames), round(SECONDS * RATE)), np.float32)
        for i, clip in enumerate(frames):
            bright = clip.mean(axis=(1, 2, 3)) > 128
            own = np.random.default_rng([seed, first + i]).integers(1, T - 1, 4)
            for f in np.flatnonzero(bright) if self.looks else own:
                at = round(f / FPS * RATE)
                out[i, at : at + 600] = 0.8
        return out

    def encode_video(self, frames):
        return frames.float().mean((2, 3, 4))[:, ::2, None]

    def codec_time_logits(self, codes, X_v, keep=None):
        b, k, t = codes.shape
        logits = torch.zeros(b, k, t, 4)
        if self.looks and keep is None:
            # token 1 is likely where the row of X_v is bright, which is where the clips have it
            logits[..., 1] = (X_v[:, :, 0] > 100).float().repeat_interleave(t // X_v.shape[1] + 1, 1)[:, None, :t] * 4
        return logits


@pytest.fixture(scope="module")
def profile():
    return config.load("smoke", SMOKE)


@pytest.fixture(scope="module")
def tagger():
    torch.manual_seed(0)
    return MiniTagger(TaggerConfig(RATE, 32, 1024, 640, 4, tuple("abcdefghij"))).eval().requires_grad_(False)


def bench(profile, tagger, looks, monkeypatch) -> Bench:
    rng = np.random.default_rng(1)
    starts = rng.integers(2, PERIOD - 1, N)
    frames = np.zeros((N, T, 8, 8, 3), np.uint8)
    peaks = []
    for i, s in enumerate(starts):
        frames[i, s::PERIOD] = 255
        peaks.append(np.arange(s, T, PERIOD) / FPS)
    tokens = np.zeros((N, 2, 250), np.int16)
    bright = frames[:, ::2, 0, 0, 0] > 100
    tokens[:] = np.repeat(bright, 250 // 24 + 1, axis=1)[:, None, :250]
    heard = Analysis(np.zeros((N, 4)), np.zeros((N, 10)), peaks)

    def slow(files, p, speed, pool=None):
        """The picture's peaks lie 1/speed as far apart."""
        out = np.zeros_like(frames)
        for i, s in enumerate(starts):
            out[i, s :: round(PERIOD / speed)] = 255
        return out, [np.arange(s, T, round(PERIOD / speed)) / FPS for s in starts]

    monkeypatch.setattr(follow_stimuli, "slow", slow)
    waves = np.zeros((N, round(SECONDS * RATE)), np.int16)
    for wave, times in zip(waves, peaks, strict=True):
        for at in times:  # clicks on the picture's peaks
            wave[round(at * RATE) : round(at * RATE) + 400] = 20000
    reference = Reference(heard, heard, np.arange(N) % 3, {FPS: peaks})
    judge = Evaluator(tagger, RATE, workers=1)
    return Bench(Player(profile, looks), profile, judge, "val", frames, tokens, np.arange(N) % 3, waves, [], reference,
                 heard)  # fmt: skip


def recorded(profile, found) -> Record:
    extra = {"split": "val", "clips": N, **{k: f.extra for k, f in found.items()}}
    return Record("follow", "smoke", follow.TITLE, "k", tuple(r for f in found.values() for r in f.rows), {}, extra)


@pytest.fixture(scope="module")
def played(profile, tagger):
    with pytest.MonkeyPatch.context() as patch:
        both = {looks: follow.run(bench(profile, tagger, looks, patch)) for looks in (True, False)}
    return {looks: recorded(profile, found) for looks, found in both.items()}


def test_they_tell_who_looks(played):
    answers = {
        looks: {(a["test"], a["question"]): a["answer"] for a in follow.answers(r)} for looks, r in played.items()
    }
    seen, deaf = answers[True], answers[False]
    assert len(seen) == len(deaf) == 9
    for test in ("swap", "shift", "still"):
        assert all(a == "yes" for (t, _), a in seen.items() if t == test), test
        assert not any(a == "yes" for (t, _), a in deaf.items() if t == test), test
    assert seen["slow", "half the speed, by its onsets?"] == "yes"
    assert deaf["slow", "half the speed, by its onsets?"] == "not seen"
    # clicks have no genre: a cut moves nothing in either
    assert deaf["cut", "the genre of the picture after a cut?"] != "yes"


class Cutter:
    """Plays each clip's own music, known by the brightness of its pictures: up to the cut and after, or the last's."""

    def __init__(self, waves, ahead: bool):
        self.waves, self.ahead, self.device = waves, ahead, torch.device("cpu")

    def generate_waveform(self, frames, seed=0, first=0, progress=None):
        half = self.waves.shape[1] // 2
        shown = np.asarray(frames)[..., 0].mean(axis=(2, 3)).round().astype(int)
        begins, ends = shown[:, -1 if self.ahead else 0], shown[:, -1]
        return np.concatenate([self.waves[begins, :half], self.waves[ends, half:]], axis=1)


@pytest.mark.parametrize(("ahead", "said"), [(False, True), (True, False)])
def test_a_cut_is_followed_by_who_changes_there_and_not_by_who_plays_the_second_from_the_start(
    profile, tagger, monkeypatch, ahead, said
):
    mini = config.load("mini")
    specs = (sample_spec("val", i, mini.corpus, SECONDS) for i in range(100))
    chosen = [s for s in specs if s.genre in ("jazz", "metal", "classical")][:N]
    waves = np.stack([render_audio(s, RATE) for s in chosen])
    names = sorted({s.genre for s in chosen})
    judge = Evaluator(load_tagger(paths.checkpoints("mini") / "tagger"), RATE, workers=1)
    order = [judge.tagger.labels.index(s.genre) for s in chosen]
    assert len(names) == 3
    base = bench(profile, tagger, True, monkeypatch)
    frames = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None, None], base.frames.shape)
    own = np.round(waves * 32767).astype(np.int16)
    told = {"model": Cutter(waves, ahead), "judge": judge, "frames": frames, "genres": np.array(order), "waves": own}
    case = dataclasses.replace(base, **told)
    record = recorded(profile, {"cut": follow_tests.cut(case, own)})
    (answer,) = follow.answers(record)
    assert (answer["answer"] == "yes") == said
    part = f"val: {follow_tests.CUT}"
    after = record.row(follow_tests.JOINED, part, f"{follow_tests.MOVED}, after")
    assert follow.answer(after.ci95) == "yes", "both play the second video's music after the cut"


def test_values_of_a_perfect_follower(played):
    t, r = follow_tests, played[True]
    metric = "MV Align (2025, 9.6 fps)"
    part = f"val: {t.SHIFT}"
    assert r.row(t.OURS, part, f"{metric} {t.AT}").value > 0.9
    assert r.row(t.OURS, part, t.BEST).value == 0
    assert r.row(t.REAL, part, f"{metric} {t.AT}").value == 1
    part = f"val: {t.SLOW}"
    assert r.row("VMAs, speed 1/2", part, f"{t.FOLLOWED}, onsets").value == pytest.approx(1, abs=0.35)
    assert r.row("Picture, speed 1/2", part, t.PEAKS).value < r.row("Picture, speed 1", part, t.PEAKS).value
    # its own music, slowed, is heard to be slow; random clicks have no tempo that could be heard to change
    itself, random = (x.row(f"{t.ITSELF}, speed 1/2", part, f"{t.FOLLOWED}, tempo") for x in (r, played[False]))
    assert itself.value == pytest.approx(1, abs=0.05)
    assert itself.note == t.HEARD
    assert follow.answer(random.ci95) == "not seen"
    part = f"val: {t.STILL}"
    assert r.row(t.FROZEN, part, t.ONSETS).value <= 1
    assert r.row(t.OWN, f"val: {t.SWAP}", f"{t.NLL}, whole clip").value > 0
    one = next(r.row(t.NONE, f"val: {t.SWAP}", f"{t.EXTRA}, {w}").value for w in t.windows(SECONDS))
    assert one > 0


def test_one_who_does_not_look_costs_nothing_to_mislead(played):
    for row in played[False].rows:
        if row.metric.startswith(follow_tests.EXTRA):
            assert row.value == pytest.approx(0, abs=1e-9)
            assert row.ci95 == pytest.approx((0, 0), abs=1e-9)


def test_words_and_figure_are_made_from_the_record(played, tmp_path):
    from vmas.report import table

    text = follow.told(played[True])
    assert text.splitlines()[0].startswith("yes")
    assert "val split, 12 clips, status smoke" in text
    folder = table.save(played[True], tmp_path, follow.figure)
    assert sorted(p.name for p in folder.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
    assert "swapped video" in (folder / "table.md").read_text(encoding="utf-8")
    assert len(json.loads((folder / "result.json").read_text(encoding="utf-8"))["rows"]) == len(played[True].rows)
    path = tmp_path / "r.json"
    records.write(dataclasses.replace(played[True], provenance={}), path)
    assert follow.told(records.read(path)) == text


@pytest.mark.parametrize(("ci", "said"), [((0.1, 0.3), "yes"), ((-0.1, 0.3), "not seen"), ((-2, -1), "the opposite")])
def test_an_answer_is_its_interval(ci, said):
    assert follow.answer(ci) == said
    assert follow.answer(None) == "not seen"


def test_trainings_answer_together(played):
    """The mean over them, Student's t over them and the clips' own intervals in quadrature."""

    def moved(by: float) -> Record:
        rows = [
            dataclasses.replace(r, value=r.value + by, ci95=r.ci95 and (r.ci95[0] + by, r.ci95[1] + by))
            for r in played[True].rows
        ]
        return dataclasses.replace(played[True], rows=tuple(rows))

    one, three = follow.answers(played[True]), follow.over_trainings([moved(d) for d in (-0.1, 0, 0.1)])
    assert [a["question"] for a in three] == [a["question"] for a in one]
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t of two degrees of freedom
    for a, b in zip(three, one, strict=True):
        assert a["value"] == pytest.approx(b["value"])
        assert a["each"] == pytest.approx([b["value"] - 0.1, b["value"], b["value"] + 0.1])
        assert a["lo"] == pytest.approx(b["value"] - np.hypot(half, b["value"] - b["lo"]))
        assert a["hi"] == pytest.approx(b["value"] + np.hypot(half, b["hi"] - b["value"]))
        assert (a["seeds"], a["answer"]) == (3, follow.answer((a["lo"], a["hi"])))
    (alone,) = {a["seeds"] for a in follow.over_trainings([played[True]])}
    assert alone == 1
    assert follow.over_trainings([]) == []
    text = follow.told(*[moved(d) for d in (-0.1, 0, 0.1)])
    assert "12 clips, 3 trainings, status smoke" in text
    assert text.count("; each ") == len(one)
    fewer = dataclasses.replace(played[True], rows=played[True].rows[1:])
    with pytest.raises(DataError, match="different clips"):
        follow.over_trainings([fewer, dataclasses.replace(fewer, extra={**fewer.extra, "clips": 3})])


def test_a_question_that_one_training_cannot_answer_is_left_out(played):
    first = follow.answers(played[True])[0]
    system, name = next((s, n) for t, q, s, _, n in follow._questions("M") if q == first["question"])
    some = tuple(r for r in played[True].rows if (r.system, r.metric) != (system, name))
    found = follow.over_trainings([played[True], dataclasses.replace(played[True], rows=some)])
    assert first["question"] not in {a["question"] for a in found}
    assert len(found) == len(follow.answers(played[True])) - 1


def test_another_seeds_weights_are_named_by_the_record_of_its_training(monkeypatch, tmp_path):
    """They are no part of the repository, and what was asked of them must hold all the same."""
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    mini, seed = config.load("mini"), 7
    before = follow.key(mini, seed)
    run = sweep.Run("data-size", data_size.CONDITIONS[-1], mini, seed)
    row = Row("a", "b", "c", "up", 1.0, None, 1, 1, status="scaled_down")
    trained = Record(run.name, "mini", "T", run.key(), (row,), {"checkpoint_sha256": "f" * 64}, {})
    records.write(trained, records.local(run.name, "mini", seed))
    assert follow._weights(mini, seed)["vmas-seed7"] == "f" * 64
    assert follow.key(mini, seed) != before
    there = dataclasses.replace(trained, target="follow", key=follow.key(mini, seed))
    records.write(there, records.local("follow", "mini", seed))
    assert [r.key for r in follow.recorded(mini)][-1] == there.key
    records.local(run.name, "mini", seed).unlink()
    assert there.key not in [r.key for r in follow.recorded(mini)], "nothing names its weights any more"


def test_clips_without_a_partner_leave_a_record_that_can_be_kept(profile, tagger, monkeypatch, tmp_path):
    alone = bench(profile, tagger, False, monkeypatch)
    two = dataclasses.replace(alone, genres=np.array([0] * (N - 1) + [1]))
    for case, same in ((dataclasses.replace(alone, genres=np.arange(N)), 0), (two, N - 1)):
        found, _ = follow_tests.swap(case, follow_tests.encoded(case))
        rows = [r for r in found.rows if r.system == follow_tests.SAME]
        assert [r.n for r in rows] == [same] * (4 if same else 0)
        record = Record("follow", "smoke", "t", "k", tuple(found.rows), {}, {"swap": found.extra})
        kept = records.read(records.write(record, tmp_path / "r.json"))
        assert (kept.extra["swap"]["nats"][0]["mean"] is None) == (same == 0)


def test_one_genre_cannot_be_cut(profile, tagger, monkeypatch):
    one = dataclasses.replace(bench(profile, tagger, True, monkeypatch), genres=np.zeros(N, int))
    with pytest.raises(DataError, match="two genres"):
        follow_tests.cut(one, one.waves)


def test_the_key_names_split_and_clips(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    mini = config.load("mini")
    keys = {follow.key(mini), follow.key(mini, split="val"), follow.key(mini, clips=60), follow.key(mini, 1)}
    assert len(keys) == 4
    assert follow.key(mini) == follow.key(mini, split=follow.SPLIT, clips=follow.CLIPS)
    assert follow.key(mini) == follow.key(dataclasses.replace(mini, note="other words"))
    assert paths.cache() == tmp_path
