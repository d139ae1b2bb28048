"""A build's folder: the plan it holds, the shards it is going to hold, and what is taken away again.

    DIR/<split>/shard-*.tar, shard-*.json, index.parquet, shards.parquet, dataset.json
    DIR/rejected.parquet, dataset_card.md, timings.json, dataset.json (last: a folder that has it is complete)
    DIR/.build/plan.json, lock, screen-*.json (what is known of some videos), <split>-*.json (a shard is made)
    DIR/.build/splits.parquet (of an update: in which split each video was before)

Nothing here keeps a clip in memory: tasks are put together and marks are read one at a time.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmas.config import sha256
from vmas.dataset import shards, stages
from vmas.dataset.dedupe import Before
from vmas.dataset.fingerprints import PACKED
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Clip, Options
from vmas.dataset.tasks import ShardTask
from vmas.errors import DataError

WORK, LOCK, PLAN, BEFORE = ".build", "lock", "plan.json", "splits.parquet"
SPLITS = ("train", "val", "test")
FORMAT = 3
FOR_COMPARING = (*PACKED, "quality")  # what no clip depends on


def screen_key(options: Options, keys: dict[str, str]) -> str:
    """Hash of what is found of a video depends on; the threshold is applied to the score that is kept."""
    return sha256(*_screened_by(options, keys))


def _screened_by(o: Options, keys: dict[str, str], *threshold: float) -> list[Any]:
    versions = {s: stages.VERSIONS[s] for s in stages.SCREEN if o.runs(s)}
    quality = [*o.splits(), o.profile.clip.fps, o.profile.clip.flow_size] if o.scores_correspondence else []
    return [versions, *threshold, o.profile.clip.seconds, keys.get("similarity"), *quality]


def make_key(options: Options, keys: dict[str, str]) -> str:
    """Hash of what a clip of a video depends on: its stages' versions and models, its shape, the options of P_av."""
    o, p = options, options.profile
    versions = {s: stages.VERSIONS[s] for s in stages.MAKE if o.runs(s)}
    return sha256(
        versions, {s: k for s, k in keys.items() if s in stages.MAKE}, p.clip, p.codec.hop, p.align, p.corpus.crf
    )


def plan(options: Options, keys: dict[str, str]) -> dict[str, str]:
    """Hashes of all that a build depends on beside its manifest: which videos stay, and what is made of them."""
    o = options
    versions = {s: v for s, v in stages.VERSIONS.items() if o.runs(s)}
    plain = {f.name: getattr(o, f.name) for f in dataclasses.fields(o) if f.name not in ("profile", "checkpoints")}
    plain |= {"val": o.held[0], "test": o.held[1]}
    p = o.profile
    make = sha256(versions, plain, keys, p.clip, p.codec.hop, p.align, *o.splits())
    return {"screen": sha256(*_screened_by(o, keys, o.threshold)), "make": make}


def _plan(out: Path) -> dict[str, Any] | None:
    """What the folder holds or is going to hold; None where nothing was begun, {} where that cannot be read."""
    path = out / WORK / PLAN
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        return {}


def held_out(out: Path) -> tuple[int, int]:
    """How many videos the build in the folder holds out for validation and for testing."""
    val, test = (_plan(out) or {}).get("held") or (len(_videos(out / s)) for s in ("val", "test"))
    return val, test


def _videos(folder: Path) -> list[str]:
    """The ids of the videos in one split."""
    import pyarrow.parquet as pq

    path = folder / shards.INDEX
    return pq.read_table(path, columns=["video"])["video"].unique().to_pylist() if path.is_file() else []


def _remember(out: Path) -> None:
    """Keep what the whole build in the folder has in which split, and what was in a split of earlier ones."""
    import pandas as pd

    splits = {**before(out)[0].splits, **{v: s for s in SPLITS for v in _videos(out / s)}}
    val, test = held_out(out)
    table = pd.DataFrame({"id": list(splits), "split": list(splits.values())}, dtype=str)
    table.attrs = {"val": val, "test": test, "key": shards.read_description(out).get("key", "")}
    shards.write_parquet(table, out / WORK / BEFORE)


def before(out: Path) -> tuple[Before, str]:
    """What the folder held before it was last updated, and that build's key ("" for none). Raises DataError."""
    import pandas as pd

    path = out / WORK / BEFORE
    if not path.is_file():
        return Before(), ""
    try:
        table = pd.read_parquet(path)
        splits = dict(zip(table["id"], table["split"], strict=True))
        return Before(splits, table.attrs["val"], table.attrs["test"]), table.attrs["key"]
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{path}: is damaged: it says which videos are held out; name another folder") from e


