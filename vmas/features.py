"""Arrays of a corpus split, taken once from its mp4 files and kept on disk.

Frames at the profile's rate and size, the waveform, the flow magnitude at both frame rates and the
detected music beats P_a come from one pass over the files, in parallel and resumable; tokens follow
once a codec is there. Arrays are memory-mapped, so a split may be larger than memory. Every array is
in the order of the manifest. What is stored is a function of the profile, the corpus and
`FEATURES_VERSION`; a change of any of them makes it anew.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmas import paths
from vmas.config import Profile, sha256
from vmas.errors import DataError
from vmas.pools import cores, processes

if TYPE_CHECKING:
    import pandas as pd

FEATURES_VERSION = 1
CHUNK = 64  # clips between two marks of progress
INLINE = 16  # so few clips are not worth starting processes for


@dataclass(frozen=True)
class SplitFeatures:
    """One split. N clips, T frames, K codebooks, t_a token steps.

    `frames` uint8 [N,T,H,W,3]; `flow` float32 [N,T-1] and `dense_flow` [N,T'-1], mean magnitude in
    pixels per frame; `waveforms` int16 [N,samples]; `beats` bool [N,t_a] (P_a); `tokens` int16
    [N,K,t_a] or None when no codec was given; `genres` int [N]; `scenes` int16 [N,kinds], the place of what the
    picture shows in the corpus's SCENES; `manifest` the rows themselves.
    """

    ids: list[str]
    genres: np.ndarray
    manifest: "pd.DataFrame"
    frames: np.ndarray
    flow: np.ndarray
    dense_flow: np.ndarray
    waveforms: np.ndarray
    beats: np.ndarray
    scenes: np.ndarray
    tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def waveform(self, rows) -> np.ndarray:
        """float32 [n,samples] in [-1,1] of the given rows."""
        return self.waveforms[rows].astype(np.float32) / 32767.0


def _shapes(profile: Profile, n: int) -> dict[str, tuple[tuple[int, ...], type]]:
    clip = profile.clip
    dense = round(clip.seconds * clip.dense_fps)
    return {
        "frames": ((n, clip.num_frames, clip.img_size, clip.img_size, 3), np.uint8),
        "flow": ((n, clip.num_frames - 1), np.float32),
        "dense_flow": ((n, dense - 1), np.float32),
        "waveforms": ((n, clip.num_samples), np.int16),
        "beats": ((n, profile.num_tokens), np.bool_),
    }


def clip_features(path, profile: Profile, dense: bool = True) -> dict[str, np.ndarray]:
    """Features of one file, without the leading N. `dense=False` leaves the dense flow NaN (training clips)."""
    from vmas import media
    from vmas.beats import onset_vector
    from vmas.flow import flow_magnitude

    clip = profile.clip
    frames = media.read_frames(path, clip.fps, clip.img_size, duration_s=clip.seconds)
    small = frames
    if clip.flow_size != clip.img_size:
        small = media.read_frames(path, clip.fps, clip.flow_size, duration_s=clip.seconds)
    wav = media.read_audio(path, clip.sample_rate, duration_s=clip.seconds)[0]
    wav = np.pad(wav, (0, max(0, clip.num_samples - len(wav))))[: clip.num_samples]
    out = {
        "frames": frames,
        "flow": flow_magnitude(small, clip.flow_method, cache=False),
        "waveforms": np.round(np.clip(wav, -1, 1) * 32767).astype(np.int16),
        "beats": onset_vector(wav, clip.sample_rate, profile.codec.hop, profile.num_tokens),
        "dense_flow": np.full(round(clip.seconds * clip.dense_fps) - 1, np.nan, np.float32),
    }
    if dense:
        many = media.read_frames(path, clip.dense_fps, clip.flow_size, duration_s=clip.seconds)
        out["dense_flow"] = flow_magnitude(many, clip.flow_method, cache=False)
    return out


def _on_one_thread(path, profile: Profile, dense: bool) -> dict[str, np.ndarray]:
    """`clip_features` in a process that is one of several."""
    import cv2

    cv2.setNumThreads(1)
    return clip_features(path, profile, dense)


def _workers(count: int, clips: int, pool: Executor | None = None):
    """Processes for so many clips: `pool` where there is one already; None in their place where starting them would
    take longer than the work."""
    if pool is not None or clips <= INLINE:
        return contextlib.nullcontext(pool)
    return processes(min(count, clips))


def _key(profile: Profile, split: str) -> str:
    from vmas.corpus import data_sha256

    clip = dataclasses.asdict(profile.clip)
    return sha256(FEATURES_VERSION, data_sha256(profile), clip, profile.codec.hop, split)


def build_split(
    profile: Profile, split: str, workers: int | None = None, progress: bool = True, pool: Executor | None = None
) -> Path:
    """Make (or finish) the arrays of one split from its mp4 files; returns their folder.

    `pool` are processes that are there already, which spares the start of `workers` others. Raises DataError when the
    corpus of the split is not there.
    """
    from tqdm.auto import tqdm

    from vmas.corpus import load_manifest

    folder = paths.features(profile.name) / split
    key = _key(profile, split)
    state = folder / "state.json"
    corpus = paths.corpus(profile.name)
    rows = load_manifest(corpus)
    rows = rows[rows["split"] == split]
    if not len(rows):
        raise DataError(f"{corpus}: no clips of split {split!r}; run 'vmas corpus make --profile {profile.name}'")
    files = [corpus / p for p in rows["path"]]
    done = 0
    if state.is_file():
        kept = json.loads(state.read_text(encoding="utf-8"))
        done = kept["done"] if kept.get("key") == key and kept.get("total") == len(files) else 0
        if done == len(files):
            return folder
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, (shape, dtype) in _shapes(profile, len(files)).items():
        target = folder / f"{name}.npy"
        mode = "r+" if done and target.is_file() else "w+"
        arrays[name] = np.lib.format.open_memmap(target, mode=mode, dtype=dtype, shape=shape)
    workers = workers or cores()
    hide = None if progress else True
    bar = tqdm(total=len(files), initial=done, desc=f"features {split}", unit="clip", disable=hide)
    with _workers(workers, len(files) - done, pool) as pool, bar:
        work = partial(_on_one_thread if pool else clip_features, profile=profile, dense=split != "train")
        for start in range(done, len(files), CHUNK):
            batch = files[start : start + CHUNK]
            found = pool.map(work, batch, chunksize=4) if pool else map(work, batch)
            for i, got in enumerate(found, start):
                for name, value in got.items():
                    arrays[name][i] = value
                bar.update()
            for a in arrays.values():
                a.flush()
            _write_json(state, {"key": key, "done": start + len(batch), "total": len(files)})
    return folder


def build_tokens(profile: Profile, split: str, codec, progress: bool = True) -> Path:
    """Encode the waveforms of one split to tokens int16 [N,K,t_a]; kept per codec (its weights' sha256)."""
    import torch
    from tqdm.auto import tqdm

    folder = paths.features(profile.name) / split
    out = folder / f"tokens-{codec.sha256[:16]}.npy"
    key = _key(profile, split)
    mark = out.with_suffix(".json")
    if out.is_file() and mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == {"key": key}:
        return out
    waves = np.load(folder / "waveforms.npy", mmap_mode="r")
    tokens = np.empty((len(waves), codec.n_q, profile.num_tokens), np.int16)
    device = next(codec.parameters()).device
    with torch.inference_mode():
        for i in tqdm(range(0, len(waves), CHUNK), desc=f"tokens {split}", disable=None if progress else True):
            wav = torch.from_numpy(waves[i : i + CHUNK].astype(np.float32) / 32767.0)[:, None].to(device)
            tokens[i : i + CHUNK] = codec.encode(wav)[..., : profile.num_tokens].cpu().numpy()
    aside = out.with_name(f".{out.name}")
    np.save(aside, tokens)
    os.replace(aside, out)
    _write_json(mark, {"key": key})
    return out


def _render(index: int, profile: Profile) -> np.ndarray:
    """Waveform float32 [samples] of clip `index` of the corpus's music alone."""
    from vmas.corpus import sample_spec
    from vmas.corpus.sound import render_audio

    clip = profile.clip
    wav = render_audio(sample_spec("music", index, profile.corpus, clip.seconds), clip.sample_rate)
    return np.pad(wav, (0, max(0, clip.num_samples - len(wav))))[: clip.num_samples]


def render_music(
    profile: Profile, first: int = 0, workers: int | None = None, progress: bool = True
) -> Iterator[tuple[range, np.ndarray]]:
    """The corpus's music without pictures from clip `first` on, some at a time: their numbers, float32 [n,samples]."""
    from tqdm.auto import tqdm

    total = profile.corpus.music
    bar = tqdm(total=total, initial=first, desc="music", unit="clip", disable=None if progress else True)
    render = partial(_render, profile=profile)
    with _workers(workers or cores(), total - first) as pool, bar:
        for start in range(first, total, CHUNK):
            some = range(start, min(start + CHUNK, total))
            yield some, np.stack(list(pool.map(render, some, chunksize=8) if pool else map(render, some)))
            bar.update(len(some))


def load_music(profile: Profile, codec, workers: int | None = None, progress: bool = True) -> np.ndarray:
    """Tokens int16 [corpus.music,K,t_a] of further music without pictures, rendered here and kept per codec.

    For the decoder's first stage only (it stands for MusicGen's weights, which were trained on music alone).
    An interrupted call is resumed.
    """
    import torch

    total, clip = profile.corpus.music, profile.clip
    folder = paths.features(profile.name) / "music"
    out = folder / f"tokens-{codec.sha256[:16]}.npy"
    state, key = out.with_suffix(".json"), _key(profile, "music")
    kept = json.loads(state.read_text(encoding="utf-8")) if state.is_file() and out.is_file() else {}
    done = kept["done"] if (kept.get("key"), kept.get("total")) == (key, total) else 0
    folder.mkdir(parents=True, exist_ok=True)
    shape = (total, codec.n_q, profile.num_tokens)
    tokens = np.lib.format.open_memmap(out, mode="r+" if done else "w+", dtype=np.int16, shape=shape)
    device = next(codec.parameters()).device
    with torch.inference_mode():
        for some, waves in render_music(profile, done, workers, progress):
            wav = torch.from_numpy(waves[:, None, : clip.num_samples]).to(device)
            tokens[some.start : some.stop] = codec.encode(wav)[..., : profile.num_tokens].cpu().numpy()
            tokens.flush()
            _write_json(state, {"key": key, "done": some.stop, "total": total})
    return np.load(out, mmap_mode="r")


def load_split(
    profile: Profile, split: str, codec=None, progress: bool = True, pool: Executor | None = None
) -> SplitFeatures:
    """Arrays of a split, made first where they are missing (by `pool`, or by processes started for it); with a codec
    also its tokens."""
    from vmas.corpus import GENRES, SCENES, load_manifest

    folder = build_split(profile, split, progress=progress, pool=pool)
    rows = load_manifest(paths.corpus(profile.name))
    rows = rows[rows["split"] == split].reset_index(drop=True)
    loaded = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _shapes(profile, 0)}
    tokens = None
    if codec is not None:
        tokens = np.load(build_tokens(profile, split, codec, progress), mmap_mode="r")
    genres = rows["genre"].map({g: i for i, g in enumerate(GENRES)}).to_numpy(dtype=np.int64)
    scenes = np.stack([rows[k].map({n: i for i, n in enumerate(v)}) for k, v in SCENES.items()], 1).astype(np.int16)
    return SplitFeatures(list(rows["id"]), genres, rows, scenes=scenes, tokens=tokens, **loaded)


def _write_json(path: Path, data: dict) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(data), encoding="utf-8")
    os.replace(aside, path)
