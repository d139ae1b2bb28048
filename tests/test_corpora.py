"""Beat weights on other corpora: the clips differ by the beats they show alone, and rows of other sweeps are shared."""

import json

import numpy as np
import pytest
from dataset_files import checkpoints, tiny_world

from vmas import checkpoint, config, corpus, paths, records
from vmas.corpus import sample_spec
from vmas.errors import UsageError
from vmas.experiments import cleaning_data, corpora, corpora_data, more_data, registry, runner, sweep, table5
from vmas.records import Record, Row
from vmas.report import sweeps
from vmas.training.data import ROWS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with tiny_world(tmp_path_factory.mktemp("corpora")) as found:
        yield found


@pytest.mark.parametrize("name", corpora_data.SETS)
def test_only_what_the_picture_shows_differs(name):
    mini = config.load("mini")
    other, knobs = corpora_data.profile_of(mini, name), corpora_data.get(name)
    shown, without = [], 0
    for i in range(60):
        a, b = (sample_spec("train", i, p.corpus, p.clip.seconds) for p in (mini, other))
        for field in (
            "genre",
            "tempo_bpm",
            "beats_s",
            "onsets_s",
            "notes",
            "scene",
            "programs",
            "palette",
            "cuts",
            "amount",
        ):
            assert getattr(a, field) == getattr(b, field), field
        shown += b.shown
        without += len(b.spurious_s)
        more, fewer = (b, a) if knobs.beat_share > mini.corpus.beat_share else (a, b)
        assert all(x or not y for x, y in zip(more.shown, fewer.shown, strict=True)), "nested"
        more, fewer = (b, a) if knobs.spurious_per_s > mini.corpus.spurious_per_s else (a, b)
        assert set(fewer.spurious_s) <= set(more.spurious_s), "nested"
        assert len(b.video_events_s) == sum(b.shown) + len(b.spurious_s)
    rate = without / (60 * mini.clip.seconds)
    assert np.mean(shown) == pytest.approx(knobs.beat_share, abs=0.06)
    assert rate == pytest.approx(knobs.spurious_per_s, abs=0.25)
    assert (other.corpus.val, other.corpus.test, other.corpus.train) == (0, 0, mini.corpus.train)
    assert other.name not in config.PROFILES


@pytest.mark.slow
def test_the_composition_is_that_of_the_truth(world):
    p, _ = world
    corpus.make(paths.corpus(p.name), p, ("train", "val"), 1, progress=False)
    clean, loose = (corpora_data.composition(p, n, 0, 1, False) for n in ("clean", "loose"))
    assert clean["beats shown"] == 1
    assert clean["movements a second at random"] == 0
    assert clean["movements over a frame from any beat"] == 0
    assert clean["clips"] == loose["clips"] == p.corpus.train
    assert loose["beats shown"] < 0.8
    assert loose["movements a second at random"] > 1
    assert loose["tokens with weight 1"] < clean["tokens with weight 1"] < 1
    assert clean["own"] == loose["own"]
    assert loose["beats shown"] < clean["own"]["beats shown"] < 1


@pytest.mark.slow
def test_stage_2_sees_the_corpus_and_all_else_is_the_profiles_own(world):
    from vmas.training.sources import CorpusData
    from vmas.training.stages import the_codec

    p, _ = world
    corpus.make(paths.corpus(p.name), p, ("train", "val"), 1, progress=False)
    codec = the_codec(p)
    own, found = CorpusData(p, codec, False), corpora_data.load(p, "clean", 0, codec, 1, False)
    assert found.clips("train") == own.clips("train")
    a, b = (x.vmas("train").first(8) for x in (own, found))
    assert not (a["frames"] == b["frames"]).all(), "another picture"
    assert (a["codes"] == b["codes"]).float().mean() > 0.95, "of the same music"
    x, y = (d.vmas("val").first(4) for d in (own, found))
    assert all((x[k] == y[k]).all() for k in x if k != ROWS)
    assert (found.motion("train").first(4)["frames"] == own.motion("train").first(4)["frames"]).all()
    assert found.keys == ("", corpora_data.key(p, "clean", 0))
    assert found.clips("val") == own.clips("val")


