"""FAD of 2 x 10,000 embeddings of 128 dimensions, against scipy's matrix root, in one run.

    python benchmarks/bench_fad.py [--n 10000] [--dim 128] [--runs 5] [--json FILE]

Prints median wall and CPU seconds of the whole (statistics of both sides and the distance), of the same by
`scipy.linalg.sqrtm` as the usual packages do it, both values, and the cost of FAD-inf and of an interval.
"""

import argparse
import statistics
import time

import figures
import numpy as np
import scipy.linalg

from vmas.metrics.fad import bootstrap_fad, fad_from_embeddings, fad_inf


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    S1, S2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    step = x.mean(0) - y.mean(0)
    return float(step @ step + np.trace(S1) + np.trace(S2) - 2 * np.trace(scipy.linalg.sqrtm(S1 @ S2)).real)


def timed(work, runs: int):
    """("wall s, CPU s" text, wall, value); CPU seconds (over all threads) show what a busy machine hides."""
    wall, cpu, value = [], [], None
    for _ in range(runs):
        start = time.perf_counter(), time.process_time()
        value = work()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    took = statistics.median(wall)
    return f"{took:8.3f} s {statistics.median(cpu):8.3f} CPU s", took, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.n, args.dim)).astype(np.float32)
    y = (1.2 * rng.standard_normal((args.n, args.dim)) + 0.1).astype(np.float32)
    fad_from_embeddings(x, y)
    text, ours, value = timed(lambda: fad_from_embeddings(x, y), args.runs)
    text2, theirs, other = timed(lambda: by_sqrtm(x, y), args.runs)
    print(f"2 x {args.n} x {args.dim}, median of {args.runs} runs")
    print(f"{'vmas':28} {text}   FAD {value:.9f}   required: 0.3 s")
    print(f"{'numpy.cov + sqrtm':28} {text2}   FAD {other:.9f}   ratio {theirs / ours:.1f}")
    if args.json:
        shape = {"n": args.n, "dim": args.dim, "runs": args.runs}
        figures.write(args.json, {"fad": {"seconds": ours, "sqrtm_seconds": theirs, "ratio": theirs / ours, **shape}})
    few = x[:300]
    text, _, inf = timed(lambda: fad_inf(few, y), 1)
    print(f"{'FAD-inf, 300 clips':28} {text}   {inf.value:.3f} (plain {inf.scores[-1]:.3f})")
    text, _, (lo, hi) = timed(lambda: bootstrap_fad(few, y, n=1000), 1)
    print(f"{'interval, 300 clips x 1000':28} {text}   [{lo:.3f}, {hi:.3f}]")


if __name__ == "__main__":
    main()
