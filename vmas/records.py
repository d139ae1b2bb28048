"""Results as data: rows with a status, where they come from, and the key that decides whether they hold.

A record is one JSON file, `{"target", "profile", "title", "key", "rows", "provenance", "extra"}`. Its key is
the sha256 of everything that the numbers depend on: config, data, checkpoints and stage versions. The
same key means reuse, anything else recompute. Committed records lie in `results/runs/`; what was
computed on this machine is remembered in the cache as well.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vmas import paths
from vmas.errors import DataError

STATUSES = ("reproduced", "scaled_down", "smoke", "quoted", "unavailable")
WITHOUT_VALUE = ("quoted", "unavailable")
DIRECTIONS = ("up", "down", "none")
RESULT_KEYS = ("target", "profile", "title", "rows", "provenance")
PROVENANCE_KEYS = (
    "git_sha",
    "dirty",
    "config_sha256",
    "data_sha256",
    "checkpoint_sha256",
    "command",
    "hardware",
    "versions",
    "wall_s",
)


@dataclass(frozen=True)
class Row:
    """One number. `ci95` (lo, hi); `paper` the paper's verbatim string; `chance` what no skill would score."""

    system: str
    dataset: str
    metric: str
    direction: str
    value: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    seeds: int | None = None
    chance: float | None = None
    paper: str | None = None
    status: str = ""
    note: str = ""

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises DataError for a row that contradicts its own status."""
        where = f"row {self.system} / {self.dataset} / {self.metric}"
        if self.status not in STATUSES:
            raise DataError(f"{where}: unknown status {self.status!r}, one of {', '.join(STATUSES)}")
        if self.direction not in DIRECTIONS:
            raise DataError(f"{where}: direction must be one of {', '.join(DIRECTIONS)}, got {self.direction!r}")
        if self.value is None and self.status not in WITHOUT_VALUE:
            raise DataError(f"{where}: a {self.status} row needs a value")
        if self.value is not None and self.status in WITHOUT_VALUE:
            raise DataError(f"{where}: a {self.status} row carries no value of ours")
        if self.value is not None and not math.isfinite(self.value):
            raise DataError(f"{where}: the value is {self.value}")
        if self.status == "quoted" and self.paper is None:
            raise DataError(f"{where}: a quoted row needs the paper's string")
        if self.status == "unavailable" and not self.note:
            raise DataError(f"{where}: an unavailable row needs its reason in the note")
        if self.ci95 is not None and not self.ci95[0] <= self.ci95[1]:
            raise DataError(f"{where}: interval {self.ci95} is upside down or not a number")
        for name in ("n", "seeds"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise DataError(f"{where}: {name} is {count}")


@dataclass(frozen=True)
class Record:
    """One run's rows with their origin; `extra` holds what figures need (per-clip values, counts)."""

    target: str
    profile: str
    title: str
    key: str
    rows: tuple[Row, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def row(self, system: str, dataset: str, metric: str) -> Row:
        """One row. Raises DataError naming what is there."""
        for r in self.rows:
            if (r.system, r.dataset, r.metric) == (system, dataset, metric):
                return r
        known = sorted({r.metric for r in self.rows if r.system == system and r.dataset == dataset})
        raise DataError(f"record {self.target}: no {metric} of {system} on {dataset}; there is {', '.join(known)}")

    def result(self) -> dict[str, Any]:
        """What `result.json` holds: target, profile, title, rows, provenance."""
        whole = dataclasses.asdict(self)
        return {k: whole[k] for k in RESULT_KEYS}


def write_bytes(path, data: bytes) -> Path:
    """Write a file that appears whole or not at all. Raises DataError when the folder cannot be written."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        os.replace(aside, path)
    except OSError as e:
        raise DataError(f"{path}: cannot be written: {e.strerror}") from e
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return path


def write_text(path, text: str) -> Path:
    """As `write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def _json(data: dict) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(record: Record, path) -> Path:
    """Write a whole record."""
    return write_text(path, _json(dataclasses.asdict(record)))


def write_result(record: Record, path) -> Path:
    """Write `result.json`."""
    return write_text(path, _json(record.result()))


def read(path) -> Record:
    """Read and validate a record. Raises DataError naming the file when it is missing or malformed."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        plain: list[dict[str, Any]] = data.pop("rows")
        for r in plain:
            r["ci95"] = tuple(r["ci95"]) if r["ci95"] else None
        rows = tuple(Row(**r) for r in plain)
        return Record(rows=rows, **data)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such record") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: not a record: {e}") from e


def find(path, key: str) -> Record | None:
    """The record at `path` when it is there and has this key."""
    path = Path(path)
    if not path.is_file():
        return None
    record = read(path)
    return record if record.key == key else None


def committed(target: str, profile: str, seed: int) -> Path:
    """Where the committed record of a run lies."""
    return paths.runs() / f"{target}-{profile}-seed{seed}.json"


def local(target: str, profile: str, seed: int) -> Path:
    """Where this machine remembers what it computed itself."""
    return paths.cache() / "records" / f"{target}-{profile}-seed{seed}.json"


def seeds(target: str, profile: str) -> list[int]:
    """Seeds that a target (or a run of a sweep) has a record of, committed or of this machine; it may hold no more."""
    pattern = re.compile(re.escape(f"{target}-{profile}-seed") + r"(\d+)\.json")
    folders = (place(target, profile, 0).parent for place in (committed, local))
    names = (f.name for folder in folders for f in folder.glob(f"{target}-{profile}-seed*.json"))
    return sorted({int(m[1]) for name in names if (m := pattern.fullmatch(name))})


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=paths.ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    """The installed version, "" for what is not installed: not every record needs every package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def hardware(device: str = "cpu") -> str:
    """Processor, cores and, where used, the GPU; no host name."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        name = models[0] if models else name
    text = f"{name}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        import torch

        text += f", {torch.cuda.get_device_name()}"
    return text


def provenance(
    command: str, wall_s: float, config_sha256: str, data_sha256: str, checkpoint_sha256: str, device: str = "cpu"
) -> dict[str, Any]:
    """Where numbers come from: code, config, data, weights, command, hardware, versions, duration in seconds.

    `versions["vmas"]` is git's hash of the package as committed, which finds the code again where a commit was
    rewritten (`git log --format='%H %T'`, `git rev-parse <commit>:vmas`).
    """
    names = ("torch", "numpy", "scipy", "librosa", "opencv-python-headless", "av", "audiocraft")
    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "vmas")),
        "config_sha256": config_sha256,
        "data_sha256": data_sha256,
        "checkpoint_sha256": checkpoint_sha256,
        "command": command,
        "hardware": hardware(device),
        "versions": {
            "vmas": _git("rev-parse", "HEAD:vmas"),
            "python": ".".join(map(str, sys.version_info[:3])),
            **{n: v for n in names if (v := _version(n))},
        },
        "wall_s": round(wall_s, 1),
    }


@dataclass(frozen=True)
class Comparison:
    """Two records of one target. `lines` has one line per number that differs, the largest change first."""

    equal: int
    inside: int
    outside: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        n = self.equal + self.inside + self.outside
        text = f"{self.equal} of {n} numbers equal the committed record"
        if self.inside or self.outside:
            text += f", {self.inside} differ within its 95% interval, {self.outside} lie outside"
        return text


def compare(ours: Record, theirs: Record, tolerance: float = 1e-6) -> Comparison:
    """How far each number computed here lands from another record of the same target.

    Numbers within `tolerance` (relative) are equal.
    """
    known = {(r.system, r.dataset, r.metric): r for r in theirs.rows if r.value is not None}
    equal = inside = outside = 0
    lines = []
    for r in ours.rows:
        other = known.get((r.system, r.dataset, r.metric))
        if r.value is None or other is None or other.value is None:
            continue
        if math.isclose(r.value, other.value, rel_tol=tolerance, abs_tol=1e-9):
            equal += 1
            continue
        within = other.ci95 is not None and other.ci95[0] <= r.value <= other.ci95[1]
        inside, outside = inside + within, outside + (not within)
        change = abs(r.value - other.value) / max(abs(other.value), 1e-9)
        where = "within its interval" if within else "OUTSIDE its interval"
        text = f"{r.system}, {r.dataset}, {r.metric}: here {r.value:.4g}, record {other.value:.4g}, {where}"
        lines.append((change, text))
    return Comparison(equal, inside, outside, tuple(t for _, t in sorted(lines, reverse=True)))
