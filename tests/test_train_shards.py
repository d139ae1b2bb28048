"""`vmas train --data`: the stages fed from shards, and refusals before any work."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from dataset_files import video

from vmas import checkpoint, cli, codec, config, paths
from vmas.dataset.build import build
from vmas.dataset.features import write_features
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options
from vmas.errors import CheckpointError, DataError, UsageError, WeightsUnavailable
from vmas.features import SplitFeatures
from vmas.model import VMAs
from vmas.training import stages
from vmas.training.data import Held
from vmas.training.loop import Stage
from vmas.training.sources import Further, ShardData
from vmas.training.tasks import vmas_data

TINY = {
    "name": "tiny",
    "clip": {"seconds": 1.25},
    "encoder": {"motion_steps": 2, "motion_batch": 4},
    "train": {"steps": 2, "pretrain_steps": 2, "batch_size": 4, "warmup_steps": 1, "val_every": 1, "sample_every": 2},
}


def split(p, n: int, seed: int) -> SplitFeatures:
    rng = np.random.default_rng(seed)
    c = p.clip
    ids = [f"clip-{seed}-{i}" for i in range(n)]
    return SplitFeatures(
        ids,
        rng.integers(0, 10, n),
        pd.DataFrame({"id": ids, "genre": ["jazz"] * n}),
        frames=rng.integers(0, 256, (n, c.num_frames, c.img_size, c.img_size, 3), dtype=np.uint8),
        waveforms=np.zeros((n, c.num_samples), np.int16),
        flow=rng.gamma(2.0, 0.5, (n, c.num_frames - 1)).astype(np.float32),
        dense_flow=np.zeros((n, 3), np.float32),
        beats=rng.random((n, p.num_tokens)) < 0.1,
        scenes=np.zeros((n, 2), np.int16),
        tokens=rng.integers(0, p.codec.bins, (n, p.codec.n_q, p.num_tokens)).astype(np.int16),
    )


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A profile file, shards for it, and the codec that they belong to."""
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "results"))
    p = config.load("smoke", TINY)
    torch.manual_seed(0)
    own = codec.build_codec(p.codec)
    codec.save_codec(paths.checkpoints("tiny") / "codec", own)
    splits = {"train": split(p, 8, 1), "val": split(p, 4, 2)}
    for name, s in splits.items():
        write_features(s, tmp_path / "data" / name, p, shard_size=3, codec=own.sha256)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(p)))), encoding="utf-8")
    return p, tmp_path / "data", file, splits


def test_shards_give_what_the_arrays_give(world):
    p, folder, _, splits = world
    got = ShardData(p, codec.load_codec(paths.checkpoints("tiny") / "codec"), folder)
    expected = vmas_data(splits["train"], p).__getitems__([5, 0, 2])
    found = got.vmas("train").__getitems__([5, 0, 2])
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    np.testing.assert_array_equal(got.flow("val"), splits["val"].flow)
    assert got.clips("train") == 8


def test_a_frozen_encoder_sees_streamed_clips_once(world):
    """What is held equals what the stream gives, in any order; too much of it stays a stream."""
    p, folder, _, splits = world
    own = codec.load_codec(paths.checkpoints("tiny") / "codec")
    torch.manual_seed(0)
    model = VMAs(p, own)
    stream = ShardData(p, own, folder).vmas("train")
    assert stages.seen_once(model, stream) is stream, "an encoder that learns has to see its clips again"
    model.encoder.requires_grad_(False)
    held = stages.seen_once(model, stream)
    assert len(held) == 8
    got, expected = held.__getitems__([5, 0, 2]), stream.__getitems__([5, 0, 2])
    X_v = stages.encode(model, splits["train"].frames[[5, 0, 2]])
    torch.testing.assert_close(got["X_v"], X_v, rtol=0, atol=1e-6)
    assert torch.equal(got["codes"], expected["codes"])
    assert torch.equal(got["weights"], expected["weights"])
    assert "frames" not in got
    assert torch.equal(held.first(2)["frames"], stream.first(2)["frames"])
    size = sum(held.arrays[k].nbytes for k in held.arrays)
    assert isinstance(stages.seen_once(model, stream, hold=size), Held)
    assert stages.seen_once(model, stream, hold=size - 1) is stream


def test_states_of_other_clips_lie_elsewhere(world):
    """A run on shards never goes on from the state of one on other clips."""
    p, folder, _, splits = world
    own = codec.load_codec(paths.checkpoints("tiny") / "codec")
    write_features(splits["val"], folder / "train2", p, shard_size=3, codec=own.sha256)
    keys = [ShardData(p, own, folder).keys]
    (folder / "train").rename(folder / "train1")
    (folder / "train2").rename(folder / "train")
    keys.append(ShardData(p, own, folder).keys)
    assert keys[0] != keys[1]
    assert all(len(k) == 2 and all(k) for k in keys)
    session = stages.Session(p, 0, "cpu", False, print)
    stage = Stage("vmas", 2, 4, 1e-3, 1)
    folders = {session.folder(p.train, stage, *stages.named(k[1])) for k in keys}
    assert len(folders | {session.folder(p.train, stage)}) == 3


def test_training_from_shards(world, tmp_path):
    _, folder, file, _ = world
    line = ["train", "--profile", str(file), "--data", str(folder), "-o", str(tmp_path / "model"), "--device", "cpu"]
    assert cli.main([*line, "-q", "--debug"]) == 0
    model = VMAs.from_pretrained(tmp_path / "model", codec=codec.load_codec(paths.checkpoints("tiny") / "codec"))
    training = json.loads((tmp_path / "model" / "manifest.json").read_text(encoding="utf-8"))["training"]
    assert [training[s]["steps"] for s in ("motion", "music", "vmas")] == [2, 2, 2]
    assert all(torch.isfinite(x).all() for x in model.parameters())
    assert 0 <= training["vmas"]["loader_share"] < 1


