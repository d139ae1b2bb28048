"""The dirty corpus and what the builder's filters do to it: truth, marks, the voice that is left, no leaks."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from dataset_files import PROFILE, checkpoints

from vmas import config, corpus, paths, records
from vmas.corpus.sound import render_audio
from vmas.dataset import calibration, frames, vocals
from vmas.dataset.fingerprints import Prints
from vmas.dataset.manifest import read_manifest
from vmas.dataset.stages import Tools
from vmas.errors import DataError, WeightsUnavailable
from vmas.experiments import dirty, fig5, filters, reuploads, table1
from vmas.metrics.intervals import wilson
from vmas.report import table

N = 24
SMALL = dataclasses.replace(
    PROFILE, clip=dataclasses.replace(PROFILE.clip, seconds=4.0), corpus=dataclasses.replace(PROFILE.corpus, test=6)
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(record of table1, of fig5, the findings) of a small dirty corpus; its tagger is untrained."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMAS_CACHE", str(root))
        patch.setitem(dirty.CLIPS, "smoke", N)
        weights = str(checkpoints(root / "weights"))
        seen = []
        run = filters.run
        patch.setattr(filters, "run", lambda *a: seen.append(run(*a)) or seen[-1])
        one = table1.compute(SMALL, progress=False, checkpoints=weights, workers=1)
        two = fig5.compute(SMALL, progress=False, checkpoints=weights, workers=1)
        yield one, two, seen[-1], dirty.make(SMALL, 1, False)


# ---------------------------------------------------------------- the corpus


def test_the_truth_is_that_of_the_clips(ran):
    d = ran[3]
    t = d.truth
    assert [v.id for v in d.videos] == t.id.tolist()
    assert read_manifest(d.folder / dirty.MANIFEST) == d.videos
    assert all((d.folder / p).is_file() for p in t.path)
    assert t.kind.value_counts().to_dict() == {"clip": 13, "copy": 11, "borrowed": 2}
    p = dirty.profile_of(SMALL)
    for row in t[t.kind != "borrowed"].itertuples():
        spec = corpus.sample_spec(*corpus.parse_id(row.id), p.corpus, p.clip.seconds)
        assert (row.picture, row.sound) == (spec.duplicate_of or spec.id, spec.sound_of)
        assert [getattr(row, k) for k in dirty.FAULTS] == [getattr(spec, k) for k in dirty.FAULTS]
        assert (row.kind == "copy") == (spec.duplicate_of is not None)
    assert set(t[t.kind == "copy"].how) == set(dirty.COPIES)
    assert not set(t.id) & {corpus.clip_id(s, i) for s in ("val", "test") for i in range(40)}


def test_copies_differ_as_they_say_and_borrowed_files_are_of_two_clips(ran):
    from vmas import media

    t, folder = ran[3].truth, ran[3].folder
    for row in t[t.kind == "copy"].itertuples():
        first, path = t[t.id == row.picture].iloc[0], folder / row.path
        same = path.read_bytes() == (folder / first.path).read_bytes()
        longer = media.probe(path).duration_s - media.probe(folder / first.path).duration_s
        assert longer == pytest.approx(dirty.shift_s(SMALL) if row.how == "intro" else 0, abs=0.1)
        assert same == (row.how == "same file")
        assert media.probe(path).width == (dirty.SMALLER_PX if row.how.startswith("smaller") else SMALL.corpus.size)
    row = t[t.kind == "borrowed"].iloc[0]
    seen, heard = t[t.id == row.picture].iloc[0], t[(t.sound == row.sound) & (t.kind == "clip")].iloc[0]
    assert seen.id != heard.id
    wav, mix = (media.read_audio(folder / p, 32000)[0] for p in (row.path, heard.path))
    n = min(len(wav), len(mix))
    assert np.corrcoef(wav[:n], mix[:n])[0, 1] > 0.9
    assert bool(row.mismatched)


def test_shifted_copies_begin_elsewhere(ran):
    from vmas import media

    t, folder = ran[3].truth, ran[3].folder
    for how, sign in (("intro", 1), ("trimmed", -1)):
        row = t[t.how == how].iloc[0]
        first = t[t.id == row.picture].iloc[0]
        x, y = (media.read_audio(folder / p, 32000)[0][::8] for p in (first.path, row.path))
        lag = np.argmax(np.correlate(y, x, "full")) - len(x) + 1
        assert 8 * lag / 32000 == pytest.approx(sign * dirty.shift_s(SMALL), abs=0.1)


def test_shifted_copies_are_an_option_of_the_recipe():
    plain = dataclasses.replace(dirty.MARKED, copies=dirty.ALIGNED)
    assert dirty.Recipe({}, 0, 0, 0, 0, 0, 0).copies == dirty.ALIGNED == dirty.COPIES[:4]
    assert dirty.key(SMALL, plain) != dirty.key(SMALL)


def test_another_corpus_has_another_key_and_folder(monkeypatch):
    smoke = config.load("smoke")
    assert dirty.key(smoke) != dirty.key(config.load("smoke", {"corpus": {"jitter_s": 0.02}}))
    before = dirty.key(smoke)
    monkeypatch.setitem(dirty.CLIPS, "smoke", 31)
    assert dirty.key(smoke) != before
    assert dirty.profile_of(smoke).corpus.seed != smoke.corpus.seed


# ---------------------------------------------------------------- counting


def test_precision_and_recall_with_intervals():
    true = np.array([1] * 20 + [0] * 30, bool)
    flagged = np.array([1] * 15 + [0] * 5 + [1] * 5 + [0] * 25, bool)
    p, r = filters.precision(flagged, true), filters.recall(flagged, true)
    assert (p.value, p.n, r.value, r.n) == (0.75, 20, 0.75, 20)
    assert 0.5 < p.lo < 0.75 < p.hi < 0.95
    perfect = filters.precision(true, true)
    assert (perfect.value, perfect.lo, perfect.hi) == (1, *wilson(20, 20))
    assert perfect.lo < 0.9  # twenty of twenty proves no certainty
    assert filters.recall(flagged, ~true | true).value == pytest.approx(0.4)
    nothing = filters.precision(np.zeros(50, bool), true)
    assert nothing.n == 0
    assert np.isnan(nothing.value)
    assert filters.precision(flagged, true, seed=1, n=50) == filters.precision(flagged, true, seed=1, n=50)


def test_sweep_over_thresholds():
    similarity = np.array([0.1, 0.5, 0.8, 0.95])
    got = filters.sweep(similarity, np.array([0, 0, 1, 1], bool), np.array([0.2, 0.7, 0.8, 0.9]))
    np.testing.assert_allclose(got.precision, [2 / 3, 1, 1, 1])
    np.testing.assert_allclose(got.recall, [1, 1, 1, 0.5])  # exclusive: 0.8 is not below 0.8
    np.testing.assert_allclose(got.kept, [0.25, 0.5, 0.5, 0.75])


def test_repeats_are_later_files_of_equal_picture_and_sound():
    files = pd.DataFrame({"picture": list("aabac"), "sound": list("xyxxz")})
    assert filters.repeats(files).tolist() == [False, False, False, True, False]


# ---------------------------------------------------------------- the voice


@pytest.fixture(scope="module")
def stems():
    cfg = dataclasses.replace(config.load("mini").corpus, vocal_share=1.0)
    spec = corpus.sample_spec("test", 2, cfg, 3.0)
    mix, voice = render_audio(spec, 32000), render_audio(spec, 32000, only_voice=True)
    return mix - voice, voice


def test_voice_left_of_known_results(stems):
    music, voice = stems
    assert vocals.voice_left(music + voice, music, voice) == pytest.approx(1)
    assert vocals.voice_left(music, music, voice) == pytest.approx(0, abs=1e-9)
    assert vocals.voice_left(music + 0.5 * voice, music, voice) == pytest.approx(0.25)
    half = voice.copy()
    half[len(half) // 2 :] = 0  # the voice is gone from the second half: so much of its energy is left
    share = float((half @ half) / (voice @ voice))
    assert vocals.voice_left(music + half, music, voice) == pytest.approx(share, abs=0.03)
    assert vocals.residual_vocals(music + half, music, voice) == pytest.approx(share**2, abs=0.01)  # one gain: too low


def test_harm_to_the_music_never_flatters(stems):
    music, voice = stems
    for harmed in (0.7 * music, music + 0.1 * np.random.default_rng(0).normal(size=len(music))):
        assert vocals.voice_left(harmed + 0.5 * voice, music, voice) > 0.2
    with pytest.raises(DataError, match="sounding voice"):
        vocals.voice_left(music, music, 0 * voice)
    with pytest.raises(DataError, match="one length"):
        vocals.voice_left(music[1:], music, voice)


def test_demucs_through_the_same_rows(monkeypatch, tmp_path):
    """With its interface's own test model, whose parameters are random; without weights the row says why."""
    import torch
    from demucs.pretrained import get_model

    torch.manual_seed(0)
    p = dirty.profile_of(SMALL)
    p = dataclasses.replace(p, corpus=dataclasses.replace(p.corpus, vocal_share=1.0))
    tools = Tools(filters.options(SMALL, separator="demucs"))
    tools.separator = vocals.DemucsSeparator(get_model("demucs_unittest"), key="unit")
    row = filters.measure_voice(("train-00003", p), tools)
    assert row == filters.measure_voice(("train-00003", p), tools)
    assert 0 <= row["left"] <= 1
    assert np.isfinite([row["si_sdr_before"], row["si_sdr_after"], row["after_db"]]).all()
    harm = filters.measure_harm(("train-00003", p), tools)
    assert np.isfinite([harm["si_sdr"], harm["removed"]]).all()
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    boot = {"seed": 0, "n": 50}
    (only,) = table1._demucs(SMALL, boot, print, None, 1)
    assert (only.system, only.status, only.value) == (table1.DEMUCS, "unavailable", None)
    assert "VMAS_WEIGHTS" in only.note
    with pytest.raises(WeightsUnavailable, match="--vocals classic"):
        filters.key(SMALL, separator="demucs")
    two = pd.DataFrame([row, row])
    rows = [*table1._voice_rows(table1.DEMUCS, two, SMALL, boot)]
    rows += table1._harm_rows(table1.DEMUCS, pd.DataFrame([harm, harm]), SMALL, boot)
    assert {r.dataset for r in rows} == {table1.VOICES, table1.VOICELESS}
    assert rows[0].value == pytest.approx(row["si_sdr_after"])


