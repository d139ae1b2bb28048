"""The dataset builder: speed per stage, one process against two, memory as the dataset grows, clips read.

    python benchmarks/bench_dataset.py [--only rates workers memory prints tokens] [--json FILE] [--videos 8]
                                       [--sizes 1000 20000] [--processes 1 2] [--tokens 4000]

rates    Video of 640 x 360 pixels and the paper's clips (without tokens, flow of Farneback), and videos of the
         procedural corpus (64 pixels, the mini profile's clips, its tagger and codec), one process: hours of video per
         core-hour for every stage.
workers  The corpus videos with one process and with two, in turn, after a first video that no one counts, and the ratio
         of the best wall times (goal: 1.8 on two idle cores).
memory   Datasets of tiny clips, cut from one file whose rows repeat: peak memory of driver and of the largest worker
         at each size (goal: within 10% of each other). With `--processes 1` all of it is in the driver.
prints   Random fingerprints (60 pictures and a minute of sound a video) put away and compared, `--sizes` videos: most
         memory that is not a file's, and seconds (what grows with the videos beside the manifest).
tokens   Clips of tokens that one core reads (goal: 500 a second); `bench_shards.py` compares with other readers.

On a machine that others use, the wall times of `workers` are not worth reading; how many cores were busy is printed
beside them. `--json` keeps what other parts wrote to the file before.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import figures
import psutil

from vmas import config, media
from vmas.dataset.build import TIMINGS, build
from vmas.dataset.manifest import Video
from vmas.dataset.stages import OPTIONAL, Options

PARTS = ("rates", "workers", "memory", "prints", "tokens")
SECONDS = 30.0  # of a corpus video
REPEATS = 2
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


def busy() -> float:
    """Seconds that this machine's cores were busy, since it was started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def rates(folder: Path, n: int) -> dict:
    import numpy as np

    mini, paper = config.load("mini"), config.load("paper", {"clip": {"flow_method": "farneback"}})
    videos = corpus(folder, n)
    small = np.stack([f for v in videos for f in media.iter_frames(v.path, 24.0, 64)])
    big = small.repeat(6, 1)[:, 12:372].repeat(10, 2)
    wav = np.concatenate([media.read_audio(v.path, 32000) for v in videos], axis=1)
    path = media.write_clip(folder / "big.mp4", big, 24.0, wav, 32000)
    runs = {
        "640 x 360, paper's clips": ([Video("big", str(path), "big")], Options(paper, ("genre", "tokens"), math.inf)),
        "64 x 64, mini": (videos, Options(mini, ("duplicates",), math.inf, shard_size=4)),
    }
    out = {}
    for name, (rows, options) in runs.items():
        done = build(rows, folder / f"rates-{options.profile.name}", options, workers=1, progress=False)
        timings = json.loads((done.out / TIMINGS).read_text())
        print(f"{name}: {timings['video_hours'] * 60:.1f} min looked at, {timings['made_hours'] * 60:.1f} min of clips")
        print(f"{'stage':12} {'s':>8} {'video-hours per core-hour':>26}")
        for stage, rate in timings["video_hours_per_core_hour"].items():
            print(f"{stage:12} {timings['seconds'][stage]:8.2f} {rate:26.1f}")
        out[name] = timings
    return out


def workers(folder: Path, n: int) -> dict:
    videos = corpus(folder, n)
    options = Options(config.load("mini"), skip=("duplicates",), threshold=math.inf, shard_size=4)
    build(videos[:1], folder / "first", options, workers=1, progress=False)  # what is compiled once is compiled now
    walls: dict[int, list[float]] = {1: [], 2: []}
    shares: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(REPEATS):
        for k in (1, 2):
            start, used = time.perf_counter(), busy()
            build(videos, folder / f"out{k}-{turn}", options, workers=k, progress=False)
            walls[k].append(time.perf_counter() - start)
            shares[k].append((busy() - used) / walls[k][-1] / k)
            print(f"{k} processes: {walls[k][-1]:7.1f} s, {k * shares[k][-1]:.2f} cores busy", flush=True)
    best = [min(walls[k]) for k in (1, 2)]
    print(f"1 → 2 processes: {best[0] / best[1]:.2f} x, the best of {REPEATS} each, start of the second pool included")
    return {"videos": n, "wall_s": walls, "share_of_core": shares, "speed_up": best[0] / best[1]}