def test_keys_and_names():
    mini = config.load("mini")
    keys = {corpora_data.key(mini, n, 0) for n in corpora_data.SETS}
    assert len(keys) == len(corpora_data.SETS)
    assert corpora_data.key(mini, "clean", 0) == corpora_data.key(mini, "clean", 1), "no seed changes the clips"
    runs = {c.name: sweep.Run("corpora", c, c.of(config.load("mini")), 0) for c in corpora.CONDITIONS}
    assert len({r.key() for r in runs.values()}) == len(runs)
    with pytest.raises(UsageError, match="clean"):
        corpora_data.get("claen")


def test_rows_of_the_own_corpus_are_table_5s():
    """One training, shown in two tables."""
    rows = {c.name: c for c in corpora.CONDITIONS}
    assert [c.name for c in corpora.CONDITIONS if c.run] == ["own-contrastive", "own-normalised"]
    for name in ("contrastive", "normalised"):
        theirs = next(c for c in table5.CONDITIONS if c.name == name)
        p = theirs.of(config.load("mini"))
        here, there = sweep.Run("corpora", rows[f"own-{name}"], p, 2), sweep.Run("table5", theirs, p, 2)
        assert here.name == there.name
        assert here.key() == there.key()
        assert here.folder == there.folder
    assert {c.name: c.against for c in corpora.CONDITIONS if c.against} == {
        f"{n}-normalised": f"{n}-contrastive" for n in corpora.ORDER
    }


def _run(p, condition, seed: int, per_clip: np.ndarray) -> Record:
    run = sweep.Run("corpora", condition, condition.of(p), seed)
    metrics = [f"MV Align (2025, {fps:g} fps)" for fps in (p.clip.fps, p.clip.dense_fps)]
    same = {"n": len(per_clip), "seeds": 1, "status": p.status}
    rows = (
        Row("x", "d", "FAD (codec)", "down", 9.0 + seed, (8.0, 12.0), **same),
        *(Row("x", "d", m, "up", float(per_clip.mean()), chance=0.2, **same) for m in metrics),
    )
    scores = {metrics[0]: per_clip.tolist(), metrics[1]: (per_clip / 2).tolist()}
    curve = [{"step": 1, "loss": 1.0, "ce": 1.0}]
    extra = {"seed": seed, "per_clip": {"d": scores}, "curve": curve, "stage1": {"motion": str(seed)}}
    about = {"beats shown": 0.5, "movements a second at random": 1.0}
    if condition.data:
        extra["set"] = {**about, "own": about}
    prov = {"wall_s": 1.0, "data_sha256": "d", "checkpoint_sha256": "c"}
    return Record(run.name, p.name, condition.label, run.key(), rows, prov, extra)


def _lift(record, condition: str, metric: str) -> float:
    label = next(c.label for c in corpora.CONDITIONS if c.name == condition)
    (row,) = [r for r in record.rows if (r.system, r.metric) == (label, metric)]
    return row.value - row.chance


