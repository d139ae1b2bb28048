"""Targets at the smallest sizes that run: corpus, codec, tagger, training, generation, metrics, notebook and table."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from test_experiments import METRICS

from vmas import config, records
from vmas.experiments import runner, table3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A profile at the smallest sizes that run, with a cache and results of its own; yields its file and folder."""
    root = tmp_path_factory.mktemp("tiny")
    tiny = {
        "name": "tiny",
        "corpus": {"train": 8, "val": 4, "test": 4, "shifted": 4},
        "codec": {"train_steps": 2},
        "encoder": {"motion_steps": 2, "motion_batch": 4},
        "train": {
            "steps": 2,
            "pretrain_steps": 2,
            "batch_size": 4,
            "warmup_steps": 1,
            "val_every": 1,
            "checkpoint_every": 1,
        },
        "eval": {"bootstrap": 50, "tagger_steps": 2, "sampling_seeds": 2, "sweep_sampling_seeds": 2},
    }
    file = root / "tiny.yaml"
    plain = json.loads(json.dumps(dataclasses.asdict(config.load("smoke", tiny))))
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMAS_CACHE", str(root / "cache"))
        patch.setenv("VMAS_RESULTS", str(root / "results"))
        yield file


@pytest.mark.slow
def test_table3_from_nothing(world, capsys):
    """Corpus, codec, tagger, training, generation, metrics, notebook and table."""
    from vmas import cli

    assert cli.main(["reproduce", "table3", "--profile", str(world), "--device", "cpu", "-q", "--debug"]) == 0
    shown = capsys.readouterr().out
    assert "the numbers mean nothing" in shown
    out = world.parent / "results" / "tiny" / "table3"
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
    rows = json.loads((out / "result.json").read_text(encoding="utf-8"))["rows"]
    for dataset in table3.DATASETS.values():
        for system in (table3.OURS, table3.REAL, table3.CODEC, table3.SHUFFLED):
            got = {r["metric"]: r for r in rows if r["system"] == system and r["dataset"] == dataset}
            assert list(got) == METRICS
            assert all(r["status"] == "smoke" and r["n"] == 4 for r in got.values())
            assert got["KL"]["seeds"] == (2 if system == table3.OURS else 1)
    assert sum(r["status"] == "quoted" for r in rows) == 31
    assert (world.parent / "cache" / "notebooks" / "tiny" / "10_table3_state_of_the_art.ipynb").is_file()
    # Again: nothing is computed, and forced: the same numbers.
    first = records.read(records.local("table3", "tiny", 0))
    assert runner.obtain("table3", str(world), source="compute") == first
    again = table3.compute(config.load(str(world)), 0, "cpu", progress=False)
    assert again.key == first.key
    assert records.compare(again, first).lines == ()


def _made(folder) -> tuple[int, int]:
    """What tells a folder from one made later in its place; the inode's number alone may be given out again."""
    found = folder.stat()
    return found.st_ino, found.st_mtime_ns


