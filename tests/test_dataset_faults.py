"""The builder when things go wrong or change: kills in every phase, full disks, replaced files, more rows."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_files import EVERY, FAST, FPS, RATE, broken, content, make, music, options, pictures

import vmas.dataset
from vmas import cli, media
from vmas.dataset import manifest, shards, stages, tasks
from vmas.dataset.build import _Progress, build
from vmas.dataset.manifest import Video, read_manifest
from vmas.dataset.pool import Local
from vmas.dataset.stages import Clip, Tools
from vmas.dataset.tasks import Make, Row, Screen, ShardTask, statistics
from vmas.errors import DataError, MediaError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def plain(root, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    return build(videos, out, options(root, test=1, skip=FAST), workers=1, progress=False)


@pytest.mark.slow
def test_kill_9_at_seeded_moments_of_every_phase_and_two_runs_on_one_folder(root, tmp_path):
    line = [sys.executable, str(HERE / "dataset_kills.py"), str(root), str(tmp_path), "7"]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}  # a script finds its own folder alone
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr
    *kills, two = map(json.loads, done.stdout.splitlines())
    assert {k["phase"] for k in kills} == {"screening", "making", "finishing"}
    for k in kills:
        assert (k["killed"], k["again"], k["same"], k["asides"]) == (-9, 0, True, []), k
        assert not k["whole"] or k["n"] == k["of"], k  # dataset.json is the last thing to appear
    assert (two["one"], two["two"], two["same"]) == (0, 3, True)
    assert "another run is building here" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_in_a_stage_stops_the_run_and_is_no_fault_of_the_clip(
    plain, root, videos, tmp_path, monkeypatch, number
):
    real, calls = stages._mp4, []

    def full(*args):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(number, os.strerror(number), "clip.mp4")
        return real(*args)

    monkeypatch.setattr(stages, "_mp4", full)
    with pytest.raises(DataError) as e:
        make(videos, tmp_path / "out", root, test=1)
    assert str(e.value).startswith(f"clip.mp4: {os.strerror(number)}")
    assert "the same command goes on from here" in str(e.value)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == ["shard-000000.json", "shard-000000.tar"]
    monkeypatch.undo()
    make(videos, tmp_path / "out", root, test=1)
    assert content(tmp_path / "out") == content(plain.out)


class Elsewhere(Local):
    """A machine that does not see some of the files while it screens."""

    def __init__(self, *lacks: Path):
        super().__init__(1)
        object.__setattr__(self, "lacks", lacks)

    def run(self, job, items, tools):
        hidden = [(p, p.with_suffix(".hidden")) for p in self.lacks if isinstance(job, Screen)]
        for path, aside in hidden:
            path.rename(aside)
        try:
            yield from super().run(job, items, tools)
        finally:
            for path, aside in hidden:
                aside.rename(path)


def test_a_machine_that_lacks_a_file_fails_on_it_and_the_next_run_takes_it(plain, root, videos, tmp_path):
    o, out = options(root, test=1, skip=FAST), tmp_path / "out"
    for _ in range(3):  # however often: the file is there
        done = build(videos, out, o, progress=False, backend=Elsewhere(root / "v2.mp4"))
        (failed,) = [r for r in done.ledger if r.kind == "failed"]
        assert (failed.id, failed.stage) == ("v2", "probe")
        assert re.match(r"FileNotFoundError: v2\.mp4: cannot be read on \S+, .*mount that folder", failed.reason)
        assert str(root) not in failed.reason
    assert [r.reason for r in done.ledger if r.id == "missing"] == ["no file on this machine"]
    with pytest.raises(DataError, match="2 of 13 videos failed, more than 5%"):
        build(videos, tmp_path / "two", o, progress=False, backend=Elsewhere(root / "v2.mp4", root / "v3.mp4"))
    make(videos, out, root, test=1)
    assert content(out) == content(plain.out)


def failing(monkeypatch, error: Exception, *names: str) -> list[str]:
    """Makes the last step of these clips fail; returns the names of those that came so far."""
    last, came = stages.CLIP_STEPS[-1], []

    def step(item, state, tools):
        came.append(item.name)
        if item.name in names:
            raise error
        return last(item, state, tools)

    monkeypatch.setattr(Make, "steps", (*stages.CLIP_STEPS[:-1], step))
    return came


def test_a_clip_whose_file_is_at_fault_is_not_tried_again(root, videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    came = failing(monkeypatch, MediaError(root / "v4.mp4", "is truncated"), "v4-00001500")
    rows, seen, look = broken(tmp_path, videos, 1), [], stages.look
    steps = (lambda v, s, t: seen.append(v.id) or look(v, s, t), *stages.SCREEN_STEPS[1:])
    monkeypatch.setattr(tasks.Screen, "steps", steps)
    done = make(rows, out, root)
    assert {r.id for r in done.ledger if r.kind == "failed"} == {"bad0", "v4-00001500"}
    assert "bad0" in seen
    first = content(out)
    came.clear()
    seen.clear()
    make(rows, out, root)
    assert (came, seen, content(out)) == ([], [], first)


def test_what_may_be_the_machines_fault_is_tried_twice(plain, root, videos, tmp_path, monkeypatch):
    out, error = tmp_path / "out", RuntimeError("CUDA error")
    for clips in (14, 3, 0, 0):  # all of them, those of its shard, none
        came = failing(monkeypatch, error, "v4-00001500")
        (failed,) = [r for r in make(videos, out, root, test=1).ledger if r.kind == "failed"]
        assert failed.id == "v4-00001500"
        assert len(came) == clips
    other = tmp_path / "stopped"
    for _ in range(2):
        failing(monkeypatch, error, "v4-00001500", "v5-00001500")
        with pytest.raises(DataError, match="2 of 16 clips failed"):
            make(videos, other, root, test=1)
    monkeypatch.undo()
    make(videos, other, root, test=1)  # what no run could go on with is tried once more
    assert content(other) == content(plain.out)


def test_clips_after_the_end_of_the_sound_are_not_begun(root, tmp_path):
    rows = []
    for name, seconds in (("whole", 4.0), ("half", 2.0), ("short", 1.2)):
        path = media.write_clip(tmp_path / f"{name}.mp4", pictures(1), FPS, music(1, seconds), RATE)
        rows.append(Video(name, str(path), name))
    rows.append(Video("after", str(tmp_path / "short.mp4"), "after", start=2.0))
    done = make(rows, tmp_path / "out", root, skip=EVERY)
    samples = shards.read_index(done.out / "train")[0]
    assert samples.groupby("video")["start_s"].apply(list).to_dict() == {
        "whole": [0, 1.5],
        "half": [0, 1.5],  # half a second of sound, then silence
        "short": [0],
    }
    assert [(r.id, r.stage, r.kind, r.reason) for r in done.ledger] == [
        ("after", "probe", "rejected", "its sound ends at 1.20 s, before the part begins")
    ]


def test_what_is_the_machines_fault_is_found_in_the_cause():
    import av

    from vmas.errors import MediaError

    def outcome(step):
        return tasks.through([step], Video("a", "", "a"), {}, Tools(None))

    def wrapped(item, state, tools):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as e:
            raise MediaError("clip.mp4", "cannot be written") from e

    def memory(item, state, tools):
        np.empty(1 << 60, np.uint8)

    def short(item, state, tools):  # FFmpeg says so of a file that ends too soon
        raise av.error.OSError(errno.EIO, "Input/output error", "a.mp4")

    with pytest.raises(DataError, match=r"No space left.*stage probe, a"):
        outcome(wrapped)
    with pytest.raises(DataError, match="out of memory: run again with fewer workers"):
        outcome(memory)
    assert outcome(short).kind == "failed"


def test_asides_of_every_file_are_removed_and_others_stay(plain, root, videos, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(plain.out, out)
    half = [f"train/.{n}.99" for n in ("index.parquet", "shards.parquet", "dataset.json", "shard-000003.tar")]
    half += [f".{n}.99" for n in ("rejected.parquet", "dataset_card.md", "timings.json", "dataset.json")]
    half += [f".build/.{n}.99" for n in ("plan.json", "screen-0123456789abcdef.json", "train-000001.json")]
    theirs = ["train/.nfs0001", ".gitignore", "train/.shard.99"]
    for name in half + theirs:
        (out / name).write_bytes(b"half")
    make(videos, out, root, test=1)
    assert [n for n in half if (out / n).exists()] == []
    assert [n for n in theirs if (out / n).exists()] == theirs


def test_failures_are_counted_as_they_come():
    state = _Progress(100, "clips")
    for i in range(5):
        state.add([Row(f"a{i}", "probe", "failed", "E: x"), Row(f"b{i}", "segments", "rejected", "silent")])
    with pytest.raises(DataError, match=r"6 of 100 clips failed, more than 5%: 5 x probe: E: x; 1 x beats: E: y"):
        state.add([Row("c", "beats", "failed", "E: y")])
    one = _Progress(2, "videos")  # one alone never stops a run
    one.add([Row("a", "probe", "failed", "E: x")])
    with pytest.raises(DataError, match="2 of 2 videos"):
        one.add([Row("b", "probe", "failed", "E: x")])


def test_nullable_columns_of_a_parquet_manifest(tmp_path):
    table = pd.DataFrame(
        {
            "id": pd.array(["a", None], "string"),
            "path": pd.array(["a.mp4", "b.mp4"], "string"),
            "artist": pd.array([pd.NA, "x"], "string"),
            "start": pd.array([pd.NA, 2], "Int64"),
            "duration": pd.array([1.5, pd.NA], "Float64"),
        }
    )
    table.to_parquet(tmp_path / "m.parquet")
    a, b = read_manifest(tmp_path / "m.parquet")
    assert (a.id, a.artist, a.start, a.duration) == ("a", "", 0.0, 1.5)
    assert (b.id, b.artist, b.start, b.duration) == ("b", "x", 2.0, 0.0)


def test_a_build_says_that_it_reads_the_files_before_it_does(root, videos, tmp_path, monkeypatch):
    said, before = [], []
    real = manifest._content
    monkeypatch.setattr(manifest, "_content", lambda v: before.append(len(said)) or real(v))
    build(videos[:3], tmp_path / "out", options(root, skip=FAST), workers=1, progress=False, say=said.append)
    assert said[0].startswith("reading both ends of 3 files")
    assert before == [1, 1, 1]


def test_statistics_by_hand():
    rows = [
        Row("a", "segments", "rejected", "silent"),
        Row("b", "tokens", "failed", "E"),
        Row("c", "segments", "rejected", "x"),
    ]
    metas = [{"similarity": 0.2, "removed": 0.5, "genre": "rock"}, {"similarity": 0.4, "removed": 0.0, "genre": "rock"}]
    assert statistics(rows, metas, 10.0) == {
        "clips_in": 5,
        "clips_out": 2,
        "hours": round(20 / 3600, 6),
        "similarity": 0.3,
        "removed": 0.25,
        "failed:tokens": 1,
        "genre:rock": 2,
        "rejected:segments": 2,
    }
    assert statistics([], [{}], 1.0) == {"clips_in": 1, "clips_out": 1, "hours": 0.000278}


def test_shards_have_statistics(plain, root, videos, tmp_path):
    samples, known = shards.read_index(plain.out / "train")
    assert known["clips_out"].tolist() == samples.groupby("shard").size().tolist()
    by_hand = samples.groupby("shard")["similarity"].mean().to_numpy()
    np.testing.assert_allclose(known["similarity"], by_hand, atol=2e-6)
    np.testing.assert_allclose(known["hours"], known["clips_out"] * 1.5 / 3600, atol=1e-6)
    # The silent video's two clips lie in one shard or two; all that went in came out or is counted.
    gone = known["rejected:segments"] if "rejected:segments" in known else 0 * known["clips_in"]
    assert (known["clips_in"] - known["clips_out"] - gone).tolist() == [0] * len(known)
    mark = shards.read_mark(plain.out / "train" / "shard-000000.tar")
    assert mark is not None
    assert mark.stats["clips_out"] == 3


def test_index_is_that_of_the_marks_in_parts(plain, tmp_path, monkeypatch):
    out = tmp_path / "train"
    shutil.copytree(plain.out / "train", out)
    one = shards.read_index(out)
    marks = [shards.read_mark(p) for p in sorted(out.glob("*.tar"))]
    monkeypatch.setattr(shards, "GROUP_ROWS", 4)
    shards.write_index(out, marks)
    for a, b in zip(one, shards.read_index(out), strict=True):
        pd.testing.assert_frame_equal(a, b)
    (out / shards.INDEX).unlink()
    for a, b in zip(one, shards.read_index(out), strict=True):
        pd.testing.assert_frame_equal(a, b)


def test_open_takes_the_folder_of_a_build(plain, tmp_path):
    assert len(vmas.dataset.open(plain.out, fields=["frames"])) == plain.kept["train"]
    assert vmas.dataset.open(plain.out, split="test", fields=["frames"]).folder == plain.out / "test"
    assert vmas.dataset.open(plain.out / "test", fields=["frames"]).folder == plain.out / "test"
    with pytest.raises(DataError, match="holds no split 'val', but test, train"):
        vmas.dataset.open(plain.out, split="val")
    with pytest.raises(DataError, match="holds no shards"):
        vmas.dataset.open(tmp_path)


def test_hours_and_rates_are_recorded(plain, videos):
    timings = json.loads((plain.out / "timings.json").read_text())
    # 4 s each of 7 good videos, still, silent and copy; short holds 1 s and never was usable
    assert timings["video_hours"] == pytest.approx(10 * 4 / 3600, rel=0.02)
    assert timings["made_hours"] == pytest.approx((2 * 7 + 2) * 1.5 / 3600, abs=1e-6)
    for stage, hours in (("similarity", "video_hours"), ("segments", "made_hours")):
        rate = timings[hours] * 3600 / timings["seconds"][stage]
        assert timings["video_hours_per_core_hour"][stage] == pytest.approx(rate, rel=0.02)
    assert "video-hours per core-hour: " in plain.line()
    assert f"segments {plain.rates['segments']:.0f}" in plain.line()


def test_tasks_are_made_when_asked_for(root, tmp_path):
    from vmas.dataset.layout import Tasks

    rows = [Video(f"v{i}", "", f"v{i}") for i in range(50)]
    found = {v.id: {"seconds": 1.5 * (i % 4), "pictures": [1]} for i, v in enumerate(rows)}
    splits = {v.id: ("val" if i % 5 == 0 else "train") for i, v in enumerate(rows)}
    made = Tasks(tmp_path, rows, found, splits, {v.id: v.id for v in rows}, options(root, shard_size=7), "key")
    for split in ("train", "val"):
        clips = [c for i, (s, _) in enumerate(made.where) if s == split for c in made[i].items]
        expected = [(v.id, 1.5 * k) for i, v in enumerate(rows) if splits[v.id] == split for k in range(i % 4)]
        assert [(c.video.id, c.start_s) for c in clips] == expected
    assert made.clips == sum(i % 4 for i in range(50))
    assert all(len(made[i].items) <= 7 for i in range(len(made)))
    assert made[0].key != ShardTask(made[0].path, made[0].items, "other").key
    assert made[0].items[0] == Clip(rows[1], 0.0, {"seconds": 1.5, "row": "v1"})


def test_help_states_when_a_run_stops(capsys):
    assert cli.main(["dataset", "build", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "more than 5% of its videos" in said
    assert "--update" in said
    assert "classic, its offline stand-in, which leaves part of the voices and harms the music" in said
