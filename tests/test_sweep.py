"""Sweeps: which runs there are, which shares they see, and what a table makes of their records."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from sweep_runs import METRIC, made

from vmas import config, paths, records
from vmas.errors import DataError, UsageError
from vmas.experiments import assemble, data_size, registry, runner, sweep, table5
from vmas.experiments.sweep import Condition
from vmas.records import Record
from vmas.report import paper, table
from vmas.training.stages import shared_rows


@pytest.fixture(scope="module")
def smoke():
    return config.load("smoke", {"eval": {"bootstrap": 400}})


def test_conditions_of_table_5_are_the_papers_rows_and_one_change_each():
    printed = set(paper.load("table5").row)
    assert {c.paper for c in table5.CONDITIONS if c.paper} == {r.replace(" (Ours)", "") for r in printed}
    assert len({c.name for c in table5.CONDITIONS}) == len(table5.CONDITIONS)
    mini = {c.name: c.of(config.load("mini")) for c in table5.CONDITIONS}
    assert not mini["baseline"].align.contrastive
    assert not mini["baseline"].align.beat_weighting
    assert mini["beats"].align.normalise == "count"
    assert mini["beats"].align.temperature == 1.0
    assert mini["beats"].align.alpha == 0.05  # appendix B's, whatever the profile takes
    assert mini["all-maxima"].align == replace(mini["beats"].align, require_positive=False)
    assert mini["shipped"] == config.load("mini")
    assert mini["beats-long"] == replace(mini["beats"], train=replace(mini["beats"].train, steps=4500))
    assert mini["beats-long"].train.steps == 3 * mini["beats"].train.steps
    weighted = [c.name for c in table5.CONDITIONS if "over Σw" in c.label]
    assert {"dilated", "onset", "delta-2", "alpha-.5"} < set(weighted)
    assert {mini[n].align.normalise for n in weighted} == {"weight"}
    for name in weighted:
        one, base = config.plain(mini[name])["align"], config.plain(mini["normalised"])["align"]
        changes = sum(one.get(k) != base.get(k) for k in {*one, *base})
        assert changes == {"normalised": 0, "lead": 2, "lead-.25": 3}.get(name, 1), "one change, of leads the place too"
    assert all(not mini[n].train.freeze for n in ("trained", "no-motion")), "an untrained encoder must not stay so"
    clips = {c.name: c.data for c in table5.CONDITIONS}
    assert len({config.sha256(p, clips[name]) for name, p in mini.items()}) == len(mini)


def test_runs_go_seed_by_seed_and_variants_stop_at_three():
    got = runner.sweep_runs(registry.get("table5"), "smoke", [0, 1, 2, 3, 4])
    by_seed = [r.seed for r in got]
    assert by_seed == sorted(by_seed)
    count = {c.name: sum(r.condition.name == c.name for r in got) for c in table5.CONDITIONS}
    assert {count[n] for n in table5.PAPER} == {5}
    assert {v for n, v in count.items() if n not in table5.PAPER} == {3}
    with pytest.raises(UsageError, match="did you mean baseline"):
        runner.sweep_runs(registry.get("table5"), "smoke", [0], ["base"])


def test_a_row_may_be_another_sweeps_run():
    """The training of figures 6 and 7 with all clips is that of Table 5's `shipped`: one record, two tables."""
    one = next(c for c in table5.CONDITIONS if c.name == "shipped")
    other = next(c for c in data_size.CONDITIONS if c.name == data_size.REFERENCE)
    mini = config.load("mini")
    a, b = sweep.Run("table5", one, one.of(mini), 0), sweep.Run("data-size", other, other.of(mini), 0)
    assert (a.name, a.key(), a.folder) == (b.name, b.key(), b.folder)
    found = a.record(), b.record()
    assert all(found), "the committed model's own"
    assert [{row.system for row in r.rows} for r in found] == [{one.label}, {other.label}]
    assert [row.value for row in found[0].rows] == [row.value for row in found[1].rows]
    listed = sweep.listing([a])
    assert "data-size-share-100 (shipped), seed 0" in listed


@pytest.mark.parametrize("target", [t for t in registry.available() if t.sweep], ids=lambda t: t.name)
def test_a_shared_run_is_the_same_training_in_every_sweep(target):
    """Overrides that drift apart would make two sweeps overwrite one record."""
    mini, known = config.load("mini"), {}
    for t in (t for t in registry.available() if t.sweep):
        module = importlib.import_module(t.sweep)
        known |= {
            sweep.Run(module.TARGET, c, c.of(mini), 0).name: sweep.Run(module.TARGET, c, c.of(mini), 0).key()
            for c in module.CONDITIONS
            if not c.run
        }
    module = importlib.import_module(target.sweep)
    for run in (sweep.Run(module.TARGET, c, c.of(mini), 0) for c in module.CONDITIONS):
        assert known[run.name] == run.key()
        names = {c.name for c in module.CONDITIONS}
        assert not run.condition.against or run.condition.against in names