def test_harm_where_there_is_no_voice(ran):
    t1, found = ran[0], ran[2]
    voiceless = ran[3].truth[(ran[3].truth.kind == "clip") & ~ran[3].truth.vocal]
    assert found.harm["id"].tolist() == voiceless["id"].tolist()
    got = t1.row(table1.REMOVED, table1.VOICELESS, "energy removed")
    assert got.value == pytest.approx(found.harm["removed"].mean())
    assert t1.row(table1.REMOVED, table1.VOICELESS, "SI-SDR, dB").value < 40  # the music is not left as it was


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_rows_say_what_was_found(ran):
    t1, found = ran[0], ran[2]
    n, _ = reuploads.size(SMALL)
    assert len(found.reuploads) == n * len(reuploads.OFFSETS)
    for kind in ("sound", "picture"):
        got = t1.row(f"{reuploads.OFFSETS[0]:g} s later", table1.REUPLOADS, f"recognised by {kind}")
        assert (got.value, got.n) == (1, n)
        wrong = t1.row("Fingerprints", table1.OTHERS, f"called equal by {kind}")
        here = found.files[found.files["stage"] != "similarity"][kind].to_numpy()
        pairs = (here[:, None] != here[None]).sum() / 2
        assert wrong.value == pytest.approx((found.mistaken["kind"] == kind).sum() / pairs)
        assert wrong.n == len(set(here))
        assert wrong.value < 0.1
    passed = found.files[found.files["stage"] != "similarity"]
    shifted = filters.repeats(passed) & passed["how"].isin(dirty.SHIFTED)
    recall = t1.row(table1.SHIFTED, table1.MARKS, "recall")
    assert (recall.n, recall.value) == (shifted.sum(), 1)


