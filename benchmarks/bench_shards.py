"""Clips a second that one core reads from shards on the local disk, beside plain WebDataset on the same files.

    python benchmarks/bench_shards.py [--clips 4000] [--seconds 3] [--folder DIR] [--json FILE]

The clips have the paper's arrays (tokens int16 [4,500], 95 flow values, P_a [500]) beside 200 kB that stand for the
video; with `--frames` the mini profile's pictures (uint8 [48,64,64,3]) instead. Batches of 8, one process, no
loader workers, torch on one thread, files in the page cache after a first pass. Goal: 500 clips/s of tokens.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import figures
import numpy as np
import torch

import vmas.dataset
from vmas import config
from vmas.dataset import shards

BATCH = 8


def write(folder: Path, clips: int, frames: bool) -> None:
    rng = np.random.default_rng(0)
    video = {"frames.npy": rng.integers(0, 256, (48, 64, 64, 3), np.uint8)} if frames else {"mp4": rng.bytes(200_000)}

    def sample(i):
        flow, beats = rng.random(95).astype(np.float32), rng.random(500) < 0.05
        tokens = rng.integers(0, 2048, (4, 500), np.int16)
        return {
            shards.KEY: f"c{i:07d}",
            "tokens.npy": tokens,
            "flow.npy": flow,
            "beats.npy": beats,
            shards.JSON: {"i": i},
            **video,
        }

    size = 500
    done = [
        shards.write_shard(folder / shards.shard_name(k), (sample(i) for i in range(s, min(s + size, clips))))
        for k, s in enumerate(range(0, clips, size))
    ]
    shards.finish(folder, done, shards.describe(config.load("paper")))


def rate(loader, seconds: float) -> float:
    """Clips a second, after a first pass over a few batches; the loader may end before the time does."""
    it = iter(loader)
    for _ in range(5):
        next(it)
    start, n = time.perf_counter(), 0
    for batch in it:
        n += len(next(iter(batch.values())))
        if time.perf_counter() - start > seconds:
            break
    return n / (time.perf_counter() - start)


def plain(folder: Path):
    """The same tokens by webdataset's own reader, which reads every byte of every shard."""
    import webdataset as wds

    files = [str(p) for p in sorted(folder.glob("*.tar"))]
    data = wds.WebDataset(files, shardshuffle=False, empty_check=False).decode().to_tuple("tokens.npy")
    for batch in data.batched(BATCH):
        yield {"codes": torch.from_numpy(np.stack(batch[0])).long()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write the shards; default: a temporary folder")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fields = {"tokens": ["codes"], "tokens + weights": ["codes", "weights"]}
    if args.frames:
        fields["frames + tokens + weights"] = ["frames", "codes", "weights"]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        write(folder, args.clips, args.frames)
        took, size = time.perf_counter() - start, sum(p.stat().st_size for p in folder.iterdir())
        print(f"wrote {args.clips} clips, {size / 1e6:.0f} MB, in {took:.1f} s ({size / 1e6 / took:.0f} MB/s)")
        out = {}
        for label, chosen in fields.items():
            start = time.perf_counter()
            source = vmas.dataset.open(folder, fields=chosen)
            opened = time.perf_counter() - start
            out[label] = rate(source.loader(BATCH, 0, 0, 10**9), args.seconds)
            print(f"{label:28} {out[label]:9.0f} clips/s   (opened in {opened:.2f} s)")
        out["webdataset, tokens"] = rate(plain(folder), args.seconds)
        print(f"{'webdataset, tokens':28} {out['webdataset, tokens']:9.0f} clips/s")
    print(json.dumps({k: round(v) for k, v in out.items()}))
    if args.json:
        ratio = out["tokens"] / out["webdataset, tokens"]
        found = {"clips": args.clips, "clips_per_s": out, "tokens against webdataset": ratio}
        figures.write(args.json, {"frames" if args.frames else "video": found})


if __name__ == "__main__":
    main()
