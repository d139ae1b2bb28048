"""The builder end to end: what stays and what does not, kills and restarts, faults, splits without leakage."""

import dataclasses
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from dataset_files import EVERY, PROFILE, broken, content, options, video
from dataset_work import Lethal, Striking, die, die_once, each_dies_once

import vmas.dataset
from vmas import cli
from vmas.beats import BeatOptions, align
from vmas.dataset import build as builder
from vmas.dataset import pool, shards, stages
from vmas.dataset.build import build
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Tools
from vmas.dataset.tasks import Block, Screen
from vmas.errors import DataError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def built(root, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    return build(videos, out, options(root, test=1, skip=()), workers=1, progress=False)


@pytest.fixture(scope="module")
def plain(root, videos, tmp_path_factory):
    """Without the slow stage."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return build(videos, out, options(root, test=1), workers=1, progress=False)


def test_clips_of_good_videos_and_nothing_else(built):
    samples = shards.read_index(built.out / "train")[0]
    assert sorted(set(samples["video"])) == [f"v{i}" for i in range(7) if f"v{i}" in set(samples["video"])]
    held = shards.read_index(built.out / "test")[0]
    assert set(samples["video"]) | set(held["video"]) == {f"v{i}" for i in range(7)}
    assert built.kept == {"train": 12, "val": 0, "test": 2}  # 4 s hold two clips of 1.5 s
    assert sorted(samples["start_s"].unique()) == [0, 1.5]
    assert samples["shard"].value_counts().tolist() == [3, 3, 3, 3]


def test_ledger_names_stage_reason_and_score(built):
    ledger = pd.read_parquet(built.out / "rejected.parquet").set_index("id")
    stages = ledger["stage"].to_dict()
    assert {k: stages.pop(k) for k in ("still", "mute", "short", "copy", "missing")} == {
        "still": "similarity",
        "mute": "probe",
        "short": "probe",
        "copy": "duplicates",
        "missing": "probe",
    }
    assert set(stages.values()) == {"segments"}  # the silent one, clip by clip
    assert set(ledger["kind"]) == {"rejected"}
    assert ledger.loc["still", "score"] > 0.99
    assert ledger.loc["short", "score"] == pytest.approx(1.0, abs=0.1)
    assert "v1" in ledger.loc["copy", "reason"]
    assert len(ledger) == 7


def test_samples_hold_what_training_needs(built):
    data = vmas.dataset.open(built.out / "train")
    batch = data.first(4)
    p = PROFILE
    assert batch["frames"].shape == (4, p.clip.num_frames, 32, 32, 3)
    assert batch["codes"].shape == (4, p.codec.n_q, p.num_tokens)
    (sample, *_) = shards.read_shard(built.out / "train" / "shard-000000.tar")
    assert set(sample) == {
        "__key__",
        "__url__",
        *("mp4", "flac", "json", "tokens.npy", "flow.npy", "beats.npy", "weights.npy"),
    }
    flow, beats, weights = (np.load(__import__("io").BytesIO(sample[f"{k}.npy"])) for k in ("flow", "beats", "weights"))
    np.testing.assert_array_equal(
        weights, align(flow, beats, p.clip.fps, p.codec.frame_rate, BeatOptions.from_config(p.align)).P_av
    )
    np.testing.assert_array_equal(batch["weights"][0].numpy(), weights)
    meta = json.loads(sample["json"])
    assert meta["licence"] == "CC0"
    assert 0 <= meta["removed"] < 1
    assert meta["genre"] in set(shards.read_index(built.out / "train")[0]["genre"])


def test_music_is_stored_as_the_tokens_were_taken_from_it(built, root):
    import soundfile
    import torch

    from vmas.codec import load_codec

    (sample, *_) = shards.read_shard(built.out / "train" / "shard-000000.tar")
    pcm, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
    assert (len(pcm), rate) == (PROFILE.clip.num_samples, PROFILE.clip.sample_rate)
    wav = torch.from_numpy(pcm.astype(np.float32) / 32767)[None, None]
    codes = load_codec(root / "codec").encode(wav)[0].numpy()
    np.testing.assert_array_equal(codes, np.load(io.BytesIO(sample["tokens.npy"])))


def test_card_counts_and_names_licences(built):
    text = (built.out / "dataset_card.md").read_text()
    assert "14 clips of 1.5 s" in text
    assert "| test | CC0 | 13 | 7 | 14 |" in text
    assert "| similarity | rejected | frame similarity not below 0.7 | 1 |" in text
    assert str(built.out) not in text
    assert "classic separator, which stands in for Demucs" in text


def test_card_warns_of_the_stand_in_for_demucs_where_it_was_used(plain):
    assert "Demucs" not in (plain.out / "dataset_card.md").read_text()


def test_no_machine_path_is_written(built, root):
    for name, data in content(built.out).items():
        assert str(root).encode() not in data, name


@pytest.mark.slow
def test_workers_change_no_byte(built, root, videos, tmp_path):
    """Every stage: also the vocals (classic), genres and tokens of processes that loaded their own models."""
    two = build(videos, tmp_path / "two", options(root, test=1, skip=()), workers=2, progress=False)
    assert content(two.out) == content(built.out)
    assert {"train/shard-000003.tar", "test/shard-000000.tar", "rejected.parquet"} <= content(built.out).keys()
    assert "removed" in shards.read_index(two.out / "train")[0]


def test_restart_mends_what_a_kill_left(plain, root, videos, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(plain.out, out)
    (out / "dataset.json").unlink()
    (out / ".build" / "train-000001.json").unlink()
    (out / "train" / "shard-000002.json").unlink()
    (out / "train" / ".shard-000003.tar.99").write_bytes(b"half")
    os.truncate(out / "train" / "shard-000000.tar", 2000)
    (out / ".build" / "screen-000000.json").write_text('{"known": {')
    before = (out / "test" / "shard-000000.tar").stat().st_mtime_ns
    build(videos, out, options(root, test=1), workers=1, progress=False)
    assert content(out) == content(plain.out)
    assert (out / "test" / "shard-000000.tar").stat().st_mtime_ns == before  # what was done stayed


RUN = """
import sys
sys.path.insert(0, sys.argv[3])
from dataset_files import options
from vmas.dataset.build import build
from vmas.dataset.manifest import read_manifest
from pathlib import Path
if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:3])
    build(read_manifest(root / "videos.csv"), out, options(root, test=1), workers=int(sys.argv[4]), progress=False)