def test_runs_that_began_apart_are_no_pair(smoke):
    """A seed whose stage 1 was lost and one that was trained again since are of two stages 1."""

    def began(found: Record, **stage1) -> Record:
        return replace(found, extra={**found.extra, "stage1": stage1})

    a, b = made(0, [0.2, 0.3]), made(0, [0.3, 0.5])
    for x, y, pairs in (
        ({}, {}, 1),
        ({"music": "m"}, {"music": "m"}, 1),
        ({}, {"music": "m"}, 0),
        ({"music": "m"}, {"music": "n"}, 0),
        ({"music": "m", "motion": "x"}, {"music": "m", "motion": "y"}, 0),
    ):
        got = assemble.differences([began(b, **x)], [began(a, **y)], smoke)
        assert len({g["seeds"] for g in got}) == pairs
    other = began(b, music="m", motion="x")
    other.extra["condition"] = {"overrides": {"encoder": {"frames": 16}}}
    found = assemble.differences([other], [began(a, music="m", motion="y")], smoke)
    assert found, "another encoder has a stage 1 of its own"
    more = [began(b, music="m"), made(1, [0.3, 0.5])], [a, made(1, [0.2, 0.3])]
    assert {g["seeds"] for g in assemble.differences(*more, smoke)} == {1}, "the seeds that did begin alike are"
    assert assemble.contrast([(1, [b]), (-1, [a]), (-1, [began(b, music="m")]), (1, [a])], smoke) == []


def test_a_difference_of_differences_is_paired(smoke):
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.4, (3, 60))
    rows = [[made(s, base[s] + by, fad=5.0 + 10 * by + s) for s in range(3)] for by in (0.3, 0.1, 0.15, 0.0)]
    fad, align = assemble.contrast(list(zip((1, -1, -1, 1), rows, strict=True)), smoke)
    assert fad["difference"] == pytest.approx(10 * (0.3 - 0.1 - 0.15))
    assert align["difference"] == pytest.approx(0.3 - 0.1 - 0.15)
    assert (align["lo"], align["hi"]) == (pytest.approx(0.05), pytest.approx(0.05))
    assert (align["improvement"], fad["improvement"]) == (1.0, 0.0)


def test_shares_of_the_data_are_nested():
    assert [c.share for c in data_size.CONDITIONS] == [0.1, 0.25, 0.5, 1.0]
    rows = [shared_rows(2400, s, 3) for s in (0.1, 0.25, 0.5)]
    assert [len(r) for r in rows] == [240, 600, 1200]
    assert set(rows[0]) < set(rows[1]) < set(rows[2])
    assert shared_rows(2400, 1.0, 3) is None
    assert not np.array_equal(rows[0], shared_rows(2400, 0.1, 4))
    with pytest.raises(UsageError, match="share"):
        shared_rows(10, 0.0, 0)


def test_one_row_from_several_seeds(smoke):
    found = [made(0, [0.2, 0.4, np.nan], fad=1.0), made(1, [0.4, 0.6, 0.5], fad=3.0)]
    by = {r.metric: r for r in assemble.rows(Condition("x", "X", about="why"), found, smoke)}
    assert by[METRIC].value == pytest.approx((0.3 + 0.5) / 2), "the mean of the seeds' means"
    assert by[METRIC].seeds == 2
    assert by[METRIC].ci95[0] < by[METRIC].value < by[METRIC].ci95[1]
    assert by["FAD (codec)"].value == 2.0
    lo, hi = by["FAD (codec)"].ci95
    assert lo == 0, "no distance is negative"
    assert by[METRIC].ci95[0] >= 0
    assert by[METRIC].ci95[1] <= 1
    assert hi - 2 == pytest.approx(np.hypot(12.7062, 0.1), rel=1e-4), "Student's t of two seeds, 1 apart from the mean"
    assert by["FAD (codec)"].note == "why"
    (alone,) = [r for r in assemble.rows(Condition("x", "X"), found[:1], smoke) if r.metric == "FAD (codec)"]
    assert alone.ci95 == pytest.approx((0.9, 1.1))


