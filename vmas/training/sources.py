"""What the stages train on: the arrays of the procedural corpus, or WebDataset shards (`vmas train --data`)."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vmas.config import Profile
from vmas.errors import CheckpointError, DataError
from vmas.training.data import ClipDataset, Source
from vmas.training.tasks import motion_data, music_data, vmas_data

SPLITS = ("train", "val")


class Data(Protocol):
    """Sources by stage and split ("train" or "val"), and all optical flow [N,t_v-1] of a split."""

    def motion(self, split: str) -> Source: ...
    def music(self, split: str) -> Source: ...
    def vmas(self, split: str, rows: np.ndarray | None = None) -> Source: ...
    def flow(self, split: str) -> np.ndarray: ...
    def clips(self, split: str) -> int: ...


class CorpusData:
    """The features of the procedural corpus, memory-mapped; made where they are missing."""

    def __init__(self, profile: Profile, codec: Any, progress: bool = True):
        from vmas.features import load_split

        self.profile, self.codec, self.progress = profile, codec, progress
        self.splits = {s: load_split(profile, s, codec, progress) for s in SPLITS}

    def motion(self, split: str) -> ClipDataset:
        return motion_data(self.splits[split])

    def music(self, split: str) -> ClipDataset:
        from vmas.features import load_music

        if split != "train" or not self.profile.corpus.music:
            return music_data(self.splits[split])
        return music_data(self.splits[split], load_music(self.profile, self.codec, progress=self.progress))

    def vmas(self, split: str, rows: np.ndarray | None = None) -> ClipDataset:
        return vmas_data(self.splits[split], self.profile, rows)

    def flow(self, split: str) -> np.ndarray:
        return self.splits[split].flow

    def clips(self, split: str) -> int:
        return len(self.splits[split])


class ShardData:
    """Shards of `folder`/train and `folder`/val, streamed (`vmas dataset build`, `vmas.dataset`).

    Raises DataError for a missing folder or clips of another shape than the profile's, CheckpointError when the
    tokens are of another codec.
    """

    def __init__(self, profile: Profile, codec: Any, folder):
        self.profile, self.folder = profile, Path(folder)
        for split in SPLITS:
            if not (self.folder / split).is_dir():
                raise DataError(f"{self.folder}: no folder {split}; --data takes what 'vmas dataset build' writes")
        meta = self.vmas("train").meta
        have = (meta["fps"], meta["frame_rate"], meta.get("seconds", profile.clip.seconds))
        need = (profile.clip.fps, profile.codec.frame_rate, profile.clip.seconds)
        if have != need:
            raise DataError(f"{self.folder}: fps, token rate and seconds are {have}, profile {profile.name} has {need}")
        if meta.get("codec") and meta["codec"] != codec.sha256:
            raise CheckpointError(self.folder, "its tokens are of another codec", "build them again with this one")

    def _open(self, split: str, *fields: str, **options):
        from vmas import dataset

        return dataset.open(self.folder / split, fields=fields, **options)

    def motion(self, split: str) -> Source:
        return self._open(split, "frames", "flow")

    def music(self, split: str) -> Source:
        return self._open(split, "codes")

    def vmas(self, split: str, rows: np.ndarray | None = None):
        return self._open(split, "frames", "codes", "weights", align=self.profile.align, rows=rows)

    def flow(self, split: str) -> np.ndarray:
        found = self._open(split, "flow")
        return np.concatenate([found.__getitems__([i])["flow"].numpy() for i in range(len(found))])

    def clips(self, split: str) -> int:
        return len(self._open(split, "codes"))


def open_data(profile: Profile, codec: Any, folder=None, progress: bool = True) -> Data:
    """The shards of `folder`, else the procedural corpus."""
    return CorpusData(profile, codec, progress) if folder is None else ShardData(profile, codec, folder)