def test_every_stage_has_its_cost(ran):
    from vmas.dataset import estimate, stages

    costs = ran[0].extra["costs"]
    assert set(costs["seconds"]) >= set(stages.VERSIONS)
    for stage in ("duplicates", "tokens"):
        hours = costs["video_hours"] if stage == "duplicates" else costs["made_hours"]
        assert costs["throughput"][stage] == pytest.approx(hours * 3600 / costs["seconds"][stage], rel=0.01)
    steps = estimate.extrapolate(estimate.measured(costs))
    assert steps["core-hours"].iloc[0] > 0


def test_pairs_of_other_content_are_counted():
    words = np.random.default_rng(0).integers(1, 2**32, (3, 80), np.uint32)
    prints = [Prints(words=words[i]) for i in (0, 1, 2, 2)]
    files = pd.DataFrame({"picture": list("abcd"), "sound": list("xyzw")})
    assert reuploads.confused(files, prints) == {"sound": [(2, 3)], "picture": []}
    files["sound"] = list("xyzz")
    assert reuploads.confused(files, prints)["sound"] == []


def test_pairs_that_share_a_file_are_not_taken_for_independent():
    """Of 60 files one is taken for ten others: 10 of 1770 pairs, all by one file's fault."""
    content, equal = np.arange(60), np.array([(0, j) for j in range(1, 11)])
    got = filters.mistaken(content, equal)
    assert (got.value, got.n) == (pytest.approx(10 / 1770), 60)
    assert got.lo == 0  # without that one file there is none
    assert got.hi > 1.5 * wilson(10, 1770)[1]
    assert got == filters.mistaken(content, equal)
    # Copies of every file are in as many pairs more, and say nothing more.
    copies = np.array([(60 * p + i, 60 * q + j) for i, j in equal for p in range(2) for q in range(2)])
    twice = filters.mistaken(np.tile(content, 2), copies)
    assert (twice.value, twice.lo, twice.hi) == pytest.approx((got.value, got.lo, got.hi))
    few = np.array([(i, i + 1) for i in range(0, 60, 6)])  # spread over files: near what independent pairs have
    assert filters.mistaken(content, few).lo > 0
    none = filters.mistaken(content, np.zeros((0, 2)))
    assert (none.value, none.lo, none.hi, none.n) == (0, *wilson(0, 30), 60)
    assert filters.mistaken(np.array(list("aaa")), np.zeros((0, 2))).n == 0