def one_size(folder: Path, clips: int, processes: int) -> None:
    """In a process of its own: peak memory in MB of this driver and of its largest worker, as JSON."""
    profile = config.load("smoke", TINY)
    rows = [Video(f"r{i}", str(folder / "tiny.mp4"), f"r{i}") for i in range(-(-clips // TINY_S))]
    options = Options(profile, skip=OPTIONAL, shard_size=100)
    with Most(largest_child, 0.2) as workers:
        done = build(rows, folder / f"tiny{clips}", options, workers=processes, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([sum(done.kept.values()), peak, workers.mb]))


class Most(threading.Thread):
    """While the `with` block runs: the most MB that `read` gave, asked every `every` seconds."""

    def __init__(self, read: Callable[[], float], every: float):
        super().__init__(daemon=True)
        self.read, self.every, self.mb, self.over = read, every, 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.mb = max(self.mb, self.read())

    def __enter__(self) -> "Most":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self.join()


def largest_child() -> float:
    """MB of its own (USS) that the largest process begun by this one has."""
    most = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            most = max(most, process.memory_full_info().uss / 2**20)
    return most


def anonymous() -> float:
    """MB of this process that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def child(folder: Path, *args) -> list[float]:
    """What this script prints last, as JSON, in a process of its own with these arguments."""
    line = [sys.executable, __file__, "--folder", str(folder), *map(str, args)]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


def memory(folder: Path, sizes: list[int], processes: list[int]) -> dict:
    import numpy as np

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (TINY_S * 8, 16, 16, 3), np.uint8)
    media.write_clip(folder / "tiny.mp4", frames, 8, rng.normal(0, 0.1, (1, TINY_S * 32000)).astype(np.float32), 32000)
    return {str(k): _memory(folder, sizes, k) for k in processes}


def _memory(folder: Path, sizes: list[int], processes: int) -> dict:
    print(f"{processes} processes\n{'clips':>8} {'driver, MB':>12} {'worker, MB':>12}")
    out = []
    for n in sizes:
        start = time.perf_counter()
        kept, driver, worker = child(folder, "--one-size", n, "--processes", processes)
        print(f"{kept:8d} {driver:12.1f} {worker:12.1f}", flush=True)
        out.append({"clips": kept, "driver_mb": driver, "worker_mb": worker, "wall_s": time.perf_counter() - start})
        shutil.rmtree(folder / f"tiny{n}")
    first, last = out[0], out[-1]
    growth = {k: last[k] / first[k] for k in ("driver_mb", "worker_mb") if first[k]}
    print(
        ", ".join(f"{k[:-3]} at {last['clips']} clips: {g:.3f} of that at {first['clips']}" for k, g in growth.items())
    )
    return {"sizes": out, "growth": growth}


def one_comparison(folder: Path, videos: int) -> None:
    """In a process of its own: peak memory in MB and seconds of comparing `videos`, as JSON."""
    import numpy as np

    from vmas.dataset import dedupe
    from vmas.dataset.fingerprints import MARGINS, Prints, Shelf

    rng, start = np.random.default_rng(0), time.perf_counter()
    with Most(anonymous, 0.02) as most, contextlib.closing(Shelf(folder)) as shelf:
        for i in range(videos):
            hashes = rng.integers(1, 2**63, (60, 1 + len(MARGINS)), np.uint64)
            words = rng.integers(1, 2**32, 960, np.uint32)
            shelf.put(str(i), Prints(np.arange(60, dtype=np.uint32), hashes[:, 0], words, hashes[:, 1:]).pack())
        known = [dedupe.Known(str(i), "", "", shelf) for i in range(videos)]
        duplicates, _ = dedupe.compare(known, folder)
    assert not duplicates
    print(json.dumps([most.mb, time.perf_counter() - start]))


def prints(folder: Path, sizes: list[int]) -> dict:
    out = []
    print(f"{'videos':>8} {'MB':>8} {'s':>8}")
    for n in sizes:
        mb, seconds = child(folder, "--one-comparison", n)
        print(f"{n:8d} {mb:8.1f} {seconds:8.1f}", flush=True)
        out.append({"videos": n, "anonymous_mb": mb, "wall_s": seconds})
    return {"sizes": out}


def tokens(folder: Path, clips: int) -> dict:
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
    return {"clips_per_s": per_s, "share_of_core": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--videos", type=int, default=8, help="of the corpus, for rates and workers")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 20000], help="clips, for memory")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="for memory")
    parser.add_argument("--tokens", type=int, default=4000, help="clips, for tokens")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-comparison", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_size:
        return one_size(args.folder, args.one_size, args.processes[0])
    if args.one_comparison:
        return one_comparison(args.folder, args.one_comparison)
    measure = {
        "rates": lambda folder: rates(folder, args.videos),
        "workers": lambda folder: workers(folder, args.videos),
        "memory": lambda folder: memory(folder, args.sizes, args.processes),
        "prints": lambda folder: prints(folder, args.sizes),
        "tokens": lambda folder: tokens(folder, args.tokens),
    }
    for part in args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = measure[part](Path(folder))
        if args.json:
            figures.write(args.json, {part: found})


if __name__ == "__main__":
    main()
