"""Every path of the project, in one place.

The repository root is found from this file, so that notebooks (run from any folder), papermill
and pytest agree. `VMAS_CACHE` moves the cache (corpus, tokens, flow, trained models), which is
never committed; `VMAS_RESULTS` moves the results, for trials that must not touch the committed ones.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"
NOTEBOOKS = ROOT / "notebooks"


def cache() -> Path:
    """Folder of everything that can be computed again (`VMAS_CACHE`, default `.cache/`)."""
    return Path(os.environ.get("VMAS_CACHE") or ROOT / ".cache")


def results() -> Path:
    """Folder of tables, figures and records (`VMAS_RESULTS`, default `results/`)."""
    return Path(os.environ.get("VMAS_RESULTS") or ROOT / "results")


def runs() -> Path:
    """Committed records, one small JSON file per run."""
    return results() / "runs"


def paper_numbers() -> Path:
    """Every number that the paper prints, as data."""
    return ROOT / "results" / "paper"


def target(profile: str, name: str) -> Path:
    """What a reader opens: table.md, table.csv, figure.png, result.json."""
    return results() / profile / name


def checkpoints(profile: str) -> Path:
    """Trained weights: committed for mini, made by the run for smoke."""
    if profile == "mini":
        return ROOT / "results" / "checkpoints" / "mini"
    return cache() / "checkpoints" / profile


def corpus(profile: str) -> Path:
    """The procedural corpus of a profile."""
    return cache() / "corpus" / profile


def features(profile: str) -> Path:
    """Frames, flow and tokens taken from the corpus, per profile."""
    return cache() / "features" / profile


def relative(path) -> str:
    """`path` relative to the repository root where it lies inside it (for records and notebooks)."""
    p = Path(path).resolve()
    return str(p.relative_to(ROOT)) if p.is_relative_to(ROOT) else p.name
