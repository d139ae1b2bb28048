"""Further clips of the same generator beside the profile's own: more for stage 2, all else the same.

The further clips are other draws (`corpus.seed` is higher by one a set of them), of the same genres, scenes and knobs.
Stage 1, calibration and validation are the profile's own, so that what is learnt from more videos is told from what is
learnt from more music.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vmas import corpus
from vmas.config import Profile, sha256
from vmas.errors import UsageError, nearest
from vmas.experiments import corpora_data
from vmas.features import FEATURES_VERSION, SplitFeatures
from vmas.training.data import ClipDataset, Joined, Source
from vmas.training.sources import Beside, CorpusData, Data
from vmas.training.tasks import vmas_data

VERSION = 1  # raised when the same name gives other clips
SPLIT = "train"
SETS = {"twice": 2, "fourfold": 4}  # how many times the profile's own number of training clips


def get(name: str) -> int:
    """How many times the profile's training clips a set has. Raises UsageError."""
    if name not in SETS:
        raise UsageError(f"no set of further clips is called {name!r}: {nearest(name, SETS)}")
    return SETS[name]


def profiles(profile: Profile, name: str) -> list[Profile]:
    """`profile` for each portion of further clips, as many as its own: their training clips alone."""
    none = {s: 0 for s in corpus.SPLITS if s != SPLIT}
    return [
        dataclasses.replace(
            profile,
            name=f"{profile.name}-further-{i}",
            corpus=dataclasses.replace(profile.corpus, seed=profile.corpus.seed + i, **none),
        )
        for i in range(1, get(name))
    ]


def key(profile: Profile, name: str, seed: int) -> str:
    """Hash of everything that the clips depend on beside the codec; no seed changes them."""
    return sha256(
        VERSION, FEATURES_VERSION, *([corpus.data_sha256(p), p.corpus.train, p.clip] for p in profiles(profile, name))
    )


def features(
    profile: Profile, name: str, codec: Any = None, workers: int | None = None, progress: bool = True
) -> list[SplitFeatures]:
    """The further clips, portion by portion, made where they are missing; with a codec also their tokens."""
    return [corpora_data.made(other, codec, workers, progress) for other in profiles(profile, name)]


def composition(
    profile: Profile, name: str, seed: int, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """How many clips stage 2 has."""
    return {"clips": profile.corpus.train + sum(p.corpus.train for p in profiles(profile, name))}


def load(
    profile: Profile,
    name: str,
    seed: int,
    codec: Any,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Data:
    """Stage 1 and validation from the profile's own corpus, stage 2 from it and the further clips."""
    say(f"{name}: further training clips")
    first = CorpusData(profile, codec, progress)
    return More(first, features(profile, name, codec, workers, progress), profile, key(profile, name, seed))


class More(Beside):
    """Stage 2 on the clips of `first` and of `further` behind them, validation on `first`'s; `key` names the latter."""

    def __init__(self, first: CorpusData, further: Sequence[SplitFeatures], profile: Profile, key: str):
        super().__init__(first, key)
        self.own, self.further, self.profile = first, further, profile

    def clips(self, split: str) -> int:
        return self.own.clips(split) + (sum(map(len, self.further)) if split == SPLIT else 0)

    def vmas(self, split: str, rows: np.ndarray | None = None) -> Source:
        if split != SPLIT:
            return self.own.vmas(split, rows)
        parts = [self.own.vmas(split), *(vmas_data(f, self.profile) for f in self.further)]
        return ClipDataset({k: Joined([p.arrays[k] for p in parts]) for k in parts[0].arrays}, rows)
