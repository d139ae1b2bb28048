"""The dataset builder: speed per stage, with one process and with two, and memory as the dataset grows.

    python benchmarks/bench_dataset.py [--videos 8] [--memory 1000 20000] [--tokens 4000]

1. Videos of the procedural corpus (30 s, 64 pixels, the mini profile's clips) are built with one process and with
   two: hours of video per core-hour for every stage, and the ratio of the wall times (goal: 1.8 on two idle cores).
2. Datasets of tiny clips, cut from one file whose rows repeat: peak memory of the driver and of the largest worker
   at each size (goal: within 10% of each other).
3. Clips of tokens that one core reads (goal: 500 a second); `bench_shards.py` compares with other readers.

What a stage takes is CPU-bound; on a machine that others use, the wall times of (1) are not worth reading, and the
two shares of the machine that the processes got are printed beside them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from vmas import config, media
from vmas.dataset.build import TIMINGS, build
from vmas.dataset.manifest import Video
from vmas.dataset.stages import OPTIONAL, Options

SECONDS = 30.0  # of a corpus video
TINY = {"clip": {"seconds": 1.0, "img_size": 16, "flow_size": 16}}
TINY_S = 40  # length of the file that tiny clips are cut from


def corpus(folder: Path, n: int) -> list[Video]:
    from vmas.corpus import render_clip

    cfg, out = config.load("mini").corpus, []
    for i in range(n):
        _, frames, wav = render_clip(f"train-{i:05d}", cfg, SECONDS, 32000)
        path = media.write_clip(folder / f"v{i}.mp4", frames, cfg.fps, wav[None], 32000)
        out.append(Video(f"v{i}", str(path), f"v{i}"))
    return out


def cpu() -> float:
    """CPU seconds of this process and of those it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def speed(folder: Path, n: int) -> None:
    videos, options = corpus(folder, n), Options(config.load("mini"), skip=("duplicates",), threshold=1.1, shard_size=4)
    walls = []
    for workers in (1, 2):
        start, used = time.perf_counter(), cpu()
        done = build(videos, folder / f"out{workers}", options, workers=workers, progress=False)
        walls.append(time.perf_counter() - start)
        share = (cpu() - used) / walls[-1] / workers
        print(f"{workers} processes: {walls[-1]:7.1f} s, each on {share:.0%} of a core")
        if workers == 1:
            timings = json.loads((done.out / TIMINGS).read_text())
            print(f"{'stage':12} {'s':>8} {'video-hours per core-hour':>26}")
            for stage, s in timings["seconds"].items():
                print(f"{stage:12} {s:8.2f} {timings['clip_hours'] * 3600 / max(s, 1e-9):26.1f}")
    print(f"1 → 2 processes: {walls[0] / walls[1]:.2f} x, start of the second pool included")


def one_size(folder: Path, clips: int) -> None:
    """In a process of its own: peak memory in MB of this driver and of its largest worker, as JSON."""
    profile = config.load("smoke", TINY)
    rows = [Video(f"r{i}", str(folder / "tiny.mp4"), f"r{i}") for i in range(-(-clips // TINY_S))]
    options = Options(profile, skip=OPTIONAL, shard_size=100)
    done = build(rows, folder / f"tiny{clips}", options, workers=2, progress=False)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peaks = [resource.getrusage(k).ru_maxrss / 1024 for k in kinds]
    print(json.dumps([sum(done.kept.values()), *peaks]))


def memory(folder: Path, sizes: list[int]) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (TINY_S * 8, 16, 16, 3), np.uint8)
    media.write_clip(folder / "tiny.mp4", frames, 8, rng.normal(0, 0.1, (1, TINY_S * 32000)).astype(np.float32), 32000)
    print(f"{'clips':>8} {'driver, MB':>12} {'worker, MB':>12}")
    for n in sizes:
        line = [sys.executable, __file__, "--one-size", str(n), "--folder", str(folder)]
        said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        kept, driver, worker = json.loads(said.splitlines()[-1])
        print(f"{kept:8d} {driver:12.1f} {worker:12.1f}")


def tokens(folder: Path, clips: int) -> None:
    import torch
    from bench_shards import BATCH, rate, write

    import vmas.dataset

    torch.set_num_threads(1)
    (folder / "tokens").mkdir()
    write(folder / "tokens", clips, frames=False)
    source = vmas.dataset.open(folder / "tokens", fields=["codes"])
    loader = source.loader(BATCH, 0, 0, 10 * (clips // BATCH))
    used, start = time.process_time(), time.perf_counter()
    per_s = rate(loader, 3.0)
    share = (time.process_time() - used) / (time.perf_counter() - start)
    print(f"vmas.dataset.open: {per_s:.0f} clips/s of tokens on {share:.0%} of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8, help="0 leaves part 1 out")
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 20000], help="clips; none leaves part 2 out")
    parser.add_argument("--tokens", type=int, default=4000, help="clips; 0 leaves part 3 out")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_size:
        return one_size(args.folder, args.one_size)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        if args.videos:
            speed(folder, args.videos)
        if args.memory:
            memory(folder, args.memory)
        if args.tokens:
            tokens(folder, args.tokens)


if __name__ == "__main__":
    main()