"""


@pytest.fixture
def run(root, tmp_path):
    """Starts a build in a process of its own, with so many workers, and waits till it is writing a shard."""

    def start(workers: int) -> subprocess.Popen:
        line = [sys.executable, "-c", RUN, str(root), str(tmp_path / "out"), str(HERE), str(workers)]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 300
        while not list(tmp_path.glob("out/train/*shard*")) and process.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        return process

    return start


def workers_of(pid: int) -> list[int]:
    """Processes of the pool of `pid`: what the server that it started has been forked into."""
    children = psutil.Process(pid).children()
    servers = [c for c in children if any("forkserver" in word for word in c.cmdline())]
    return [w.pid for server in servers for w in server.children()]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_the_driver_and_restart(plain, root, videos, run, tmp_path, workers):
    process = run(workers)
    others = workers_of(process.pid)
    assert len(others) == (workers if workers > 1 else 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    out = tmp_path / "out"
    assert not (out / "dataset.json").exists()
    deadline = time.time() + 60
    while any(map(alive, others)) and time.time() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, others))  # else they would write where the next run does
    build(videos, out, options(root, test=1), workers=1, progress=False)
    assert content(out) == content(plain.out)


@pytest.mark.slow
def test_kill_9_of_a_worker_changes_no_byte(plain, run, tmp_path):
    process = run(2)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    assert process.wait(300) == 0
    assert content(tmp_path / "out") == content(plain.out)  # and nothing half-written is left


def test_a_killed_worker_costs_its_task_another_try(root, tmp_path):
    tools = Tools(options(root, skip=("genre", "tokens")))
    tasks = [(str(tmp_path), i) for i in range(5)]
    assert dict(pool.run(die_once, tasks, tools, workers=2)) == {i: i * i for i in range(5)}
    with pytest.raises(DataError, match=r"process that did .* died three times"):
        list(pool.run(die, tasks, tools, workers=2))


def test_deaths_of_many_tasks_do_not_add_up(root, tmp_path):
    tools = Tools(options(root, skip=("genre", "tokens")))
    tasks = [(str(tmp_path), i) for i in range(6)]
    assert dict(pool.run(each_dies_once, tasks, tools, workers=2)) == {i: i * i for i in range(6)}


def test_a_video_that_kills_its_process_is_a_failure_and_the_rest_goes_on(root, tmp_path):
    tools = Tools(options(root, skip=("genre", "tokens")))
    names = [["a", "killer", "b"], ["c", "d"], ["e"], ["f"]]
    blocks = [Block([Video(n, str(tmp_path / "none"), n) for n in block]) for block in names]
    found = dict(pool.run(Striking(), blocks, tools, workers=2))
    assert [sorted(found[i]["known"]) for i in range(4)] == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    assert [(r["id"], r["stage"], r["kind"], r["reason"]) for f in found.values() for r in f["rows"]] == [
        ("killer", "probe", "failed", "the process that read it died: not enough memory, or a broken file")
    ]
    twins = [Video(n, str(tmp_path / "none"), n) for n in ("killer", "killer2")]
    with pytest.raises(DataError, match=r"every process that read one of .* files died, the first killer"):
        list(pool.run(Striking(), [Block(twins)], tools, workers=2))


class Dying(pool.Local):
    """Processes that die of video v3."""

    def run(self, job, tasks, tools):
        return super().run(Lethal() if isinstance(job, Screen) else job, tasks, tools)


def test_a_build_ends_without_the_video_that_kills_its_process(root, videos, tmp_path):
    some, o = videos[2:6], options(root, skip=EVERY)
    done = build(some, tmp_path / "out", o, progress=False, backend=Dying(2))
    assert [r.id for r in done.ledger if r.kind == "failed"] == ["v3"]
    plain = build([v for v in some if v.id != "v3"], tmp_path / "plain", o, workers=1, progress=False)
    tars = [{k: v for k, v in content(r.out).items() if k.endswith(".tar")} for r in (done, plain)]
    assert tars[0] == tars[1]


def test_second_run_on_a_folder_refuses(root, videos, tmp_path):
    work = tmp_path / "out" / ".build"
    work.mkdir(parents=True)
    with open(work / "lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is building here"):
            build(videos, tmp_path / "out", options(root), progress=False)


def test_other_options_or_foreign_shards_refuse(plain, root, videos, tmp_path):
    with pytest.raises(DataError, match="another manifest, other options"):
        build(videos, plain.out, options(root, test=2), workers=1, progress=False)
    with pytest.raises(DataError, match="another manifest"):
        build(videos[:-1], plain.out, options(root, test=1), workers=1, progress=False)
    shards.write_shard(tmp_path / "shard-000000.tar", [{"__key__": "a", "txt": b"x"}])
    with pytest.raises(DataError, match="did not make"):
        build(videos, tmp_path, options(root), workers=1, progress=False)


def test_a_failing_video_is_recorded_and_the_rest_goes_on(root, videos, tmp_path):
    out = build(broken(tmp_path, videos, 1), tmp_path / "out", options(root), workers=1, progress=False).out
    ledger = pd.read_parquet(out / "rejected.parquet").set_index("id")
    assert ledger.loc["bad0", "kind"] == "failed"
    assert ledger.loc["bad0", "stage"] == "probe"
    assert ledger.loc["bad0", "reason"].startswith("MediaError: bad0.mp4: ")
    assert len(vmas.dataset.open(out / "train")) == 14


def test_a_stage_that_fails_on_one_clip_is_recorded_and_tried_again(plain, root, videos, tmp_path, monkeypatch):
    out, real = tmp_path / "out", stages._tokens

    def fail(music, tools):
        if len(calls) == 4:
            calls.append(1)
            raise RuntimeError("CUDA error: out of memory")
        calls.append(1)
        return real(music, tools)

    calls: list[int] = []
    monkeypatch.setattr(stages, "_tokens", fail)
    done = build(videos, out, options(root, test=1), workers=1, progress=False)
    (failed,) = [r for r in done.ledger if r.kind == "failed"]
    assert (failed.stage, failed.reason) == ("tokens", "RuntimeError: CUDA error: out of memory")
    assert done.kept == {"train": 11, "val": 0, "test": 2}
    monkeypatch.undo()
    build(videos, out, options(root, test=1), workers=1, progress=False)
    assert content(out) == content(plain.out)


def test_too_many_failures_stop_the_run_with_a_summary(root, videos, tmp_path):
    many = broken(tmp_path, videos, 3)
    with pytest.raises(DataError, match=r"3 of 16 videos failed, more than 5%: 1 x probe: MediaError"):
        build(many, tmp_path / "out", options(root), workers=1, progress=False)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_full_disk_stops_and_says_so(root, videos, tmp_path, monkeypatch):
    real = shards.index_shard

    def full(path, name=None):
        if name == "shard-000001.tar":
            raise OSError(28, "No space left on device", str(path))
        return real(path, name)

    monkeypatch.setattr(shards, "index_shard", full)
    with pytest.raises(DataError, match=r"shard-000001\.tar: cannot be written: No space left"):
        build(videos, tmp_path / "out", options(root), workers=1, progress=False)
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == ["shard-000000.json", "shard-000000.tar"]
    monkeypatch.undo()
    assert build(videos, tmp_path / "out", options(root), workers=1, progress=False).kept["train"] == 14


def test_disk_that_takes_no_more_bytes_leaves_no_part_of_a_shard(plain, root, videos, tmp_path):
    out = tmp_path / "out"
    sizes = sorted(p.stat().st_size for p in plain.out.rglob("*.tar"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] // 2, before[1]))
    try:
        with pytest.raises(DataError, match=r"shard-00000\d\.tar: cannot be written: File too large"):
            build(videos, out, options(root, test=1), workers=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [p for p in out.rglob("*shard-*") if shards.verify_shard(p.with_suffix(".tar"))]
    build(videos, out, options(root, test=1), workers=1, progress=False)
    assert content(out) == content(plain.out)


def test_stages_can_be_left_out(root, videos, tmp_path):
    skip = ("similarity", "duplicates", "vocals", "genre", "tokens", "beats")
    done = build(videos, tmp_path / "out", options(root, skip=skip, clips_per_video=1), workers=1, progress=False)
    samples = shards.read_index(done.out / "train")[0]
    assert {c.split(":")[0] for c in samples if ":" in c} == {"mp4", "flac", "json"}
    assert {"still", "copy"} <= set(samples["video"])
    assert samples["video"].is_unique


def test_nothing_left_is_an_error(root, videos, tmp_path):
    with pytest.raises(DataError, match="no clip is left"):
        build(
            [v for v in videos if v.id in ("still", "missing")],
            tmp_path / "out",
            options(root),
            workers=1,
            progress=False,
        )


@pytest.fixture(scope="module")
def relatives(tmp_path_factory):
    """Videos that share a track, a picture, a sound or a source with others."""
    folder = tmp_path_factory.mktemp("relatives")
    rows = []
    for i in range(6):
        video(folder / f"a{i}.mp4", 100 + i)
        rows.append(Video(f"a{i}", str(folder / f"a{i}.mp4"), f"a{i}", artist="X", track=f"T {i}"))
    video(folder / "track.mp4", 200)
    rows.append(Video("track", str(folder / "track.mp4"), "track", artist="x", track="t-0"))
    video(folder / "sound.mp4", 201, sound=101)
    rows.append(Video("sound", str(folder / "sound.mp4"), "sound"))
    video(folder / "picture.mp4", 102, sound=202)
    rows.append(Video("picture", str(folder / "picture.mp4"), "picture"))
    video(folder / "source.mp4", 203)
    rows.append(Video("source", str(folder / "source.mp4"), "a3"))
    return rows


RELATED = ({"a0", "track"}, {"a1", "sound"}, {"a2", "picture"}, {"a3", "source"})


def test_no_split_holds_a_relative_of_another(root, relatives, tmp_path):
    o = options(root, val=2, test=2, skip=("vocals", "genre", "tokens", "beats"))
    done = build(relatives, tmp_path / "out", o, workers=1, progress=False)
    split = {
        v: s
        for s in ("train", "val", "test")
        if (done.out / s).is_dir()
        for v in shards.read_index(done.out / s)[0]["video"]
    }
    assert sum(s == "val" for s in split.values()) == sum(s == "test" for s in split.values()) == 2
    for pair in RELATED:
        here = {split[v] for v in pair if v in split}
        assert len(here) == 1, pair
        assert len(pair & split.keys()) == (2 if here == {"train"} else 1), pair
    gone = {r.id for r in done.ledger if r.stage == "splits"}
    assert gone == {r.id for r in relatives} - split.keys()


def test_command_line(root, tmp_path, capsys):
    manifest, out = str(root / "videos.csv"), str(tmp_path / "out")
    profile = tmp_path / "tiny.yaml"
    import yaml

    profile.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(PROFILE)))))
    line = ["dataset", "build", "--manifest", manifest, "--out", out, "--profile", str(profile), "-q"]
    line += ["--checkpoints", str(root), "--skip", "vocals", "--workers", "1", "--shard-size", "20"]
    assert cli.main([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "videos        13 (12 on this machine)" in said
    assert "core-hours    0.0 (rates of one AMD EPYC core" in said
    for wrong, said in ((["--vocals", "demuks"], "mean demucs?"), (["--val", "7", "--test", "6"], "none to train on")):
        assert cli.main([*line, "--dry-run", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not Path(out).exists()
    assert cli.main(line) == 0
    assert "14 train clips of 13 videos" in capsys.readouterr().out
    assert cli.main(["dataset", "check", out]) == 0
    assert "1 shards are whole" in capsys.readouterr().out
    whole, shard = content(Path(out)), Path(out) / "train" / "shard-000000.tar"
    with open(shard, "r+b") as f:
        f.seek(3000)
        f.write(b"??")
    assert cli.main(["dataset", "check", out]) == 1
    said = capsys.readouterr().out
    assert f"{shard}: differs from its sha256: it is damaged; delete it and give its build command again" in said
    shard.unlink()
    assert cli.main(["dataset", "check", out]) == 1
    assert "is missing; give its build command again" in capsys.readouterr().out
    assert cli.main(line) == 0
    assert content(Path(out)) == whole
    assert cli.main([*line, "--frames", "clap"]) == 2
    assert "cheap" in capsys.readouterr().err
    assert cli.main([*line, "--skip", "probe"]) == 2
    assert builder.WORK == ".build"
