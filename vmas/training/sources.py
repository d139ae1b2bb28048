"""What the stages train on: the arrays of the procedural corpus, or WebDataset shards (`vmas train --data`)."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vmas.config import Profile, sha256
from vmas.errors import CheckpointError, DataError
from vmas.training.data import ClipDataset, Source
from vmas.training.tasks import motion_data, music_data, vmas_data

SPLITS = ("train", "val")


class Data(Protocol):
    """Sources by stage and split ("train" or "val"), all optical flow [N,t_v-1] of a split, and the first n training
    clips' frames. `scenes` are the numbers of labels of each kind that `motion` gives as "scene", () without labels.
    `keys` names the clips of stage 1 and of stage 2 where they are not the procedural corpus's own.
    """

    scenes: tuple[int, ...]
    keys: tuple[str, str]

    def motion(self, split: str) -> Source: ...
    def music(self, split: str) -> Source: ...
    def vmas(self, split: str, rows: np.ndarray | None = None) -> Source: ...
    def flow(self, split: str) -> np.ndarray: ...
    def clips(self, split: str) -> int: ...
    def frames(self, n: int) -> np.ndarray: ...


class CorpusData:
    """The features of the procedural corpus, memory-mapped; made where they are missing."""

    def __init__(self, profile: Profile, codec: Any, progress: bool = True):
        from vmas.corpus import SCENES
        from vmas.features import load_split

        self.profile, self.codec, self.progress = profile, codec, progress
        self.keys = "", ""
        self.scenes = tuple(len(names) for names in SCENES.values())
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

    def frames(self, n: int) -> np.ndarray:
        return self.splits["train"].frames[:n]


def check_codec(folder: Path, codec: Any) -> None:
    """Raise CheckpointError unless the tokens of the shards in `folder` are of `codec`, by what `dataset.json` says."""
    from vmas.dataset import shards

    made_by = shards.read_description(folder).get("models", {}).get(shards.TOKENS, "")
    if not made_by:
        raise CheckpointError(folder, "does not say which codec its tokens are of", "build it again with this one")
    if made_by != codec.sha256:
        raise CheckpointError(folder, "its tokens are of another codec", "build it again with this one")


class ShardData:
    """Shards of `folder`/train and `folder`/val, streamed (`vmas dataset build`, `vmas.dataset`).

    Raises DataError for a missing folder or clips of another shape than the profile's, CheckpointError when the
    tokens are of another codec, or nothing says of which.
    """

    def __init__(self, profile: Profile, codec: Any, folder):
        self.profile, self.folder = profile, Path(folder)
        self.scenes: tuple[int, ...] = ()  # shards of real videos name no scenes
        if not (self.folder / "train").is_dir():
            raise DataError(f"{self.folder}: no folder train; --data takes what 'vmas dataset build' writes")
        if not (self.folder / "val").is_dir():
            raise DataError(
                f"{self.folder}: no folder val, since its build held no videos out for validation; give that build"
                " command again with --val N and --update"
            )
        self.keys = (self._key(),) * 2
        meta = self.vmas("train").meta
        for split in SPLITS:
            check_codec(self.folder / split, codec)
        have = (meta["fps"], meta["frame_rate"], meta.get("seconds", profile.clip.seconds))
        need = (profile.clip.fps, profile.codec.frame_rate, profile.clip.seconds)
        if have != need:
            raise DataError(f"{self.folder}: fps, token rate and seconds are {have}, profile {profile.name} has {need}")

    def _open(self, split: str, *fields: str, **options):
        from vmas import dataset

        return dataset.open(self.folder / split, fields=fields, **options)

    def _key(self) -> str:
        from vmas.dataset import shards

        return sha256([shards.read_counts(self.folder / s)["sha256"].tolist() for s in SPLITS])

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

    def frames(self, n: int) -> np.ndarray:
        found = self._open("train", "frames")
        return found.__getitems__(range(min(n, len(found))))["frames"].numpy()


def open_data(profile: Profile, codec: Any, folder=None, progress: bool = True) -> Data:
    """The shards of `folder`, else the procedural corpus."""
    return CorpusData(profile, codec, progress) if folder is None else ShardData(profile, codec, folder)


class Beside:
    """Stage 1, calibration and all that is not said otherwise as `first` has them; `key` names the clips of stage 2.

    What starts from the same weights and is judged on the same clips differs by its training clips alone.
    """

    def __init__(self, first: Data, key: str):
        self.first, self.scenes, self.keys = first, first.scenes, (first.keys[0], key)
        self.motion, self.music, self.flow, self.frames = first.motion, first.music, first.flow, first.frames


class Further(Beside):
    """Stage 2 on the training clips of the shards in `folder`, validation on `first`'s.

    `rows` int [n] are the rows of the shards' index that stage 2 sees (default: all); `key` names them in the folders
    of its training states. Raises CheckpointError as `check_codec` does.
    """

    def __init__(self, first: Data, profile: Profile, codec: Any, folder, key: str, rows: np.ndarray | None = None):
        check_codec(Path(folder), codec)
        super().__init__(first, key)
        self.profile, self.folder, self.rows = profile, Path(folder), rows

    def clips(self, split: str) -> int:
        return len(self.vmas(split))

    def vmas(self, split: str, rows: np.ndarray | None = None) -> Source:
        from vmas import dataset

        if split != "train":
            return self.first.vmas(split, rows)
        if self.rows is not None:
            rows = self.rows if rows is None else self.rows[rows]
        return dataset.open(self.folder, fields=("frames", "codes", "weights"), align=self.profile.align, rows=rows)
