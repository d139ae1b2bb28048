"""Builds that are killed or stopped at chosen moments, each a process of its own.

A moment is the n-th time that a build opens, renames or removes a file of its folder; Python's audit events tell. The
processes are forked from this one, which has loaded the libraries and started none of their threads.

    python tests/dataset_kills.py VIDEOS OUT SEED      prints a JSON line per kill: phase, event, whether bytes agree
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av  # noqa: F401 - what every child would otherwise load anew
import cv2  # noqa: F401
import numpy as np
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import soundfile  # noqa: F401
import threadpoolctl  # noqa: F401
import tqdm.auto  # noqa: F401
import webdataset  # noqa: F401
from dataset_files import content, options

from vmas.dataset.build import build
from vmas.dataset.manifest import read_manifest
from vmas.errors import DataError

PHASES = ("screening", "making", "finishing")
KILLS = 1  # per phase
WATCHED = ("open", "os.rename", "os.remove")
SKIP = ("duplicates", "vocals", "genre", "tokens", "beats")


def phase_of(name: str) -> str:
    """The phase that writes a file, "" for one that is only read or belongs to none."""
    name = Path(name).name.lstrip(".")
    if name.startswith("screen-"):
        return "screening"
    if name.startswith(("shard-", "train-", "test-")):
        return "making"
    known = ("index.", "shards.", "rejected.", "dataset", "timings.")
    return "finishing" if name.startswith(known) else ""


def watch(out: Path, act: Callable[[str], None]) -> None:
    """Call `act` with the phase at every event from now on."""

    def hook(event: str, args: tuple) -> None:
        if event in WATCHED and isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(str(out)):
            if phase := phase_of(str(args[0])):
                act(phase)

    sys.addaudithook(hook)


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that does `work`; it exits with 0, or with 3 where another run has the folder."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except DataError as e:
        code = 3 if "another run is building here" in str(e) else 1
        print(e, file=sys.stderr)
    finally:
        os._exit(code)


def main(root: Path, base: Path, seed: int) -> None:
    videos, o = read_manifest(root / "videos.csv"), options(root, test=1, skip=SKIP)
    clean = base / "clean"

    def run(out: Path) -> None:
        build(videos, out, o, workers=1, progress=False)

    def first() -> None:
        seen: list[str] = []
        watch(clean, seen.append)
        run(clean)
        (base / "events.json").write_text(json.dumps(seen))

    def at(out: Path, phase: str, n: int, number: int) -> Callable[[], None]:
        def work() -> None:
            count = 0

            def act(now: str) -> None:
                nonlocal count
                if now == phase:
                    count += 1
                    if count == n:
                        os.kill(os.getpid(), number)

            watch(out, act)
            run(out)

        return work

    def ended(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert ended(forked(first)) == 0
    events, expected = json.loads((base / "events.json").read_text()), content(clean)
    rng = np.random.default_rng(seed)
    for phase in PHASES:
        total = events.count(phase)
        for n in sorted(rng.choice(np.arange(1, total + 1), KILLS, replace=False).tolist()):
            out = base / f"{phase}-{n}"
            killed = ended(forked(at(out, phase, n, signal.SIGKILL)))
            whole = (out / "dataset.json").exists()
            again = ended(forked(lambda out=out: run(out)))
            same, asides = content(out) == expected, [p.name for p in out.rglob(".*.[0-9]*")]
            said = {"phase": phase, "n": n, "of": total, "killed": killed, "whole": whole}
            print(json.dumps({**said, "again": again, "same": same, "asides": asides}), flush=True)
            shutil.rmtree(out)
    out = base / "two"
    one = forked(at(out, "making", 4, signal.SIGSTOP))
    deadline = time.time() + 120
    while Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T" and time.time() < deadline:
        time.sleep(0.01)
    two = ended(forked(lambda: run(out)))
    os.kill(one, signal.SIGCONT)
    print(json.dumps({"phase": "two runs", "one": ended(one), "two": two, "same": content(out) == expected}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
