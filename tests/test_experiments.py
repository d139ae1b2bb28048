"""Targets: what is offered, when a record is reused, what the evaluator computes, and one real run from nothing."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import toy_target

from vmas import config, paths, records
from vmas.errors import DataError, UsageError
from vmas.experiments import evaluate, folders, registry, runner, table3
from vmas.experiments.evaluate import Analysis, Evaluator, Reference
from vmas.experiments.registry import Target
from vmas.records import Record, Row

DESIGN = "table1 table2 table3 table4 table5 table6 table7 fig2 fig3 fig5 fig6 fig7 fig8 cleaning"
DESIGN += " corpora follow placement damage genres ideal probe claims"
RATE = 32000


# ---------------------------------------------------------------- registry


def test_registry_names_every_target():
    assert list(registry.REGISTRY) == DESIGN.split()
    assert {t.name for t in registry.available()} >= {"table3"}
    assert {t.name for t in registry.available()} | {t.name for t in registry.planned()} == set(registry.REGISTRY)
    for t in registry.available():
        module = importlib.import_module(t.module or t.sweep)
        if t.sweep:
            assert module.REFERENCE in [c.name for c in module.CONDITIONS]
            continue
        assert callable(module.key)
        assert callable(module.compute)
        for own in ("figure", "as_markdown", "as_text", "plan"):  # not a namesake that it imports
            assert getattr(module, own, module.key).__module__.startswith("vmas.experiments.")
        assert (paths.NOTEBOOKS / t.notebook).is_file()


def test_planned_and_unknown_targets():
    with pytest.raises(UsageError, match="available now: table1, table3"):
        registry.get("fig8")
    with pytest.raises(UsageError, match="did you mean"):
        registry.get("table33")


# ---------------------------------------------------------------- runner


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setitem(registry.REGISTRY, "toy", Target("toy", "Toy", "a test", "toy.ipynb", "toy_target"))
    monkeypatch.setattr(toy_target, "calls", [])
    monkeypatch.setattr(toy_target, "version", 1)
    return toy_target


def test_a_record_is_computed_once_then_reused(toy):
    for _ in range(2):
        assert runner.obtain("toy", "smoke", 0, source="compute").rows[0].value == 0.5
    assert toy.calls == [0]
    assert records.local("toy", "smoke", 0).is_file()
    runner.obtain("toy", "smoke", 1, source="compute")
    runner.obtain("toy", "smoke", 0, source="compute", force=True)
    assert toy.calls == [0, 1, 0]


def test_a_changed_stage_or_config_computes_again(toy, monkeypatch):
    runner.obtain("toy", "smoke", source="compute")
    monkeypatch.setattr(toy, "version", 2)
    runner.obtain("toy", "smoke", source="compute")
    runner.obtain("toy", config.load("smoke", {"sampling": {"top_k": 3}}), source="compute")
    assert toy.calls == [0, 0, 0]


def test_a_committed_record_serves_readers_but_not_reproduction(toy):
    record = toy.compute(config.load("smoke"))
    records.write(record, records.committed("toy", "smoke", 0))
    assert runner.obtain("toy", "smoke", source="records").key == record.key
    assert toy.calls == [0]
    runner.obtain("toy", "smoke", source="compute")
    assert toy.calls == [0, 0]


def test_a_stale_committed_record_is_not_served(toy, monkeypatch):
    records.write(toy.compute(config.load("smoke")), records.committed("toy", "smoke", 0))
    monkeypatch.setattr(toy, "version", 2)
    assert runner.obtain("toy", "smoke", source="records").key == toy.key(config.load("smoke"))
    assert toy.calls == [0, 0]


def test_unknown_source(toy):
    with pytest.raises(UsageError, match="did you mean records"):
        runner.obtain("toy", "smoke", source="record")


def test_plan_tells_what_is_there(toy):
    smoke = config.load("smoke")
    before = runner.plan(registry.get("toy"), smoke)
    assert "to do  generation and evaluation" in before
    assert "to do  codec weights" in before
    runner.obtain("toy", smoke, source="compute")
    after = runner.plan(registry.get("toy"), smoke)
    assert "there  generation and evaluation" in after
    assert "seconds: the record of this machine still holds" in after
    assert toy.calls == [0]


# ---------------------------------------------------------------- evaluator


def analysis(n: int, seed: int, onsets=None, classes: int = 4) -> Analysis:
    rng = np.random.default_rng(seed)
    onsets = onsets or [np.sort(rng.uniform(0, 5, 8)) for _ in range(n)]
    return Analysis(rng.normal(size=(n, 6)), 3 * rng.normal(size=(n, classes)), onsets)


@pytest.fixture
def scene():
    """A reference of 40 clips whose pictures move exactly on the music's onsets."""
    real = analysis(40, 0)
    codec = dataclasses.replace(real, embeddings=real.embeddings + 0.1)
    genres = real.logits.argmax(1)
    return Reference(real, codec, genres, {9.6: real.onsets, 24.0: real.onsets})


