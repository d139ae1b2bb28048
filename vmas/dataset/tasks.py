"""The two kinds of task of a build: a block of videos to screen, and a shard of clips to make.

A task is a list of items (videos, clips). Each goes through the three steps of `vmas.dataset.stages`, and `gather`
makes the record of the task from what came out. In one process (`Job.__call__`) an item is finished before the next
is begun, so that only one is in memory; `vmas.dataset.cluster` runs the same functions as stages of a pipeline.
"""

import errno
import math
import os
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmas.config import sha256
from vmas.dataset import shards, stages
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Clip, Options, Rejected, State, Tools
from vmas.errors import DataError, MediaError

REJECTED, FAILED = "rejected", "failed"
# What may have failed by the machine's fault: a later run tries it again, after two tries only where the build would
# stop for it, and always where a machine had no such file.
ONCE, TWICE, NO_FILE = "once", "twice", "no file"
KILLED = "the process that read it died: not enough memory, or a broken file"
FULL = (errno.ENOSPC, errno.EDQUOT)
STATS = 1  # raised when what a shard's statistics count changes: its mark is then made anew


@dataclass(frozen=True)
class Row:
    """One line of the ledger: what a video or clip was left out for. `kind` tells a decision from an error.

    Not in the ledger: `seconds`, what of a video had been found usable before; `tries` of what failed, `ONCE`, `TWICE`
    or `NO_FILE`, and "" where the file itself is at fault and no other try would help.
    """

    id: str
    stage: str
    kind: str
    reason: str
    score: float | None = None
    seconds: float = 0.0
    tries: str = ""


Item = Video | Clip
Outcome = State | Row  # where an item stands: its state, or why it was left out


@dataclass(frozen=True)
class Block:
    """Videos to screen; `head` is id → what the result is kept under, and goes into the record."""

    items: Sequence[Video]
    head: dict[str, str] | None = None


@dataclass(frozen=True)
class ShardHead:
    """What the last step needs of a shard beside its clips: the tar file to write, the task's key, s of a clip."""

    path: str
    key: str
    seconds: float


@dataclass(frozen=True)
class ShardTask:
    """Clips to make, in the order of the shard. `made_by` hashes what they depend on beside their videos."""

    path: str
    items: Sequence[Clip]
    made_by: str = ""
    seconds: float = 0.0  # of a clip

    @property
    def head(self) -> ShardHead:
        return ShardHead(self.path, self.key, self.seconds)

    @property
    def key(self) -> str:
        return sha256(STATS, self.made_by, [[c.name, c.known] for c in self.items])