def test_weights_are_compared_within_their_corpus_and_then_between_corpora(world, tmp_path, monkeypatch):
    p, file = world
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    checkpoints(paths.checkpoints("tiny"))
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.5, 40)
    gain = {"clean": 0.1, "own": 0.0, "loose": -0.1}
    for c in corpora.CONDITIONS:
        for seed in (1, 2, 3):
            scores = base + 0.01 * seed + (gain[c.name.split("-")[0]] if c.against else 0) + rng.normal(0, 1e-3, 40)
            records.write(_run(p, c, seed, scores), records.local(sweep.Run("corpora", c, p, seed).name, "tiny", seed))
    record = runner.sweep_record(registry.get("corpora"), str(file))
    _, near, dense = (r.metric for r in record.rows[:3])
    found = sweeps.gains(record).set_index(["condition", "metric"])
    for where, (want, said) in zip(gain, ((0.1, "better"), (0.0, "no difference shown"), (-0.1, "worse")), strict=True):
        line = found.loc[(f"{where}-normalised", near)]
        assert line.against == f"{where}-contrastive"
        assert line.difference == pytest.approx(want, abs=2e-3)
        assert line.verdict == said
    apart = {g["between"]: g for g in record.extra["apart"] if g["metric"] == near}
    want = {"clean less own": 0.1, "clean less loose": 0.2, "own less loose": 0.1}
    assert {k: g["difference"] for k, g in apart.items()} == {k: pytest.approx(v, abs=2e-3) for k, v in want.items()}
    assert {g["seeds"] for g in apart.values()} == {3}
    assert apart["clean less loose"]["lo"] > 0.19
    lines = [r for r in record.extra["remarks"] if " against " in r]
    assert {r.split(",")[0] for r in lines} == {f"{n}-normalised against {n}-contrastive" for n in corpora.ORDER}
    assert list(record.extra["sets"]) == list(corpora.ORDER)
    (told,) = [r for r in record.extra["remarks"] if r.startswith("What weights change, clean less loose")]
    assert f"{near} +0.2" in told
    assert "(more for the better on clean)" in told
    assert any(r.startswith("clean corpus: beats shown 0.5") for r in record.extra["remarks"])
    lift = {n: [_lift(record, f"{n}-{row}", near) for row in ("contrastive", "normalised")] for n in gain}
    taken = {g["of"]: g for g in record.extra["taken"] if g["metric"] == near}
    assert list(taken) == [*gain, "clean less own", "clean less loose", "own less loose"]
    for n, (a, b) in lift.items():
        assert taken[n]["share"] == pytest.approx(1 - b / a, abs=0.02), "training by training, and of the means"
        assert taken[n]["lo"] <= taken[n]["share"] <= taken[n]["hi"]
    assert taken["clean less loose"]["share"] == pytest.approx(taken["clean"]["share"] - taken["loose"]["share"])
    assert taken["clean"]["share"] < taken["own"]["share"] < taken["loose"]["share"]
    assert any("of the lift over chance that a training has without weights" in r for r in record.extra["remarks"])
    left, right = corpora.figure(record).axes
    assert left.get_legend_handles_labels()[1] == ["+ contrastive", "+ beat weighting over Σw"]
    assert near in left.get_ylabel(), "the profile's own frame rate, not the dense one"
    assert dense not in left.get_ylabel()
    assert [t.get_text().split(" corpus")[0] for t in right.get_xticklabels()] == list(corpora.ORDER)
    drawn = [line.get_ydata()[0] for line in right.lines if line.get_marker() == "D"]
    assert drawn == pytest.approx(list(gain.values()), abs=2e-3)


def test_other_training_clips_have_one_name_each():
    sources = (corpora_data, cleaning_data, more_data)
    assert sum(len(m.SETS) for m in sources) == len(set().union(*(m.SETS for m in sources)))
    with pytest.raises(UsageError, match="did you mean clean"):
        sweep._sets("claen")


@pytest.mark.slow
def test_two_rows_end_to_end(world):
    """Stage 1 is made once, stage 2 on other clips has a folder of its own, the record says what they were."""
    from vmas import cli

    p, file = world
    line = ["reproduce", "corpora", "--profile", str(file), "--device", "cpu", "-q", "--debug"]
    two = ["--only", "clean-contrastive", "--only", "own-contrastive"]
    assert cli.main([*line, *two, "--seeds", "1"]) == 0
    folders = sorted(d.name.split("-")[0] for d in (paths.cache() / "train" / "tiny").iterdir())
    assert folders == ["motion", "music", "vmas", "vmas"]
    models = [
        paths.cache() / "sweep" / "tiny" / f"{n}-seed0" for n in ("corpora-clean-contrastive", "table5-contrastive")
    ]
    assert len({checkpoint.read_manifest(m)["sha256"] for m in models}) == 2, "their clips differ"
    assert cli.main([*line, "--dry-run"]) == 0
    record = runner.sweep_record(registry.get("corpora"), str(file))
    assert record.extra["sets"]["clean"]["clips"] == record.extra["sets"]["own"]["clips"] == p.corpus.train
    assert record.extra["apart"] == [], "two of the four rows are there"
    assert record.extra["seeds"] == {"clean-contrastive": [0], "own-contrastive": [0]}
    done = sweep.recorded("table5", table5.CONDITIONS, str(file))
    assert [n for n, found in done.items() if found] == ["contrastive"], "Table 5 has that row now, too"
    json.dumps(record.extra["sets"])