def test_paired_differences_use_shared_seeds_only(smoke):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, (3, 200))
    a = [made(s, base[s] + 0.05, name="a") for s in (0, 1)]
    b = [made(s, base[s], name="b") for s in (0, 1, 2)]
    fad, got = assemble.differences(a, b, smoke)
    assert got["seeds"] == 2
    assert got["difference"] == pytest.approx(0.05)
    assert got["lo"] == pytest.approx(0.05)
    assert [got[k] for k in ("improvement", "improvement_lo", "improvement_hi")] == [1.0, 1.0, 1.0]
    assert fad["metric"] == "FAD (codec)"
    _, equal = assemble.differences(b, b, smoke)
    assert equal["difference"] == 0
    assert equal["improvement"] == 0.5
    assert assemble.differences(a, [made(7, base[0])], smoke) == []


def test_a_set_score_is_compared_seed_by_seed(smoke):
    a = [made(s, [0.3, 0.4], fad=f, name="a") for s, f in ((0, 2.0), (1, 4.0), (2, 9.0))]
    b = [made(s, [0.3, 0.4], fad=f, name="b") for s, f in ((0, 1.5), (1, 3.0), (2, 7.5))]
    fad, _ = assemble.differences(a, b, smoke)
    assert (fad["difference"], fad["seeds"], fad["improvement"]) == (1.0, 3, 0.0)
    assert 0.5 < fad["improvement_hi"] < 0.6, "none of three seeds still leaves a half open"
    assert fad["hi"] - 1 == pytest.approx(4.302653 * 0.5 / 3**0.5)  # t of two degrees of freedom, gaps .5, 1, 1.5
    alone, _ = assemble.differences(a[:1], b[:1], smoke)
    assert alone["difference"] == 0.5
    assert alone["lo"] is None, "one seed says nothing about another"


def test_how_often_a_clip_improves_has_an_interval(smoke):
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 0.1, (3, 200))
    a, b = ([made(s, 0.3 + sign * gaps[s] / 2) for s in range(3)] for sign in (1, -1))
    _, got = assemble.differences(a, b, smoke)
    assert got["improvement"] == pytest.approx(np.mean(gaps > 0))
    assert got["improvement_lo"] < 0.5 < got["improvement_hi"]


def test_a_row_about_a_part_of_stage_1_shares_the_other(smoke):
    def began(motion: str, music: str, **overrides) -> Record:
        extra = {"stage1": {"motion": motion, "music": music}, "condition": {"overrides": overrides}}
        run = made(0, [0.3, 0.4])
        return replace(run, extra={**run.extra, **extra})

    short, music, motion = began("x", "m"), {"train": {"pretrain_steps": 7200}}, {"encoder": {"motion_steps": 2400}}
    assert assemble.differences([began("x", "n", **music)], [short], smoke)
    assert assemble.differences([began("y", "n", **music)], [short], smoke) == []
    assert assemble.differences([began("x", "n", **music)], [began("x", "m", **music)], smoke) == []
    assert assemble.differences([began("y", "m", **motion)], [short], smoke)
    assert assemble.differences([began("y", "n", **motion)], [short], smoke) == []
    assert assemble.differences([began("y", "m", **motion)], [began("x", "m", **motion)], smoke) == []
    assert assemble.differences([began("y", "n", **motion, **music)], [short], smoke)
    none = began("y", "m", encoder={"motion_steps": 0})
    none.extra["stage1"].pop("motion")
    assert assemble.differences([none], [short], smoke)
    wide = began("y", "n", encoder={"embed_dim": 8})
    assert assemble.differences([wide], [short], smoke)


def test_a_table_of_what_is_recorded(smoke):
    how = {"align": {"contrastive": False, "alpha": 0.1}, "decoder": {"time_bias_s": None}}
    conditions = [Condition("b", "B"), Condition("a", "A", how), Condition("later", "L", how)]
    found = {"b": [made(0, [0.1, 0.2], name="B")], "a": [made(0, [0.3, 0.5], name="A")]}
    record = assemble.record("t", "T", conditions, found, "b", smoke)
    assert [r.system for r in record.rows] == ["B", "B", "A", "A"]
    assert record.extra["missing"] == ["later"]
    assert record.extra["differences"]["a"][1]["difference"] == pytest.approx(0.25)
    notes = table.footnotes(record)
    assert "a: A; align.contrastive = False, align.alpha = 0.1, decoder.time_bias_s = None." in notes
    assert "b: B." in notes
    assert "No record yet: later." in notes
    assert "one training seed" in notes[0]
    found["b"].append(made(1, [0.1, 0.3], name="B"))
    several = table.footnotes(assemble.record("t", "T", conditions, found, "b", smoke))[0]
    assert "2 training seeds (a 1) and 2 clips" in several
    with pytest.raises(DataError, match="no run is recorded yet"):
        assemble.record("t", "T", conditions, {}, "b", smoke)