@pytest.fixture(scope="module")
def profile():
    return config.load("smoke", {"eval": {"bootstrap": 100}})


def by_metric(rows):
    return {r.metric: r for r in rows}


METRICS = [
    "FAD (codec)",
    "FAD (real)",
    "KL",
    "MV Align (2025, 9.6 fps)",
    "MV Align (2025, 24 fps)",
    "Tagger accuracy",
    "Onsets per clip",
]


def test_real_music_is_perfect(scene, profile):
    got = by_metric(evaluate.rows("Real music", "test", [scene.real], scene, profile))
    assert list(got) == METRICS
    assert got["FAD (real)"].value == 0
    assert got["FAD (real)"].ci95 is None, "a set against itself has no interval"
    assert got["FAD (codec)"].value == pytest.approx(6 * 0.1**2, abs=1e-9)
    assert got["KL"].value == pytest.approx(0, abs=1e-4)
    assert got["MV Align (2025, 9.6 fps)"].value == 1
    assert got["Tagger accuracy"].value == 1
    assert got["Tagger accuracy"].chance < 0.5
    assert got["KL"].chance > 1
    assert got["Onsets per clip"].value == 8
    assert all(r.n == 40 and r.seeds == 1 and r.status == "smoke" for r in got.values())
    assert [r.direction for r in got.values()] == ["down"] * 3 + ["up"] * 3 + ["none"]


def test_shuffled_music_falls_to_chance(scene, profile):
    order = np.roll(np.arange(40), 1)
    got = by_metric(evaluate.rows("Music of another video", "test", [scene.real.take(order)], scene, profile))
    for fps in ("9.6", "24"):
        r = got[f"MV Align (2025, {fps} fps)"]
        assert r.ci95[0] - 0.02 < r.chance < r.ci95[1] + 0.02
        assert "Lift over chance" in r.note
    assert got["MV Align (2025, 9.6 fps)"].chance > got["MV Align (2025, 24 fps)"].chance, "chance falls with fps"
    assert got["KL"].value > 1
    assert got["KL"].ci95[0] < got["KL"].chance < got["KL"].ci95[1]
    assert got["Tagger accuracy"].ci95[0] <= got["Tagger accuracy"].chance <= got["Tagger accuracy"].ci95[1]
    assert got["FAD (real)"].value == pytest.approx(0, abs=1e-9), "FAD does not see the order"


def test_the_shuffle_is_none_of_the_metrics_own():
    """MV Align's chance must never pair the shuffled music with its true clips again."""
    from vmas.metrics.mv_align import derangements

    ours = derangements(300, 1, table3.SHUFFLE_SEED)[0]
    for row in derangements(300, 10, 0):
        assert (row == ours).mean() < 0.03


