"""Small videos, checkpoints and options for the tests of the dataset builder."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from vmas import config, media, paths
from vmas.codec import build_codec, save_codec
from vmas.corpus import GENRES
from vmas.dataset.build import build
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options
from vmas.embedders.tagger import MiniTagger, TaggerConfig, save_tagger

FPS, SIZE, RATE = 12, 64, 32000
FAST = ("vocals", "genre", "tokens", "beats")  # left out of most builds
EVERY = ("similarity", "duplicates", *FAST)
OUTSIDE = ("timings.json", ".build")  # what may differ from run to run
PROFILE = config.load(
    "smoke",
    {
        "clip": {"seconds": 1.5, "img_size": 32, "flow_size": 32},
        "codec": {"dim": 8, "width": 8, "blocks": 1, "n_mels": 20, "bins": 16},
    },
)

TINY = {
    "name": "tiny",
    "clip": {"seconds": 2.5},
    "corpus": {"train": 32, "val": 4, "test": 4, "shifted": 4},
    "codec": {"train_steps": 2, "dim": 8, "width": 8, "blocks": 1, "n_mels": 20, "bins": 16},
    "encoder": {"motion_steps": 2, "motion_batch": 4},
    "train": {"steps": 2, "pretrain_steps": 2, "batch_size": 4, "warmup_steps": 1, "val_every": 1},
    "eval": {"bootstrap": 50, "tagger_steps": 2, "sampling_seeds": 1, "sweep_sampling_seeds": 1},
}


def pictures(seed: int, seconds: float = 4.0, still: bool = False) -> np.ndarray:
    """A new picture twice a second, or one for all of the time: uint8 [T,64,64,3]."""
    rng = np.random.default_rng([seed, 0])
    n = round(seconds * FPS)
    shots = 1 if still else n * 2 // FPS + 1
    coarse = rng.integers(0, 256, (shots, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return coarse[np.zeros(n, int) if still else np.arange(n) * 2 // FPS]


def music(seed: int, seconds: float = 4.0) -> np.ndarray:
    """Chords of decaying tones every half second, float32 [1,N]."""
    rng = np.random.default_rng([seed, 1])
    t = np.arange(round(seconds * RATE)) / RATE
    wav = np.zeros_like(t)
    for start in np.arange(rng.uniform(0, 0.4), seconds, 0.5):
        since = np.clip(t - start, 0, None)
        for hertz in rng.uniform(150, 4000, 3):
            wav += (t >= start) * np.exp(-6 * since) * np.sin(2 * np.pi * hertz * since)
    return (0.4 * wav / np.abs(wav).max()).astype(np.float32)[None]


def video(path: Path, seed: int, seconds: float = 4.0, still=False, silent=False, sound: int | None = None) -> Path:
    wav = music(seed if sound is None else sound, seconds)
    return media.write_clip(path, pictures(seed, seconds, still), FPS, 0 * wav if silent else wav, RATE)


def folder_of_videos(folder: Path, n: int = 7) -> Path:
    """`n` good videos, one still, one silent, one without sound, one missing, one too short, one copy of v1; their
    manifest."""
    rows = []
    for i in range(n):
        video(folder / f"v{i}.mp4", i)
        rows.append({"id": f"v{i}", "path": f"v{i}.mp4", "artist": "a", "track": f"song {i}"})
    video(folder / "still.mp4", 50, still=True)
    video(folder / "silent.mp4", 51, silent=True)
    media.write_clip(folder / "mute.mp4", pictures(52), FPS)
    video(folder / "short.mp4", 53, seconds=1.0)
    (folder / "copy.mp4").write_bytes((folder / "v1.mp4").read_bytes())
    rows += [{"id": k, "path": f"{k}.mp4"} for k in ("still", "silent", "mute", "short", "copy", "missing")]
    table = pd.DataFrame(rows).fillna("").assign(source="test", licence="CC0")
    table.to_csv(folder / "videos.csv", index=False)
    return folder / "videos.csv"


def checkpoints(folder: Path) -> Path:
    """An untrained codec and tagger."""
    torch.manual_seed(0)
    save_codec(folder / "codec", build_codec(PROFILE.codec))
    save_tagger(folder / "tagger", MiniTagger(TaggerConfig(RATE, 32, 1024, 512, 4, GENRES)).eval())
    return folder


def options(root: Path, **changes) -> Options:
    plain = Options(PROFILE, checkpoints=str(root), shard_size=3, skip=("vocals",))
    return dataclasses.replace(plain, **changes)


def make(videos: list[Video], out: Path, root: Path, **changes):
    """A build in this process without the slow stages."""
    skip = changes.pop("skip", FAST)
    update = changes.pop("update", False)
    return build(videos, out, options(root, skip=skip, **changes), workers=1, progress=False, update=update)


def content(out: Path) -> dict[str, bytes]:
    """The files of a built dataset by name, without those of `OUTSIDE`."""
    files = (p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in files if not {*p.relative_to(out).parts} & {*OUTSIDE}}


def broken(folder: Path, videos: list[Video], n: int) -> list[Video]:
    """`videos` with `n` files that are no media added."""
    out = list(videos)
    for i in range(n):
        path = folder / f"bad{i}.mp4"
        path.write_bytes(b"no video" * 100)
        out.append(Video(f"bad{i}", str(path), f"bad{i}"))
    return out


@contextlib.contextmanager
def tiny_world(root: Path):
    """A profile in which a training takes seconds, and its file; with an untrained codec and tagger in a cache of its
    own."""
    p = config.load("smoke", TINY)
    file = root / "tiny.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(p)))), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMAS_CACHE", str(root / "cache"))
        patch.setenv("VMAS_RESULTS", str(root / "results"))
        checkpoints(paths.checkpoints("tiny"))
        yield config.load(str(file)), file