def test_a_failing_run_does_not_stop_the_others(monkeypatch, tmp_path, smoke):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    todo = [sweep.Run("t", Condition(n, n), smoke, 0) for n in ("one", "two")]

    def perform(run, *_, **__):
        if run.condition.name == "one":
            raise DataError("the loss is nan")
        return made(0, [0.5], name="two")

    monkeypatch.setattr(sweep, "perform", perform)
    failed = sweep.execute(todo, "smoke", "cpu", progress=False, say=lambda _: None)
    assert failed == ["t-one, seed 0: the loss is nan"]
    assert records.local("t-two", "smoke", 0).is_file()
    assert not (paths.cache() / "records" / "t-one-smoke-seed0.json").exists()


def test_rows_are_trained_in_float32_wherever_they_are_trained(monkeypatch, tmp_path, smoke):
    """A GPU's bfloat16 in some of the rows that are compared would be one more difference between them."""
    from vmas.training import loop, stages

    asked = {}
    monkeypatch.setattr(stages, "train_profile", lambda profile, *_: asked.update(train=profile.train) or tmp_path)
    monkeypatch.setattr(sweep, "judged", lambda run, *_: run.key())
    run = sweep.Run("t", Condition("one", "one"), smoke, 7)
    monkeypatch.setattr(sweep.Run, "key", lambda self: self.profile.train.precision)
    assert smoke.train.precision == "auto"
    assert sweep.perform(run, "cpu", False, lambda _: None) == "auto", "the record's key is that of the profile"
    assert asked["train"].precision == "fp32"
    assert loop.recipe(asked["train"]) == loop.recipe(smoke.train), "stage 1 of a CPU and of such a run are one"
    half = config.changed(smoke, {"train": {"precision": "bf16"}}).train
    assert loop.recipe(half) != loop.recipe(smoke.train)
    assert loop.settled(smoke.train, "cpu") == smoke.train
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert loop.settled(smoke.train, "cuda") == half, "what auto is on a GPU has a key of its own"
    assert loop.settled(asked["train"], "cuda") == asked["train"]


def test_a_child_sees_the_gpu_that_its_slot_names(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep.visible("cuda:1") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-abc")
    assert [sweep.visible(f"cuda:{i}") for i in (0, 1)] == ["4", "GPU-abc"]


@pytest.mark.parametrize(
    ("code", "leaves", "told"),
    [
        (0, True, ""),
        (0, False, "exit code 0: stopped by SIGTERM"),  # pre-empted: the state is saved, the run is not done
        (1, True, "exit code 1: stopped by SIGTERM"),
    ],
)
def test_a_child_is_done_when_its_record_is_there(monkeypatch, tmp_path, smoke, code, leaves, told):
    """A real child process in place of the training, with the command line and the environment of one."""
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    run = sweep.Run("t", Condition("one", "one"), smoke, 7)
    monkeypatch.setattr(sweep.Run, "key", lambda self: "one7")
    child, kept = tmp_path / "child", tmp_path / "records"
    kept.mkdir()
    leave = f"cp {tmp_path}/made.json {kept}/t-one-smoke-seed7.json" if leaves else "true"
    child.write_text(
        "#!/bin/sh\n"
        f'echo "$@ on $CUDA_VISIBLE_DEVICES with $OMP_NUM_THREADS, $LOKY_MAX_CPU_COUNT" > {tmp_path}/called\n'
        f"{leave}\necho 'stopped by SIGTERM'; exit {code}\n"
    )
    child.chmod(0o755)
    records.write(made(7, [0.5], name="one"), tmp_path / "made.json")
    monkeypatch.setattr(sweep.sys, "executable", str(child))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    problem = sweep._child(run, "smoke", "cuda:2", save_record=True, share=3)
    assert problem.startswith(told)
    assert bool(problem) == bool(told)
    line = (tmp_path / "called").read_text()
    assert "reproduce t --profile smoke --quiet --only one --seed 7 --device cuda --save-record on 2 with 3, 3" in line


def test_jobs_need_a_gpu():
    with pytest.raises(UsageError, match="needs a GPU"):
        sweep.devices("cpu", 2)
    assert sweep.devices("cpu", 1) == ["cpu"]