# ---------------------------------------------------------------- calibration


def test_calibration_of_known_scales():
    rng = np.random.default_rng(0)
    first = rng.random(200)
    c = calibration.compare(first, 0.5 * first**2, 0.7)  # another scale, the same order
    assert (c.rank, c.agreement) == (pytest.approx(1), 1)
    assert c.matched == pytest.approx(0.5 * 0.7**2, abs=0.01)
    assert c.unmatched == pytest.approx((first < 0.7).mean())
    noise = calibration.compare(first, rng.random(200), 0.7)
    assert abs(noise.rank) < 0.2
    assert 0.4 < noise.agreement < 0.75
    assert (noise.second < noise.matched).sum() == (first < 0.7).sum()
    for same in (0.1, 0.9):  # all kept, all left out
        c = calibration.compare(np.full(5, same), np.linspace(0, 1, 5), 0.7)
        assert np.isnan(c.rank)
        assert c.agreement == 1
    with pytest.raises(DataError, match="two videos"):
        calibration.compare(first[:1], first[:1])
    rows = table1.calibration_rows(noise, SMALL)
    assert rows[1].value == pytest.approx(noise.matched)
    assert {r.status for r in rows} == {"smoke"}


@pytest.mark.slow  # transformers takes long to import
def test_calibration_runs_clip_beside_the_cheap_features(ran, tmp_path, monkeypatch):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    (row,) = table1._calibration(SMALL, print)
    assert (row.status, row.value) == ("unavailable", None)
    torch.manual_seed(0)
    tiny = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModelWithProjection(tiny).save_pretrained(tmp_path / "clip")
    few = dataclasses.replace(ran[3], videos=ran[3].videos[:6])
    monkeypatch.setattr(dirty, "make", lambda *a: few)
    rows = table1._calibration(SMALL, lambda _: None)
    assert [r.metric for r in rows[1:3]] == ["matched threshold", "same decision"]
    c = calibration.calibrate([v.path for v in few.videos], *(frames.build_embedder(n) for n in ("clip", "cheap")))
    assert rows[2].value == c.agreement
    np.testing.assert_allclose(c.second, ran[2].files["similarity"].to_numpy()[:6], atol=1e-6)  # as the builder has it


# ---------------------------------------------------------------- the run


