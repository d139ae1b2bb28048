"""Beat weights on other corpora: the clips differ by the beats they show alone, and rows of other sweeps are shared."""

import json

import numpy as np
import pytest
from dataset_files import tiny_world

from vmas import checkpoint, config, corpus, paths, records
from vmas.corpus import sample_spec
from vmas.errors import UsageError
from vmas.experiments import corpora, corpora_data, registry, runner, sweep, table5
from vmas.records import Record, Row
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
        for field in ("genre", "tempo_bpm", "beats_s", "onsets_s", "scene", "programs"):
            assert getattr(a, field) == getattr(b, field), field
        shown += b.shown
        without += len(b.spurious_s)
        if knobs.beat_share > mini.corpus.beat_share:
            assert all(y or not x for x, y in zip(a.shown, b.shown, strict=True)), "more beats, none fewer"
    rate = without / (60 * mini.clip.seconds)
    assert np.mean(shown) == pytest.approx(knobs.beat_share, abs=0.06)
    assert rate == pytest.approx(knobs.spurious_per_s, abs=0.25)
    assert (other.corpus.val, other.corpus.test, other.corpus.train) == (0, 0, mini.corpus.train)
    assert other.name not in config.PROFILES


def test_the_composition_is_that_of_the_truth(world):
    p, _ = world
    clean, loose = (corpora_data.composition(p, n, 0, 1, False) for n in ("clean", "loose"))
    assert clean["beats shown"] == 1
    assert clean["events without beat per s"] == 0
    assert clean["events far from any beat"] == 0
    assert clean["clips"] == loose["clips"] == p.corpus.train
    assert loose["beats shown"] < 0.8
    assert loose["events without beat per s"] > 1
    assert 0 < clean["tokens with weight 1"] < 1


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
    for split in ("val",):
        x, y = (d.vmas(split).first(4) for d in (own, found))
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
    assert [c.name for c in corpora.CONDITIONS if c.run] == ["own-contrastive", "own-alpha-.25"]
    for name in ("contrastive", "alpha-.25"):
        theirs = next(c for c in table5.CONDITIONS if c.name == name)
        p = theirs.of(config.load("mini"))
        here, there = sweep.Run("corpora", rows[f"own-{name}"], p, 2), sweep.Run("table5", theirs, p, 2)
        assert here.name == there.name
        assert here.key() == there.key()
        assert here.folder == there.folder
    assert {c.name: c.against for c in corpora.CONDITIONS if c.against} == {
        f"{n}-alpha-.25": f"{n}-contrastive" for n in corpora.ORDER
    }


def _run(p, condition, seed: int, per_clip: np.ndarray, fad: float) -> Record:
    run = sweep.Run("corpora", condition, condition.of(p), seed)
    metric, same = f"MV Align (2025, {p.clip.fps:g} fps)", {"n": len(per_clip), "seeds": 1, "status": p.status}
    rows = (
        Row(condition.label.rsplit(",", 1)[0], "d", "FAD (codec)", "down", fad, (fad - 1, fad + 1), **same),
        Row(condition.label.rsplit(",", 1)[0], "d", metric, "up", float(per_clip.mean()), chance=0.2, **same),
    )
    extra = {
        "seed": seed,
        "per_clip": {"d": {metric: per_clip.tolist()}},
        "curve": [{"step": 1, "loss": 1.0, "ce": 1.0}],
    }
    if condition.data:
        extra["set"] = {"beats shown": 0.5, "events without beat per s": 1.0}
    prov = {"wall_s": 1.0, "data_sha256": "d", "checkpoint_sha256": "c"}
    return Record(run.name, p.name, condition.label, run.key(), rows, prov, extra)


def test_weights_are_compared_within_their_corpus(world, tmp_path, monkeypatch):
    p, file = world
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    from dataset_files import checkpoints

    checkpoints(paths.checkpoints("tiny"))
    base = np.random.default_rng(0).uniform(0.2, 0.4, 40)
    gain = {"clean": 0.1, "own": 0.0, "loose": -0.1}
    for c in corpora.CONDITIONS:
        where = c.name.split("-")[0]
        for seed in (1, 2):
            found = _run(p, c, seed, base + 0.01 * seed + (gain[where] if c.against else 0), 9.0)
            name = sweep.Run("corpora", c, p, seed).name
            records.write(found, records.local(name, "tiny", seed))
    record = runner.sweep_record(registry.get("corpora"), str(file))
    metric = record.rows[1].metric
    told = {
        name: next(g for g in found if g["metric"] == metric) for name, found in record.extra["differences"].items()
    }
    for where, want in gain.items():
        assert told[f"{where}-alpha-.25"]["difference"] == pytest.approx(want, abs=1e-6)
    lines = [r for r in record.extra["remarks"] if " against " in r]
    assert {r.split(",")[0] for r in lines} == {f"{n}-alpha-.25 against {n}-contrastive" for n in corpora.ORDER}
    assert set(record.extra["sets"]) == set(corpora_data.SETS)
    fig = corpora.figure(record)
    left, right = fig.axes
    assert left.get_legend_handles_labels()[1] == ["+ contrastive", "+ beat weighting over Σw, α = .25"]
    assert [t.get_text().split(" corpus")[0] for t in right.get_xticklabels()] == list(corpora.ORDER)
    drawn = [line.get_ydata()[0] for line in right.lines if line.get_marker() == "D"]
    assert drawn == pytest.approx(list(gain.values()), abs=1e-6)


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
    assert record.extra["sets"]["clean"]["clips"] == p.corpus.train
    assert record.extra["seeds"] == {"clean-contrastive": [0], "own-contrastive": [0]}
    done = sweep.recorded("table5", table5.CONDITIONS, str(file))
    assert [n for n, found in done.items() if found] == ["contrastive"], "Table 5 has that row now, too"
    json.dumps(record.extra["sets"])
