"""Features of the procedural corpus as shards, so that the mini profile trains from the same files as the paper's."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vmas.config import Profile, sha256
from vmas.dataset import shards
from vmas.features import SplitFeatures

SHARD_SIZE = 256  # clips; 150 MB of the mini profile's frames


def write_features(split: SplitFeatures, out, profile: Profile, shard_size: int = SHARD_SIZE, codec: str = "") -> Path:
    """Write frames, tokens (where there are any), flow and beats of a split to the folder `out`; returns it.

    `codec` is the sha256 of the codec that the tokens are of, which training asks for.
    Row i of the index is row i of `split`. A folder that holds the same already stays as it is, so that a
    stopped run is simply given again. Raises DataError for a folder with other shards.
    """
    out = Path(out)
    describe = shards.describe(profile) | {
        "kind": "features",
        "samples": len(split),
        "shard_size": shard_size,
        "content": {k: _sha256(a) for k, a in _arrays(split).items()},
        "ids": sha256(split.ids),
    }
    if codec:
        describe["models"] = {shards.TOKENS: codec}
    if shards.begin(out, describe):
        return out
    done = []
    for i, start in enumerate(range(0, len(split), shard_size)):
        rows = range(start, min(start + shard_size, len(split)))
        done.append(shards.write_shard(out / shards.shard_name(i), _samples(split, rows)))
    shards.finish(out, done, describe)
    return out


def _arrays(split: SplitFeatures) -> dict:
    arrays = {"frames.npy": split.frames, "flow.npy": split.flow, "beats.npy": split.beats}
    return arrays if split.tokens is None else arrays | {"tokens.npy": split.tokens}


def _samples(split: SplitFeatures, rows) -> Iterator[dict]:
    known = split.manifest
    keep = [c for c in ("split", "index", "genre", "tempo_bpm", "caption") if c in known]
    for i in rows:
        meta = {"id": split.ids[i], **{c: _plain(known[c].iloc[i]) for c in keep}}
        yield {shards.KEY: split.ids[i], shards.JSON: meta, **{k: a[i] for k, a in _arrays(split).items()}}


def _sha256(array) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    for start in range(0, len(array), 64):  # a split may be larger than memory
        digest.update(array[start : start + 64].tobytes())
    return digest.hexdigest()


def _plain(x):
    return x.item() if hasattr(x, "item") else x
