"""The same clips with other beats: corpora whose picture shows more, or fewer, of the music's beats.

Music, scene, colours and every other draw are those of the profile's own training clips. What changes is which beats
the picture shows (more or fewer of them, nested) and how often it moves besides, at times that have nothing to do with
the beats (thinned out, or further ones among them).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmas import corpus, paths
from vmas.config import Profile, sha256
from vmas.errors import UsageError, nearest
from vmas.features import FEATURES_VERSION, SplitFeatures, load_split
from vmas.training.data import Source
from vmas.training.sources import Beside, CorpusData, Data
from vmas.training.tasks import clip_weights, vmas_data

VERSION = 1  # raised when the same knobs give other clips
SPLIT = "train"
OWN = "own"  # the profile's own training clips


@dataclass(frozen=True)
class Knobs:
    """`beat_share` of the music's beats are shown; the picture moves `spurious_per_s` times a second besides."""

    beat_share: float
    spurious_per_s: float


SETS = {"clean": Knobs(1.0, 0.0), "loose": Knobs(0.6, 1.5)}


def get(name: str) -> Knobs:
    """A corpus by name. Raises UsageError."""
    if name not in SETS:
        raise UsageError(f"no corpus is called {name!r}: {nearest(name, SETS)}")
    return SETS[name]


def profile_of(profile: Profile, name: str) -> Profile:
    """`profile` with a corpus's knobs, its training clips alone, and a name of its own for its folders."""
    none = {s: 0 for s in corpus.SPLITS if s != SPLIT}
    own = profile.corpus
    knobs = dataclasses.replace(own, **dataclasses.asdict(get(name)), varies=own.spurious_per_s, **none)
    return dataclasses.replace(profile, name=f"{profile.name}-corpus-{name}", corpus=knobs)


def key(profile: Profile, name: str, seed: int) -> str:
    """Hash of everything that the clips depend on beside the codec; no seed changes them."""
    other = profile_of(profile, name)
    return sha256(VERSION, FEATURES_VERSION, corpus.data_sha256(other), other.corpus.train, other.clip)


def features(
    profile: Profile, name: str, codec: Any = None, workers: int | None = None, progress: bool = True
) -> SplitFeatures:
    """The training clips of a corpus, made where they are missing; with a codec also their tokens."""
    return made(profile_of(profile, name), codec, workers, progress)


def made(other: Profile, codec: Any = None, workers: int | None = None, progress: bool = True) -> SplitFeatures:
    """The training clips of a profile with a name of its own, made where they are missing."""
    from filelock import FileLock

    lock = paths.cache() / "locks" / f"{other.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # runs of a sweep side by side: the first makes them
        corpus.make(paths.corpus(other.name), other, (SPLIT,), workers, progress=progress)
        return load_split(other, SPLIT, codec, progress)


def composition(
    profile: Profile, name: str, seed: int, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """What the corpus is like by its truth, and the share of tokens with weight 1 (eq. 3, the profile's options); under
    `OWN` the same of the profile's own training clips."""
    return {
        **_about(features(profile, name, None, workers, progress), profile),
        OWN: _about(load_split(profile, SPLIT, None, progress), profile),
    }


def _about(found: SplitFeatures, profile: Profile) -> dict[str, float]:
    from vmas.corpus.card import manifest_card

    card = manifest_card(found.manifest, 1 / profile.clip.fps)
    weights = clip_weights(found.flow, found.beats, profile)
    kept = {
        "beats_shown": "beats shown",
        "events_per_clip": "movements a clip",
        "events_without_beat_per_s": "movements a second at random",
        "events_far_from_any_beat": "movements over a frame from any beat",
    }
    about = {text: round(float(card[k]), 4) for k, text in kept.items()}
    return {"clips": len(found), **about, "tokens with weight 1": round(float((weights == 1).mean()), 4)}


def load(
    profile: Profile,
    name: str,
    seed: int,
    codec: Any,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Data:
    """Stage 1 and validation from the profile's own corpus, stage 2 from the corpus `name`."""
    say(f"corpus {name}: its training clips")
    return Other(
        CorpusData(profile, codec, progress), features(profile, name, codec, workers, progress), profile,
        key(profile, name, seed),
    )  # fmt: skip


class Other(Beside):
    """Stage 2 on the clips of `split`, validation on `first`'s; `key` names the former."""

    def __init__(self, first: Data, split: SplitFeatures, profile: Profile, key: str):
        super().__init__(first, key)
        self.split, self.profile = split, profile

    def clips(self, split: str) -> int:
        return len(self.split) if split == SPLIT else self.first.clips(split)

    def vmas(self, split: str, rows: np.ndarray | None = None) -> Source:
        return vmas_data(self.split, self.profile, rows) if split == SPLIT else self.first.vmas(split, rows)