def test_every_file_is_accounted_for(ran):
    files = ran[2].files
    assert len(files) == len(ran[3].truth)
    kept = files["stage"] == filters.KEPT
    assert files["split"].notna().tolist() == kept.tolist()
    assert (files["similarity"] >= filters.THRESHOLD).tolist() == (files["stage"] == "similarity").tolist()
    assert (files["stage"] == "similarity")[filters.still(files)].all()
    assert files["split"].value_counts()[["val", "test"]].tolist() == [2, 2]
    steps = filters.funnel(files)
    assert steps["files"].is_monotonic_decreasing
    assert steps["files"].iloc[-1] == kept.sum()
    assert steps["static or nearly"].iloc[1] < steps["static or nearly"].iloc[0]


def test_no_held_out_file_has_a_relative_elsewhere_by_the_truth(ran):
    files = ran[2].files
    assert files["stage"].isin(["splits", "duplicates"]).any()  # relatives there were
    assert filters.true_leaks(files).empty
    some = files[files["split"] == "test"].iloc[0]
    leaky = pd.concat([files, files[files["id"] == some.id].assign(id="again", split="train", track="")])
    found = filters.true_leaks(leaky)
    assert set(zip(found["other"], found["by"], strict=True)) >= {("again", "picture"), ("again", "sound")}


def test_rows_say_what_they_are(ran):
    for record in ran[:2]:
        assert {r.status for r in record.rows} <= {"smoke", "quoted", "unavailable"}
    t1 = ran[0]
    assert t1.row("DISCO-10M (paper)", "as published", "videos").paper == "15.3M"
    assert t1.row("DISCO-MV (paper)", "as published", "voices removed").paper == "95%"
    files = ran[2].files
    assert t1.row(table1.BEFORE, table1.CORPORA, "videos").value == len(files)
    assert t1.row(table1.BEFORE, table1.CORPORA, "frame similarity").value == pytest.approx(files.similarity.mean())
    before, after = (t1.row(s, table1.CORPORA, "frame similarity") for s in (table1.BEFORE, table1.AFTER))
    assert after.value < before.value
    assert t1.row(table1.MIX, table1.VOICES, "voice left").value == 1
    assert t1.row(table1.REMOVED, table1.VOICES, "voice left").value < 1
    text = table.markdown(t1)
    assert f" {len(files)} |" in text  # a count, not 26.0
    assert "CC-BY-4.0" in text
    assert table.frame(t1, table1.CORPORA)["licence"].tolist() == [dirty.LICENCE] * 3


def test_genres_beside_the_truth(ran):
    record, files = ran[1], ran[2].files
    kept = files[files["stage"] == filters.KEPT]
    m = np.array(record.extra["confusion"])
    assert m.sum() == len(kept)
    assert m.sum(1).tolist() == record.extra["counts"][fig5.TRUTH]
    accuracy = record.row(fig5.FOUND, fig5.DATASET, "genre accuracy")
    assert accuracy.value == pytest.approx(np.trace(m) / m.sum())
    assert 0 <= accuracy.chance <= 1
    shares = [record.row(fig5.TRUTH, fig5.DATASET, f"share of {g}").value for g in corpus.GENRES]
    assert sum(shares) == pytest.approx(1)
    assert record.row(*fig5.PAPER, "share of jazz").status == "unavailable"


def test_results_are_written_and_drawn(ran, tmp_path):
    for module, record in ((table1, ran[0]), (fig5, ran[1])):
        out = table.save(record, tmp_path / module.TARGET, module.figure)
        assert sorted(p.name for p in out.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
        records.write(record, tmp_path / "r.json")
        assert records.read(tmp_path / "r.json").rows == record.rows


def test_findings_are_kept_between_targets(ran):
    one, _, found, _ = ran  # read from the cache by the run for fig5
    assert one.extra["voices"] == found.voices.round(4).to_dict("records")
    assert one.extra["similarity"]["value"] == found.files["similarity"].tolist()


def test_paper_profile_says_what_to_do():
    for module in (table1, fig5):
        with pytest.raises(DataError, match="--frames clip --vocals demucs"):
            module.compute(config.load("paper"))
        assert module.key(config.load("mini")) != module.key(config.load("mini"), 1)
    assert paths.results().name == "results"