def test_draws_are_averaged(scene, profile):
    one, two = analysis(40, 1), analysis(40, 2)
    a, b, both = (by_metric(evaluate.rows("x", "test", d, scene, profile)) for d in ([one], [two], [one, two]))
    for metric in METRICS:
        assert both[metric].value == pytest.approx((a[metric].value + b[metric].value) / 2), metric
        assert both[metric].seeds == 2
        assert both[metric].ci95[0] <= both[metric].value <= both[metric].ci95[1], metric


def test_no_codec_and_no_genres(scene, profile):
    ref = dataclasses.replace(scene, codec=None, genres=None)
    got = by_metric(evaluate.rows("x", "test", [analysis(40, 1)], ref, profile))
    assert list(got) == [m for m in METRICS if m not in ("FAD (codec)", "Tagger accuracy")]


def test_clips_without_any_peak_are_counted(scene, profile):
    empty = [np.zeros(0)] * 3
    got = dataclasses.replace(scene.real, onsets=[*empty, *scene.real.onsets[3:]])
    ref = dataclasses.replace(scene, video={9.6: [*empty, *scene.real.onsets[3:]]})
    r = by_metric(evaluate.rows("x", "test", [got], ref, profile))["MV Align (2025, 9.6 fps)"]
    assert r.value == 1
    assert "3 clips without any peak left out" in r.note


def test_fad_floor_falls_with_n():
    small, large = evaluate.fad_floor(analysis(40, 0)), evaluate.fad_floor(analysis(800, 0))
    assert small > 4 * large > 0


@pytest.fixture(scope="module")
def tagger():
    import torch

    from vmas.embedders.tagger import MiniTagger, TaggerConfig

    torch.manual_seed(0)
    cfg = TaggerConfig(RATE, 32, 1024, 640, 4, tuple("abcdefghij"))
    return MiniTagger(cfg).eval().requires_grad_(False)


def clicks(times, seconds: float = 2.0) -> np.ndarray:
    wav = np.zeros(int(seconds * RATE), np.float32)
    for t in times:
        i = int(t * RATE)
        wav[i : i + 400] += 0.8 * np.hanning(400).astype(np.float32) * (-1.0) ** np.arange(400)
    return wav


def test_analyse_takes_int16_and_any_length(tagger):
    waves = [clicks([0.5, 1.2]), clicks([0.3, 0.9, 1.5])]
    count = []
    with Evaluator(tagger, RATE, workers=1) as judge:
        stacked = judge.analyse(np.stack(waves), lambda: count.append(1))
        coarse = judge.analyse(np.round(np.stack(waves) * 32767).astype(np.int16))
        ragged = judge.analyse([waves[0], np.concatenate([waves[1], np.zeros(500, np.float32)])])
    assert len(count) == 2
    assert stacked.embeddings.shape == (2, 128)
    assert stacked.logits.shape == (2, 10)
    assert len(stacked.onsets[1]) >= 3
    np.testing.assert_allclose(stacked.onsets[0][:2], [0.5, 1.2], atol=0.08)
    np.testing.assert_allclose(stacked.embeddings, coarse.embeddings, atol=2e-2)
    np.testing.assert_allclose(stacked.embeddings[0], ragged.embeddings[0], atol=1e-5)
    with Evaluator(tagger, RATE, workers=1) as judge, pytest.raises(DataError, match="NaN"):
        judge.analyse(np.full((2, RATE), np.nan, np.float32))


@pytest.mark.slow
def test_workers_change_nothing(tagger):
    waves = np.stack([clicks([0.2 + 0.1 * i, 1.0 + 0.05 * i]) for i in range(9)])
    with Evaluator(tagger, RATE, workers=1) as one, Evaluator(tagger, RATE, workers=2) as two:
        a, b = one.analyse(waves), two.analyse(waves)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    for x, y in zip(a.onsets, b.onsets, strict=True):
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- folders of files


@pytest.fixture
def named(tmp_path):
    for folder, names in (("v", ("a.mp4", "b b.mp4", "ü.mov")), ("m", ("a.wav", "b b.vmas.mp4", "ü.flac"))):
        (tmp_path / folder).mkdir()
        for n in names:
            (tmp_path / folder / n).write_bytes(b"")
    return tmp_path


