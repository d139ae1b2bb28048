"""How long a user waits before anything happens: imports, help, and a second start of reproduce.sh.

    python benchmarks/bench_start.py [--runs 5] [--json FILE]

Every figure is the wall time of a whole process (median, minimum, maximum of the runs), printed beside the same
process doing nothing (`python -c pass`, `bash -c true`), so that a slow machine shows in both.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent


def wall(command: list[str], runs: int) -> tuple[float, float, float]:
    """(median, min, max) seconds after one warm-up."""
    times = []
    for i in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        if i:
            times.append(time.perf_counter() - start)
    return statistics.median(times), min(times), max(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    rows = [
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("import vmas", [sys.executable, "-c", "import vmas"]),
        ("vmas --help", [sys.executable, "-m", "vmas", "--help"]),
        ("bash -c true", ["bash", "-c", "true"]),
        ("reproduce.sh setup, nothing to do", ["./reproduce.sh", "setup"]),
        ("reproduce.sh list", ["./reproduce.sh", "list"]),
    ]
    print(f"{'process':36} {'median s':>9} {'min':>7} {'max':>7}")
    for name, command in rows:
        median, low, high = wall(command, args.runs)
        print(f"{name:36} {median:9.3f} {low:7.3f} {high:7.3f}")
        if args.json:
            figures.write(args.json, {name: {"seconds": median, "min": low, "max": high, "runs": args.runs}})


if __name__ == "__main__":
    main()
