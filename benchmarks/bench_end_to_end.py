"""From an empty clone to a table: the wall time of a newcomer's commands.

    python benchmarks/bench_end_to_end.py [--only clone cached force smoke] [--uv-cache empty|shared] [--keep DIR]

Clones the last commit into an empty folder and types there, one after the other:

    clone    ./reproduce.sh table3                     environment, clips, generation, metrics, table (aim 8 min)
    cached   ./reproduce.sh table3                     everything on record (aim 20 s)
    force    ./reproduce.sh table3 --force             generation and metrics from the committed checkpoints (aim 6 min)
    smoke    ./reproduce.sh table3 --profile smoke     every stage trained from nothing (aim 5 min)

Prints seconds and the ratio to the aim. `--uv-cache empty` downloads every package anew, as on a fresh machine; with
`shared` the packages that uv kept are linked. Run it on a quiet machine: wall time is what is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    "clone": (["table3"], 480),
    "cached": (["table3"], 20),
    "force": (["table3", "--force"], 360),
    "smoke": (["table3", "--profile", "smoke"], 300),
}


def timed(command: list[str], cwd: Path, env: dict[str, str], log) -> float:
    start = time.perf_counter()
    code = subprocess.run(command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        sys.exit(f"{' '.join(command)}: exit code {code}, see {log.name}")
    return time.perf_counter() - start


def newcomer(uv_cache: str, folder: Path) -> dict[str, str]:
    """This environment without what an earlier run of the project would have left in it."""
    names = ("VMAS_CACHE", "VMAS_NO_VENV", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in names}
    return env | ({"UV_CACHE_DIR": str(folder / "uv-cache")} if uv_cache == "empty" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--uv-cache", choices=("empty", "shared"), default="empty")
    parser.add_argument("--keep", type=Path, help="clone into DIR, and leave it and the logs there")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clone, env = folder / "clone", newcomer(args.uv_cache, folder)
        if not clone.exists():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, text=True)
        print(f"commit {commit.stdout.strip()}, {os.cpu_count()} cores, packages from an {args.uv_cache} cache of uv")
        print(f"{'step':8} {'seconds':>8} {'aim':>5} {'ratio':>6}  command")
        for name in args.only:
            words, aim = STEPS[name]
            with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
                took = timed(["./reproduce.sh", *words], clone, env, log)
            print(f"{name:8} {took:8.1f} {aim:5} {took / aim:6.2f}  ./reproduce.sh {' '.join(words)}", flush=True)
            if args.json:
                figures.write(args.json, {name: {"seconds": round(took, 1), "aim_s": aim}})


if __name__ == "__main__":
    main()