@pytest.mark.slow
def test_sweep_from_nothing(world, capsys, monkeypatch):
    """Two conditions, two seeds: trained once, skipped when recorded, put together with what is there."""
    from vmas import cli
    from vmas.experiments import sweep

    line = ["reproduce", "table5", "--profile", str(world), "--device", "cpu", "-q", "--debug"]
    two = ["--only", "baseline", "--only", "beats"]
    assert cli.main([*line, *two, "--seeds", "2", "--dry-run"]) == 0
    assert "to do" in capsys.readouterr().out
    performed = []
    real = sweep.perform

    def perform(run, *args, **options):
        performed.append((run.name, run.seed))
        return real(run, *args, **options)

    monkeypatch.setattr(sweep, "perform", perform)
    assert cli.main([*line, "--only", "baseline", "--seed", "1"]) == 0
    assert cli.main([*line, *two, "--seeds", "2"]) == 0
    names = ["table5-baseline", "table5-beats"]
    assert performed == [(names[0], 1), (names[0], 0), (names[1], 0), (names[1], 1)]
    assert cli.main([*line, *two, "--seeds", "2"]) == 0
    assert len(performed) == 4, "recorded runs are skipped"
    trained = [*(world.parent / "cache" / "train" / "tiny").glob("vmas-seed1-*")]
    before = {d: _made(d / "states") for d in trained}
    capsys.readouterr()
    assert cli.main([*line, "--only", "baseline", "--seed", "1", "--force"]) == 0
    assert performed.pop() == (names[0], 1)
    assert "table5-baseline, seed 1: " in capsys.readouterr().out, "how far it lands from the record"
    assert sum(_made(d / "states") != before[d] for d in trained) == 1, "one was trained anew"
    assert cli.main([*line, *two, "--seeds", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("recorded") == 4
    assert cli.main(line) == 0, "without --seeds nothing is trained"
    assert len(performed) == 4
    result = json.loads((world.parent / "results" / "tiny" / "table5" / "result.json").read_text(encoding="utf-8"))
    ours = [r for r in result["rows"] if r["status"] != "quoted"]
    assert {r["system"] for r in ours} == {"Autoregressive baseline", "+ beat weighting (literal)"}
    assert all(r["seeds"] == 2 for r in ours)
    assert cli.main([*line[:-1], "--only", "baselines"]) == 2  # without --debug, which raises
    assert "baseline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_numbers(world, capsys):
    """SIGKILL while a run trains; the same command then leaves the record of an undisturbed run.

    Its weights, published with the record, then give the table's row again without a training.
    """
    from vmas import cli
    from vmas.experiments import sweep, table5

    (run,) = sweep.runs("table5", [table5.CONDITIONS[0]], str(world), [sweep.PUBLISHED])
    line = ["reproduce", "table5", "--profile", str(world), "--device", "cpu", "-q", "--only", run.condition.name]
    line += ["--seed", str(sweep.PUBLISHED)]
    trained = world.parent / "cache" / "train" / "tiny"
    child = subprocess.Popen([sys.executable, "-m", "vmas", *line], start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(trained.glob("music-seed2-*/states/step-*")):
            assert child.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert run.record() is None
    assert cli.main([*line, "--debug"]) == 0
    resumed = run.record()
    for folder in [*trained.glob("*-seed2-*"), run.folder]:
        shutil.rmtree(folder)
    whole = sweep.perform(run, "cpu", False, lambda _: None)
    assert resumed.rows == whole.rows
    assert resumed.provenance["checkpoint_sha256"] == whole.provenance["checkpoint_sha256"]
    sweep.keep(whole, run, save_record=True)
    shutil.rmtree(run.folder)
    assert run.committed is not None
    capsys.readouterr()
    assert cli.main(["reproduce", "table5", "--profile", str(world), "--device", "cpu", "-q", "--force"]) == 0
    shown = capsys.readouterr().out
    head = f"{run.name}, seed {run.seed}, its checkpoint with one of 2 sampling seeds: "
    told = next(x for x in shown.splitlines() if x.startswith(head))
    assert "numbers equal the committed record" in told
    assert f"{run.condition.label}, " in shown, "the numbers that differ, one sampling seed being fewer than two"


@pytest.mark.slow
def test_table6_from_nothing(world, capsys):
    """The three encoders through the whole sweep: trained, evaluated, and put together with their cost."""
    from vmas import cli
    from vmas.experiments import table6

    line = ["reproduce", "table6", "--profile", str(world), "--device", "cpu", "-q", "--debug"]
    three = [x for name in table6.PAPER for x in ("--only", name)]
    assert cli.main([*line, *three, "--seeds", "1"]) == 0
    assert cli.main(line) == 0
    out = world.parent / "results" / "tiny" / "table6"
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
    rows = json.loads((out / "result.json").read_text(encoding="utf-8"))["rows"]
    labels = [c.label for c in table6.CONDITIONS if c.name in table6.PAPER]
    assert [r["system"] for r in rows if r["metric"] == table6.GFLOPS] == labels
    assert {r["system"] for r in rows if r["metric"] == "KL" and r["value"] is not None} == set(labels)
    assert "281.6" in capsys.readouterr().out


@pytest.mark.slow
def test_follow_from_nothing(world, capsys):
    """A real model, however little trained, through all five tests, the notebook and the table."""
    from vmas import cli
    from vmas.experiments import follow_tests

    assert cli.main(["reproduce", "follow", "--profile", str(world), "--device", "cpu", "-q", "--debug"]) == 0
    shown = capsys.readouterr().out
    assert "Computed here (smoke): test: swapped video" in shown
    assert max(map(len, shown.splitlines())) <= 400, "tables, not a record as Python prints it"
    out = world.parent / "results" / "tiny" / "follow"
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
    rows = json.loads((out / "result.json").read_text(encoding="utf-8"))["rows"]
    parts = [follow_tests.SWAP, follow_tests.SHIFT, follow_tests.CUT, follow_tests.SLOW, follow_tests.STILL]
    assert list(dict.fromkeys(r["dataset"] for r in rows)) == [f"test: {p}" for p in parts]
    assert all(r["status"] == "smoke" and r["n"] <= 4 for r in rows)
    assert (world.parent / "cache" / "notebooks" / "tiny" / "14_does_the_music_follow.ipynb").is_file()


@pytest.mark.slow
def test_placement_from_nothing(world, capsys):
    """A real model through the counting of its gain, the notebook and the table."""
    from vmas import cli
    from vmas.experiments import placement

    assert cli.main(["reproduce", "placement", "--profile", str(world), "--device", "cpu", "-q", "--debug"]) == 0
    assert f"Computed here (smoke): test: {placement.OURS}" in capsys.readouterr().out
    out = world.parent / "results" / "tiny" / "placement"
    rows = json.loads((out / "result.json").read_text(encoding="utf-8"))["rows"]
    always, sometimes = {"test: eq. 4 over Σw", f"test: {placement.OURS}"}, f"test: {placement.BASELINE}"
    assert always <= {r["dataset"] for r in rows} <= {*always, sometimes}, (
        "the baseline where another test published it"
    )
    assert all(r["status"] == "unavailable" or (r["status"] == "smoke" and r["n"] <= 4) for r in rows)