def test_pairs_by_name(named):
    found = folders.pairs(named / "v", named / "m")
    assert [tuple(p.name for p in three) for three in found] == [
        ("a.mp4", "a.wav", "a.mp4"),
        ("b b.mp4", "b b.vmas.mp4", "b b.mp4"),
        ("ü.mov", "ü.flac", "ü.mov"),
    ]


def test_pairs_says_what_is_missing(named):
    (named / "m" / "a.wav").unlink()
    with pytest.raises(DataError, match="no music named a"):
        folders.pairs(named / "v", named / "m")
    with pytest.raises(DataError, match="no such folder"):
        folders.pairs(named / "x", named / "m")
    (named / "m" / "a.wav").write_bytes(b"")
    (named / "m" / "a.mp3").write_bytes(b"")
    with pytest.raises(DataError, match="keep one"):
        folders.pairs(named / "v", named / "m")
    (named / "r").mkdir()
    with pytest.raises(DataError, match="no reference named a"):
        folders.pairs(named / "v", named / "v", named / "r")


@pytest.mark.slow
def test_evaluate_folders_of_real_files(tmp_path, monkeypatch, tagger):
    from vmas import corpus
    from vmas.embedders.tagger import save_tagger

    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    smoke = config.load("smoke", {"eval": {"bootstrap": 50}})
    corpus.make(tmp_path / "clips", smoke, ids=["test-00000", "test-00001", "test-00002"], progress=False)
    save_tagger(paths.checkpoints("smoke") / "tagger", tagger)
    videos = tmp_path / "clips" / "test"
    record = folders.evaluate_folders(smoke, videos, videos, progress=False)
    assert len(folders._music(videos / "test-00000.mp4", RATE)) == pytest.approx(5 * RATE, abs=2048)
    got = by_metric(record.rows)
    assert got["KL"].value == pytest.approx(0, abs=1e-4)
    assert got["FAD (real)"].value == pytest.approx(0, abs=1e-6)
    assert got["MV Align (2025, 9.6 fps)"].value > got["MV Align (2025, 9.6 fps)"].chance
    assert all(r.n == 3 and r.status == "smoke" for r in record.rows)
    assert str(tmp_path) not in json.dumps(record.result())


# ---------------------------------------------------------------- table 3


@pytest.mark.parametrize(
    ("kl", "align", "verdicts"),
    [
        (0.5, (0.35, 0.33, 0.37), ["better than chance", "better than chance"]),
        (2.0, (0.22, 0.19, 0.25), ["cannot tell", "cannot tell"]),
        (3.0, (0.15, 0.14, 0.16), ["worse than chance", "worse than chance"]),
    ],
)
def test_placement_between_chance_and_ceiling(kl, align, verdicts):
    rows = []
    same = {"status": "scaled_down", "n": 9, "seeds": 1}
    for dataset in table3.DATASETS.values():
        for system, tags, aligned in (
            (table3.OURS, (kl, kl - 0.1, kl + 0.1), align),
            (table3.CODEC, (0.05, 0.0, 0.1), (0.6, 0.58, 0.62)),
        ):
            rows.append(Row(system, dataset, "FAD (real)", "down", 1.0, **same))
            rows.append(Row(system, dataset, "KL", "down", tags[0], tags[1:], chance=2.05, **same))
            rows.append(
                Row(system, dataset, "MV Align (2025, 9.6 fps)", "up", aligned[0], aligned[1:], chance=0.2, **same)
            )
            rows.append(Row(system, dataset, "Onsets per clip", "none", 9.0, **same))
    found = table3.placement(Record("table3", "mini", "t", "k", tuple(rows)))
    assert [f["verdict"] for f in found] == verdicts * 2
    assert found[0]["share"] == pytest.approx((2.05 - kl) / 2.0)
    assert found[1]["share"] == pytest.approx((align[0] - 0.2) / 0.4)
