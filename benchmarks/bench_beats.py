# ruff: noqa: E402 (the number of threads is fixed before numpy is imported)
"""Beat weights P_av (eq. 3) of 10 s clips: onsets, flow and eq. 3, on one core, decoding excluded.

    python benchmarks/bench_beats.py [--clips 6] [--runs 3] [--json FILE]

For each flow method: the real-time factor (seconds of clip per second of work) of this project's code and of a
plain implementation on the same frames (Farneback at the video's own size, eq. 3 in Python loops), then two
checks of the result: eq. 3 equal to the plain loops on the same flow, and the share of beats that lie within one
video frame of a beat of the plain implementation (recall) and the other way round (precision).
"""

import argparse
import os
import statistics
import time
from itertools import pairwise

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
import cv2
import figures
import librosa
import numpy as np

from vmas import config
from vmas.beats import BeatOptions, align, onset_vector
from vmas.corpus import render_clip
from vmas.flow import flow_magnitude

SECONDS, FPS, RATE, HOP, TOKENS = 10.0, 9.6, 32000, 640, 500


def clip(index: int, size: int):
    """Frames uint8 [96,size,size,3] at 9.6 fps, the same at the corpus's own size, and the waveform."""
    cfg = config.load("mini").corpus
    _, full, wav = render_clip(f"val-{index:05d}", cfg, SECONDS, RATE)
    full = full[np.minimum(np.round(np.arange(96) * cfg.fps / FPS).astype(int), len(full) - 1)]
    small = np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in full])
    return small, full, wav


def ours(frames: np.ndarray, wav: np.ndarray, method: str, options: BeatOptions):
    flow = flow_magnitude(frames, method, cache=False)
    return flow, align(flow, onset_vector(wav, RATE, HOP, TOKENS), FPS, 50.0, options)


def plain_flow(frames: np.ndarray) -> list[float]:
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    out = []
    for a, b in pairwise(grey):
        f = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        out.append(float(np.sqrt(f[..., 0] ** 2 + f[..., 1] ** 2).mean()))
    return out


def plain_weights(flow, wav: np.ndarray, options: BeatOptions):
    """Section 4.4 in loops, with the default reading of the open choices."""
    strength = librosa.onset.onset_strength(y=wav, sr=RATE, hop_length=HOP, n_fft=2048)
    onsets = {
        int(t) for t in librosa.onset.onset_detect(onset_envelope=strength, sr=RATE, hop_length=HOP) if t < TOKENS
    }
    O = [np.float32(np.interp(t / 50.0, [(i + 1) / FPS for i in range(len(flow))], flow)) for t in range(TOKENS)]
    d = options.delta
    windows = [O[max(0, t - d) : t + d + 1] for t in range(TOKENS)]
    top = [O[t] == max(windows[t]) for t in range(TOKENS)]
    first = [top[t] and not (t > 0 and top[t - 1] and O[t] == O[t - 1]) for t in range(TOKENS)]
    P_v = [first[t] and O[t] > min(windows[t]) and O[t] > 0 for t in range(TOKENS)]
    P_av = [
        1.0 if P_v[t] and any(j in onsets for j in range(max(0, t - d), min(TOKENS, t + d + 1))) else options.alpha
        for t in range(TOKENS)
    ]
    return np.array(P_v), np.array(P_av, np.float32)


def seconds(work, runs: int) -> float:
    """CPU seconds of the one thread; equal to wall time on an idle core, and fair on a busy one."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def near(found: np.ndarray, wanted: np.ndarray) -> tuple[int, int]:
    """How many of `found` lie within one video frame of one of `wanted`, and how many there are (token indices)."""
    if not len(found):
        return 0, 0
    if not len(wanted):
        return 0, len(found)
    gap = np.abs(found[:, None] - wanted[None]).min(1)
    return int((gap <= round(50 / FPS)).sum()), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    profile = config.load("mini")
    options = BeatOptions.from_config(profile.align)
    size = profile.clip.flow_size
    clips = [clip(i, size) for i in range(args.clips)]
    ours(*clips[0][::2], "farneback", options)  # compiles librosa's kernels

    def plain(full, wav):
        return plain_weights(plain_flow(full), wav, options)

    slow = statistics.median(seconds(lambda f=full, w=wav: plain(f, w), args.runs) for _, full, wav in clips)
    reference = [plain(full, wav) for _, full, wav in clips]
    onsets = statistics.median(
        seconds(lambda w=wav: onset_vector(w, RATE, HOP, TOKENS), args.runs) for *_, wav in clips
    )
    print(f"{args.clips} clips of {SECONDS:g} s, {FPS} fps, one thread; CPU time, median of {args.runs} runs")
    print(
        f"{'':32} {'s/clip':>8} {'x real time':>12} {'vs plain':>9} {'eq. 3 equal':>12} {'recall':>7} {'precision':>10}"
    )
    print(f"{f'plain, farneback, {clips[0][1].shape[1]} px':32} {slow:8.3f} {SECONDS / slow:12.1f} {1:9.1f}")
    for method in ("farneback", "dis"):
        took = statistics.median(
            seconds(lambda f=frames, w=wav, m=method: ours(f, w, m, options), args.runs) for frames, _, wav in clips
        )
        equal, recall, precision = True, np.zeros(2, int), np.zeros(2, int)
        for (frames, _, wav), (beats, _) in zip(clips, reference, strict=True):
            flow, got = ours(frames, wav, method, options)
            P_v, P_av = plain_weights(flow, wav, options)
            equal &= np.array_equal(P_v, got.P_v) and np.array_equal(P_av, got.P_av)
            recall += near(np.flatnonzero(beats), np.flatnonzero(got.P_v))
            precision += near(np.flatnonzero(got.P_v), np.flatnonzero(beats))
        print(
            f"{f'vmas, {method}, {size} px':32} {took:8.3f} {SECONDS / took:12.1f} {slow / took:9.1f} {equal!s:>12}"
            f" {recall[0] / max(1, recall[1]):7.3f} {precision[0] / max(1, precision[1]):10.3f}"
        )
        if args.json:
            found = {"recall": recall[0] / max(1, recall[1]), "precision": precision[0] / max(1, precision[1])}
            speed = {"seconds_per_clip": took, "real_time": SECONDS / took, "over_plain": slow / took}
            figures.write(args.json, {method: {**speed, "eq3_equal": bool(equal), **found, "clips": args.clips}})
    print(f"of which onsets {onsets:.3f} s; required: 20 x real time")


if __name__ == "__main__":
    main()
