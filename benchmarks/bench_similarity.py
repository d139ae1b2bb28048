"""Frame similarity of a long video: decoding everything, the pictures asked for, or keyframes alone.

    python benchmarks/bench_similarity.py [--minutes 10] [--clips 100] [--clip-s 65] [--repeats 2] [--clock cpu]
                                          [--json FILE]

Two questions. How much faster is looking at keyframes (what `vmas dataset build` does from one minute on) than
decoding the whole video: one video of `--minutes`, clips of the corpus in turn. And does it decide the same: `--clips`
clips of the corpus, a third of them static or nearly, each repeated to `--clip-s` seconds and encoded anew with
x264's default distance of keyframes (250 pictures, worse than most web videos have), each judged by all its pictures
at 1 a second and by the fast way. "auto" goes back to the asked pictures where there are fewer than 8 keyframes;
"keyframes" never does. Every method runs in one process on one thread and takes turns with the others; the best
repeat counts.
"""

import argparse
import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import figures
import numpy as np

from vmas import config, media
from vmas.corpus import sample_spec
from vmas.corpus.scene import render_frames
from vmas.dataset.frames import FPS, CheapEmbedder, sample_frames
from vmas.metrics.similarity import THRESHOLD, frame_similarity

SHARES = {"static_share": 0.17, "near_static_share": 0.17}
RATE = 24.0
LOOP = 118  # pictures of a clip that is repeated: one a second then shows others in every round
EMBED = CheapEmbedder()


def pictures(index: int) -> np.ndarray:
    cfg = dataclasses.replace(config.load("mini").corpus, **SHARES)
    return render_frames(sample_spec("val", index, cfg, 5.0))


def everything(path: Path) -> float:
    """What a plain reader does: decode and scale every picture, keep one a second."""
    step = round(RATE / FPS)
    frames = [f for i, f in enumerate(media.iter_frames(path, RATE, EMBED.size)) if i % step == 0]
    return frame_similarity(EMBED(np.stack(frames)))


def sampled(method: str) -> Callable[[Path], float]:
    return lambda path: frame_similarity(EMBED(sample_frames(path, EMBED.size, method=method)))


METHODS = {
    "everything": everything,
    "exact": sampled("exact"),
    "auto": sampled("auto"),
    "keyframes": sampled("keyframes"),
}


def speed(folder: Path, minutes: float, repeats: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    every = [pictures(i) for i in range(12)]
    need = round(minutes * 60 / 5)
    path = media.write_clip(folder / "long.mp4", np.concatenate([every[i % 12] for i in range(need)]), RATE)
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name in ("everything", "exact", "auto"):
            start = clock()
            score = METHODS[name](path)
            took = clock() - start
            best[name] = {"s": min(took, best.get(name, {"s": took})["s"]), "similarity": score}
    return best


def decisions(folder: Path, clips: int, seconds: float) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {n: [] for n in ("everything", "auto", "keyframes")}
    path = folder / "one.mp4"
    for i in range(clips):
        frames = pictures(i)[:LOOP]
        media.write_clip(path, np.tile(frames, (int(np.ceil(seconds * RATE / len(frames))), 1, 1, 1)), RATE)
        for name, found in scores.items():
            found.append(METHODS[name](path) if name != "keyframes" else _keyframes(path))
    return scores


def _keyframes(path: Path) -> float:
    frames = sample_frames(path, EMBED.size, method="keyframes")
    return frame_similarity(EMBED(frames)) if len(frames) > 1 else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--clip-s", type=float, default=65.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use too"
    )
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        times = speed(Path(folder), options.minutes, options.repeats, clock)
        print(f"one video of {options.minutes:g} min, {RATE:g} fps, {options.clock} clock, {platform.machine()}")
        for name, got in times.items():
            ratio = times["everything"]["s"] / got["s"]
            print(f"{name:11} {got['s']:7.2f} s  {ratio:6.1f} x  similarity {got['similarity']:.4f}", flush=True)
        scores = decisions(Path(folder), options.clips, options.clip_s)
    all_ = np.array(scores["everything"])
    print(f"{options.clips} clips of {options.clip_s:g} s; {np.mean(all_ >= THRESHOLD):.0%} left out by every picture")
    same = {}
    for name in ("auto", "keyframes"):
        one = np.array(scores[name])
        same[name] = float(np.mean((one < THRESHOLD) == (all_ < THRESHOLD)))
        worst = np.abs(one - all_).max()
        print(f"{name:11} same decision on {same[name]:.1%}, largest difference of the similarity {worst:.3f}")
    if options.json:
        for got in times.values():
            got["times_faster"] = times["everything"]["s"] / got["s"]
        about = {"minutes": options.minutes, "clock": options.clock}
        figures.write(
            options.json,
            {
                "speed": {**about, "methods": times},
                "decisions": {"clips": options.clips, "clip_s": options.clip_s, "same": same},
            },
        )


if __name__ == "__main__":
    main()