def begin(out: Path, plan: dict[str, Any], update: bool) -> None:
    """Make the folder ready for `plan`. Raises DataError when it holds something else and `update` is not given."""
    path, plan, before = out / WORK / PLAN, {"format": FORMAT, **plan}, _plan(out)
    if before is None and (any(out.glob("*/*.tar")) or any(out.glob("*.tar"))):
        raise DataError(f"{out}: holds shards that this command did not make; name another folder")
    if before not in (None, plan):
        if not update:
            raise DataError(
                f"{out}: holds a build of another manifest, other options or models; name another folder,"
                " or give --update to change this one"
            )
        if (out / shards.MARK).is_file():  # else it has been remembered when it was last whole
            _remember(out)
        for folder in (out, *(out / s for s in SPLITS)):  # nobody must take it for whole meanwhile
            _unfinish(folder)
    if before != plan:
        shards.write_text(path, json.dumps(plan) + "\n")
    for folder in (out, out / WORK, *(out / s for s in SPLITS)):
        shards.remove_asides(folder)


def _unfinish(folder: Path) -> None:
    for name in (shards.MARK, shards.INDEX, shards.SHARDS):
        (folder / name).unlink(missing_ok=True)


class Tasks(Sequence[ShardTask]):
    """The shards of a build in order, `names` being those of their records; each is put together when asked for.

    `found` id → what the screening says, `splits` id → split, `content` id → hash of the row, `made_by` of the rest.
    """

    def __init__(self, out: Path, videos: Sequence[Video], found, splits, content, options: Options, made_by: str):
        self.out, self.found, self.content, self.options, self.made_by = out, found, content, options, made_by
        self.videos: dict[str, list[Video]] = {}
        self.ends: dict[str, np.ndarray] = {}  # int64 [videos]: clips up to the end of each
        self.where: list[tuple[str, int]] = []
        for split in SPLITS:
            here = [v for v in videos if splits.get(v.id) == split]
            ends = np.cumsum([len(self._starts(v)) for v in here], dtype=np.int64)
            self.videos[split], self.ends[split] = here, ends
            n = int(ends[-1]) if len(ends) else 0
            self.where += [(split, i) for i in range(-(-n // options.shard_size))]
        self.names = [f"{split}-{i:06d}" for split, i in self.where]
        self.clips = sum(int(e[-1]) for e in self.ends.values() if len(e))

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i) -> Any:  # a ShardTask
        split, n = self.where[i]
        size, ends = self.options.shard_size, self.ends[split]
        first, last = n * size, min((n + 1) * size, int(ends[-1]))
        clips: list[Clip] = []
        k = int(np.searchsorted(ends, first, side="right"))
        skip = first - (int(ends[k - 1]) if k else 0)
        while len(clips) < last - first:
            clips += self._clips(self.videos[split][k])[skip:]
            k, skip = k + 1, 0
        return ShardTask(str(self.path(i)), clips[: last - first], self.made_by, self.options.profile.clip.seconds)

    def path(self, i: int) -> Path:
        split, n = self.where[i]
        return self.out / split / shards.shard_name(n)

    def _starts(self, v: Video) -> list[float]:
        return stages.segment_starts(v, self.found[v.id]["seconds"], self.options)

    def _clips(self, v: Video) -> list[Clip]:
        known = {k: x for k, x in self.found[v.id].items() if k not in FOR_COMPARING} | {"row": self.content[v.id]}
        return [Clip(v, start, known) for start in self._starts(v)]


class Some(Sequence[Any]):
    """Those of `every` at the positions `chosen`."""

    def __init__(self, every: Sequence[Any], chosen: Sequence[int]):
        self.every, self.chosen = every, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i) -> Any:
        return self.every[self.chosen[i]]


class Marks(Sequence[shards.Shard]):
    """What is known of finished shards, read from beside each when it is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i) -> Any:  # a Shard
        mark = shards.read_mark(self.paths[i])
        if mark is None:
            raise DataError(f"{self.paths[i]}: was changed while the build ran; run the same command again")
        return mark

    def __iter__(self) -> Iterator[shards.Shard]:
        return (self[i] for i in range(len(self)))


def tidy(out: Path, made: dict[str, list[Path]], names: Sequence[str]) -> None:
    """Take away the shards and records of a run that had planned others, and what killed workers were writing."""
    known = {*names}
    for split in SPLITS:
        keep = {*made[split]}
        for path in (out / split).glob("shard-*.tar"):
            if path not in keep:
                path.unlink()
        for path in (out / split).glob("shard-*.json"):
            if path.with_suffix(".tar") not in keep:
                path.unlink()
        for path in (out / WORK).glob(f"{split}-*.json"):
            if path.stem not in known:
                path.unlink()
        shards.remove_asides(out / split)
        if not keep and (out / split).is_dir():
            _unfinish(out / split)
            if not any((out / split).iterdir()):
                (out / split).rmdir()