def test_a_published_stage_1_is_where_later_runs_start(world, tmp_path, monkeypatch):
    p, folder, _, _ = world
    own = codec.load_codec(paths.checkpoints("tiny") / "codec")
    monkeypatch.setattr(paths, "checkpoints", lambda _: tmp_path / "checkpoints")
    p = dataclasses.replace(p, train=dataclasses.replace(p.train, steps=1, freeze=("encoder",)))

    def trained(name: str, **kw):
        monkeypatch.setenv("VMAS_CACHE", str(tmp_path / name))  # as on another machine
        monkeypatch.setattr(stages, "the_codec", lambda _: own)
        data = ShardData(p, own, folder)
        out = stages.train_profile(p, 5, "cpu", tmp_path / name / "model", progress=False, data=data, **kw)
        return checkpoint.load(out)

    first, made = trained("one", publish=True)
    names = sorted(d.name.split("-")[0] for d in stages.published(p).iterdir())
    assert names == ["motion", "music"]
    monkeypatch.setattr(stages, "fit", _only_stage_2(stages.fit))
    for what in ("music", "motion"):
        monkeypatch.setattr(ShardData, what, lambda *_: pytest.fail("stage 1's data was asked for"))
    second, found = trained("two")
    assert found["training"]["motion"] == made["training"]["motion"]
    assert found["sha256"] == made["sha256"], "the run that published starts from what it published"
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_stage_2_belongs_to_its_stage_1_and_can_be_trained_anew(world, tmp_path, monkeypatch):
    p, folder, _, _ = world
    own = codec.load_codec(paths.checkpoints("tiny") / "codec")
    monkeypatch.setattr(paths, "checkpoints", lambda _: tmp_path / "checkpoints")
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(stages, "the_codec", lambda _: own)
    data = ShardData(p, own, folder)

    def trained(profile, **kw) -> dict:
        out = stages.train_profile(profile, 6, "cpu", tmp_path / "model", progress=False, data=data, **kw)
        return checkpoint.read_manifest(out)

    def states() -> dict:
        found = {d: (d / "states").stat() for d in (tmp_path / "train" / "tiny").glob("vmas-seed6-*")}
        return {d: (s.st_ino, s.st_mtime_ns) for d, s in found.items()}  # a file system may give a number out again

    first, before = trained(p), states()
    longer = dataclasses.replace(p, train=dataclasses.replace(p.train, pretrain_steps=p.train.pretrain_steps + 1))
    other = trained(longer)
    assert other["training"]["music"]["steps"] == p.train.pretrain_steps + 1
    assert len(states()) == 2, "the old stage 2 is not handed out for another stage 1"
    assert trained(p)["sha256"] == first["sha256"] != other["sha256"]
    assert before.items() <= states().items(), "finished: nothing is trained"
    assert trained(p, again=True)["sha256"] == first["sha256"], "trained anew, to the same bits"
    assert not before.items() <= states().items()


def _only_stage_2(fit):
    def checked(task, train, val, cfg, stage, *args, **kw):
        assert stage.name == "vmas", "stage 1 was trained again"
        return fit(task, train, val, cfg, stage, *args, **kw)

    return checked


def test_refusals_come_before_any_work(world, tmp_path, monkeypatch):
    p, folder, _, splits = world
    own = codec.load_codec(paths.checkpoints("tiny") / "codec")
    with pytest.raises(DataError, match="no folder train"):
        ShardData(p, own, tmp_path)
    with pytest.raises(DataError, match="seconds are"):
        ShardData(config.load("smoke", {**TINY, "clip": {"seconds": 2.5}}), own, folder)
    shutil.rmtree(folder / "val")
    with pytest.raises(DataError, match=r"no folder val.* again with --val N and --update"):
        ShardData(p, own, folder)
    write_features(splits["val"], folder / "val", p, shard_size=3)
    with pytest.raises(CheckpointError, match=r"val: does not say which codec its tokens are of"):
        ShardData(p, own, folder)


def test_tokens_of_another_codec_are_refused(world, tmp_path):
    """Of a set that the builder made, by either way that leads from shards to training."""
    p, first, _, _ = world
    one, other = tmp_path / "one", tmp_path / "other"
    for seed, root in enumerate((one, other)):
        torch.manual_seed(seed)
        codec.save_codec(root / "codec", codec.build_codec(p.codec))
    rows = [Video(f"v{i}", str(video(tmp_path / f"v{i}.mp4", i, seconds=2.0)), f"v{i}") for i in range(3)]
    chosen = Options(p, ("duplicates", "vocals", "genre"), val=1, checkpoints=str(one))
    made = build(rows, tmp_path / "built", chosen, workers=1, progress=False).out
    own, another = (codec.load_codec(root / "codec") for root in (one, other))
    assert ShardData(p, own, made).clips("train") == 2
    base = ShardData(p, codec.load_codec(paths.checkpoints("tiny") / "codec"), first)
    assert len(Further(base, p, own, made / "train", "key").vmas("train")) == 2
    with pytest.raises(CheckpointError, match="train: its tokens are of another codec"):
        ShardData(p, another, made)
    with pytest.raises(CheckpointError, match="train: its tokens are of another codec"):
        Further(base, p, another, made / "train", "key")


def test_paper_profile_asks_for_data_then_for_weights(world, tmp_path, monkeypatch):
    from vmas import pipeline

    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path / "none"))
    paper = config.load("paper")
    with pytest.raises(UsageError, match="--data"):
        pipeline.train(paper, progress=False)
    with pytest.raises(WeightsUnavailable):
        pipeline.train(paper, progress=False, data=world[1], device="cpu")
