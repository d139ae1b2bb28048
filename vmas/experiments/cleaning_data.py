"""What section 6.2 trains on: the same dirty videos, as they are and as the builder's filters leave them.

Every set is made by `vmas.dataset.build` from one manifest, as a user would make it, and streamed from its shards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmas import checkpoint, paths
from vmas.config import Profile, sha256
from vmas.dataset import shards, stages
from vmas.dataset.stages import OPTIONAL, Options
from vmas.errors import DataError, UsageError, nearest
from vmas.experiments import dirty
from vmas.metrics.similarity import THRESHOLD
from vmas.training.sources import CorpusData, Further

VERSION = 1  # raised when the same conditions give other clips
NEEDED = ("tokens", "beats")  # what training reads, and no filter


@dataclass(frozen=True)
class Set:
    """Filters of the builder that run, and which of the clips that they leave are taken: "all", "random", as many as
    `like` has, drawn by the seed, or "moving", those whose picture moves by the truth."""

    filters: tuple[str, ...] = ()
    take: str = "all"
    like: str = ""


SETS = {
    "dirty": Set(),
    "similarity": Set(("similarity",)),
    "dirty-same": Set(take="random", like="similarity"),
    "moving": Set(take="moving"),
    "filtered": Set(("similarity", "duplicates", "vocals")),
}


def recipe(profile: Profile) -> dirty.Recipe:
    """The dirty videos: half as many clips as the profile's own corpus trains on; half of their pictures stand still or
    nearly, so that a filter leaves about half (section 3's leaves 14%)."""
    return dirty.Recipe({profile.name: profile.corpus.train // 2}, 0.3, 0.3, 0.4, 0.1, 0.2, seed=8000)


def get(name: str) -> Set:
    """A set by name. Raises UsageError."""
    if name not in SETS:
        raise UsageError(f"no training clips are called {name!r}: {nearest(name, SETS)}")
    return SETS[name]


def options(profile: Profile, name: str) -> Options:
    """The builder's options for a set."""
    skip = tuple(s for s in OPTIONAL if s not in (*NEEDED, *get(name).filters))
    return Options(profile, skip, THRESHOLD)


def key(profile: Profile, name: str, seed: int) -> str:
    """Hash of everything that a set depends on beside the codec."""
    chosen, o = get(name), options(profile, name)
    known = {s: v for s, v in stages.VERSIONS.items() if o.runs(s)}
    clip, align = profile.clip, profile.align
    about = sha256(
        VERSION, dirty.key(profile, recipe(profile)), clip, known, o.threshold, o.vocals, o.frames, align.flow_time
    )
    if chosen.take == "random":
        return sha256(about, seed, key(profile, chosen.like, seed))
    return sha256(about, chosen.take) if chosen.take != "all" else about


def folder(profile: Profile, name: str) -> Path:
    """Where the shards that a set is taken from lie, in the cache."""
    filters = "-".join(get(name).filters) or "unfiltered"
    same = Set(get(name).filters)
    first = next(n for n, s in SETS.items() if s == same)
    codec = checkpoint.read_manifest(paths.checkpoints(profile.name) / "codec")["sha256"]
    name = sha256(key(profile, first, 0), codec)[:12]
    return paths.cache() / "dirty" / f"cleaning-{profile.name}-{filters}-{name}"


def build(
    profile: Profile,
    name: str,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The shards of a set, made or finished; returns the folder of their training split."""
    from vmas.dataset.build import build as build_shards

    out = folder(profile, name)
    if not (out / shards.MARK).is_file():
        say(f"dirty corpus and its shards ({', '.join(get(name).filters) or 'no filter'})")
        made = dirty.make(profile, workers, progress, recipe(profile))
        build_shards(made.videos, out, options(profile, name), workers, progress=progress, say=say, update=True)
    return out / "train"


def truth(profile: Profile, name: str, workers: int | None = None, progress: bool = True) -> Any:
    """The truth of the clips that a set's shards hold: a table with a row each, in the order of their index."""
    index = shards.read_index(build(profile, name, workers, progress), ["video"])[0]
    known = dirty.make(profile, workers, progress, recipe(profile)).truth.set_index("id")
    return known.loc[index["video"]].reset_index()


def rows(profile: Profile, name: str, seed: int, workers: int | None = None, progress: bool = True):
    """Rows of the index that a set takes, int [n] in order; None for all."""
    chosen = get(name)
    if chosen.take == "all":
        return None
    here = truth(profile, name, workers, progress)
    if chosen.take == "moving":
        found = np.flatnonzero(~(here["static"] | here["near_static"]).to_numpy(bool))
    else:
        n = int(shards.read_counts(build(profile, chosen.like, workers, progress))["samples"].sum())
        if n > len(here):
            raise DataError(f"{chosen.like} has {n} clips, more than the {len(here)} to draw from")
        found = np.sort(np.random.default_rng([seed, 91]).permutation(len(here))[:n])
    return found


def composition(
    profile: Profile, name: str, seed: int, workers: int | None = None, progress: bool = True
) -> dict[str, float]:
    """What a set is made of by the truth: clips, and the shares whose picture stands still or nearly, whose picture and
    music do not belong together, whose music had a voice in its file, and that repeat another clip of the set."""
    from vmas.experiments.filters import repeats, still

    here, taken = truth(profile, name, workers, progress), rows(profile, name, seed, workers, progress)
    here = here if taken is None else here.loc[taken].reset_index(drop=True)
    shares = {"still or nearly": still(here), "mismatched": here["mismatched"], "with a voice": here["vocal"]}
    shares["repeats another"] = repeats(here)
    return {"clips": len(here), **{k: round(float(v.mean()), 4) for k, v in shares.items()}}


def load(
    profile: Profile,
    name: str,
    seed: int,
    codec: Any,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Further:
    """Stage 1 and validation from the procedural corpus, stage 2 from the set `name`, made where it is missing."""
    shown = build(profile, name, workers, progress, say)
    first = CorpusData(profile, codec, progress)
    taken = rows(profile, name, seed, workers, progress)
    return Further(first, profile, codec, shown, key(profile, name, seed), taken)