class Job:
    """One phase of the build. A record holds "rows" of the ledger, "seconds" per stage and what the phase adds."""

    steps: tuple[Any, Any, Any]
    first: str  # its first stage

    def __call__(self, task: Any, tools: Tools, killers: Collection[str] = ()) -> dict[str, Any]:
        """The record of one task, in this process. The items that are `killers` have failed before."""
        outcomes = (
            Row(name_of(item), self.first, FAILED, KILLED, tries=ONCE)
            if name_of(item) in killers
            else through(self.steps, item, {}, tools)
            for item in task.items
        )
        return self.gather(task.head, outcomes) | {"seconds": tools.take_seconds()}

    def through(self, item: Item, tools: Tools) -> None:
        """All steps of one item, for nothing but whether this process survives them."""
        through(self.steps, item, {}, tools)

    def gather(self, head: Any, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        raise NotImplementedError

    def has_models(self, options: Options) -> bool:
        """Whether the middle step is worth processes of its own."""
        raise NotImplementedError


def name_of(item: Item) -> str:
    """The id of a video or clip in the ledger."""
    return item.id if isinstance(item, Video) else item.name


def through(steps, item: Item, outcome: Outcome, tools: Tools) -> Outcome:
    """`outcome` after some steps; what a step raises becomes a line of the ledger. Raises DataError for what is the
    machine's fault and would hit the next item too: a full or broken disk, no memory."""
    name = name_of(item)
    video = item if isinstance(item, Video) else item.video
    try:
        for step in steps:
            if isinstance(outcome, Row):
                break
            outcome = step(item, outcome, tools)
    except Exception as e:  # whatever one video does to a decoder or a model must not end the run
        seconds = float(outcome.get("seconds", 0.0)) if isinstance(outcome, dict) else 0.0
        if isinstance(e, Rejected):
            score = None if math.isnan(e.score) else round(e.score, 6)
            return Row(name, e.stage, REJECTED, e.reason, score, seconds)
        if problem := _machines(e):
            raise DataError(f"{problem} (stage {tools.stage}, {name}); the same command goes on from here") from e
        name_of_file = Path(video.path).name
        if not os.access(video.path, os.R_OK):  # the build has seen it: this machine lacks its folder, or lost it
            reason = f"{name_of_file}: cannot be read on {platform.node()}, though it is in the manifest's folder:"
            reason += " mount that folder on every machine, then give the same command again"
            return Row(name, tools.stage, FAILED, f"FileNotFoundError: {reason}", seconds=seconds, tries=NO_FILE)
        reason = " ".join(str(e).split()).replace(video.path, name_of_file)  # no machine's paths
        tries = "" if _files(e) else ONCE
        return Row(name, tools.stage, FAILED, f"{type(e).__name__}: {reason[:300]}", seconds=seconds, tries=tries)
    return outcome


def _files(e: BaseException) -> bool:
    """Whether the content of the file is at fault, so that it would fail again: what this package says of it, unless
    that was raised from an error of the system."""
    own, cause = isinstance(e, (MediaError, DataError)), e.__cause__ or e.__context__
    while own and cause is not None:
        own, cause = not isinstance(cause, (OSError, MemoryError)), cause.__cause__ or cause.__context__
    return own


def _machines(e: BaseException | None) -> str:
    """What is wrong with the machine, "" where the item may be to blame; looked for in what `e` was raised from."""
    while e is not None:
        if isinstance(e, MemoryError):
            return "out of memory: run again with fewer workers"
        if isinstance(e, OSError):
            # FFmpeg says EIO of files that end too soon
            broken = e.errno == errno.EIO and not type(e).__module__.startswith("av")
            if e.errno in FULL or broken:
                return f"{e.filename or 'disk'}: {e.strerror or e}" + (": free some space" if e.errno in FULL else "")
        e = e.__cause__ or e.__context__
    return ""


class Screen(Job):
    """The first phase. The record's "known" is id → what `stages.fingerprint` found, its "keys" the task's head."""

    steps, first = stages.SCREEN_STEPS, "probe"

    def gather(self, head: dict[str, str] | None, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        known, rows = {}, []
        for o in outcomes:
            if isinstance(o, Row):
                rows.append(asdict(o))
            else:
                known[o["id"]] = {k: v for k, v in o.items() if k != "id"}
        return {"known": known, "rows": rows, "keys": head}

    def has_models(self, options: Options) -> bool:
        return "similarity" in options.models()


class Make(Job):
    """The second phase: writes the shard, or none when every clip is left out; "sha256" is then None."""

    steps, first = stages.CLIP_STEPS, "segments"

    def gather(self, head: ShardHead, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        rows: list[Row] = []
        metas: list[dict[str, Any]] = []
        stats: dict[str, Any] = {}

        def samples() -> Iterable[State]:
            for o in outcomes:
                if isinstance(o, Row):
                    rows.append(o)
                else:
                    metas.append(o[shards.JSON])
                    yield o
            stats.update(statistics(rows, metas, head.seconds))

        shard = shards.write_shard(head.path, samples(), stats)
        if not len(shard):
            Path(head.path).unlink()
            Path(head.path).with_suffix(".json").unlink()
        made = {"clips": len(rows) + len(metas), "sha256": shard.sha256 if len(shard) else None}
        return {"key": head.key, "rows": [asdict(r) for r in rows], **made}

    def has_models(self, options: Options) -> bool:
        return any(s != "similarity" for s in options.models())


def statistics(rows: Sequence[Row], metas: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What is counted of one shard, from its clips that were left out and the JSON of those that stay.

    `clips_in`, `clips_out`, `hours`, means of `similarity` and `removed` where their stages ran, and counts
    `rejected:<stage>`, `failed:<stage>`, `genre:<name>`. No times: equal shards have equal statistics.
    """
    out: dict[str, Any] = {"clips_in": len(rows) + len(metas), "clips_out": len(metas)}
    out["hours"] = round(len(metas) * seconds / 3600, 6)
    for name in ("similarity", "removed"):
        if values := [m[name] for m in metas if name in m]:
            out[name] = round(math.fsum(values) / len(values), 6)
    counts = Counter(f"{r.kind}:{r.stage}" for r in rows)
    counts.update(f"genre:{m['genre']}" for m in metas if "genre" in m)
    return out | dict(sorted(counts.items()))
