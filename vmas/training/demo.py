"""A run small enough for a notebook, once in one process and once in two: the same curve (`notebooks/07_training`).

Everything is real, only small: 16 clips of the procedural corpus as mp4 files, a codec trained for seconds,
the three stages, Accelerate's launcher with `examples/launch/cpu2.yaml`.
"""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmas import checkpoint, config, paths
from vmas.errors import VmasError

BATCH = 8
SMALL: dict[str, Any] = {
    "name": "demo",
    "corpus": {"train": 16, "val": 8, "test": 0, "shifted": 0},
    "codec": {"train_steps": 5},
    # the contrast over all processes and no dropout: then two processes compute what one does
    "align": {"gather": True},
    "encoder": {"motion_steps": 2, "motion_batch": BATCH},
    "decoder": {"dropout": 0.0},
    "train": {"steps": 20, "pretrain_steps": 2, "batch_size": BATCH, "warmup_steps": 4, "val_every": 5},
}


@dataclass(frozen=True)
class Ran:
    """One training: processes, seconds of stage 2, validation curve, share of time waiting for data, peak memory."""

    processes: int
    seconds: float
    curve: list[dict[str, float]]
    loader_share: float
    peak_gb: float


def write_profile(folder, batch: int) -> Path:
    """The demo's profile with `batch` clips a process, as a YAML file in `folder`."""
    import yaml

    change = {"encoder": {"motion_batch": batch}, "train": {"batch_size": batch}}
    whole = {**SMALL, **{k: {**SMALL[k], **v} for k, v in change.items()}}
    plain = json.loads(json.dumps(dataclasses.asdict(config.load("smoke", whole))))
    file = Path(folder) / f"demo-{batch}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return file


def command(processes: int, profile: Path, out: Path) -> list[str]:
    """What is typed: `vmas train`, or `accelerate launch` with the configuration for two CPU processes."""
    start = [sys.executable, "-m"]
    if processes == 2:
        launch = paths.ROOT / "examples" / "launch" / "cpu2.yaml"
        start += ["accelerate.commands.accelerate_cli", "launch", "--config_file", str(launch), "-m"]
    return [*start, "vmas.train", "--profile", str(profile), "-o", str(out), "--device", "cpu", "--quiet"]


def run(folder, processes: int) -> Ran:
    """Train in `folder` with 1 or 2 processes on this machine's CPU; corpus and codec are made by the first call.

    Raises VmasError with the last line of the output when the command fails.
    """
    folder = Path(folder)
    profile = write_profile(folder, BATCH // processes)
    own = {"VMAS_CACHE": str(folder / "cache"), "VMAS_RESULTS": str(folder / "results")}
    env = {**os.environ, **own, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    out = folder / f"model-{processes}"
    line = command(processes, profile, out)
    done = subprocess.run(line, env=env, cwd=paths.ROOT, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if "rror" in line]
        raise VmasError(f"training in {processes} processes ended with {done.returncode}: {' '.join(said[:1])}")
    got = checkpoint.read_manifest(out)["training"]
    stage = got["vmas"]
    return Ran(got["processes"], stage["seconds"], stage["curve"], stage["loader_share"], stage["peak_gb"])


def largest_gap(a: Ran, b: Ran, name: str = "loss") -> float:
    """Largest difference of two validation curves."""
    return max(abs(x[name] - y[name]) for x, y in zip(a.curve, b.curve, strict=True))
