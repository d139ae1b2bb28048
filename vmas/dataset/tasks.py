"""The two kinds of task of a build: a block of videos to screen, and a shard of clips to make.

A task is a list of items (videos, clips). Each goes through the three steps of `vmas.dataset.stages`, and `gather`
makes the record of the task from what came out. In one process (`Job.__call__`) an item is finished before the next
is begun, so that only one is in memory; `vmas.dataset.cluster` runs the same functions as stages of a pipeline.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmas.config import sha256
from vmas.dataset import shards, stages
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Clip, Options, Rejected, State, Tools

REJECTED, FAILED = "rejected", "failed"


@dataclass(frozen=True)
class Row:
    """One line of the ledger: what a video or clip was left out for. `kind` tells a decision from an error."""

    id: str
    stage: str
    kind: str
    reason: str
    score: float | None = None


Item = Video | Clip
Outcome = State | Row  # where an item stands: its state, or why it was left out


@dataclass(frozen=True)
class Block:
    """Videos to screen."""

    items: Sequence[Video]
    head: None = None


@dataclass(frozen=True)
class ShardHead:
    """What the last step needs of a shard beside its clips: the tar file to write and the task's key."""

    path: str
    key: str


@dataclass(frozen=True)
class ShardTask:
    """Clips to make, in the order of the shard."""

    path: str
    items: Sequence[Clip]

    @property
    def head(self) -> ShardHead:
        return ShardHead(self.path, self.key)

    @property
    def key(self) -> str:
        return sha256([[c.name, c.known] for c in self.items])


class Job:
    """One phase of the build. A record holds "rows" of the ledger, "seconds" per stage and what the phase adds."""

    steps: tuple[Any, Any, Any]

    def __call__(self, task: Any, tools: Tools) -> dict[str, Any]:
        """The record of one task, in this process."""
        outcomes = (through(self.steps, item, {}, tools) for item in task.items)
        return self.gather(task.head, outcomes) | {"seconds": tools.take_seconds()}

    def gather(self, head: Any, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        raise NotImplementedError

    def has_models(self, options: Options) -> bool:
        """Whether the middle step is worth processes of its own."""
        raise NotImplementedError


def through(steps, item: Item, outcome: Outcome, tools: Tools) -> Outcome:
    """`outcome` after some steps; what a step raises becomes a line of the ledger."""
    name = item.id if isinstance(item, Video) else item.name
    video = item if isinstance(item, Video) else item.video
    try:
        for step in steps:
            if isinstance(outcome, Row):
                break
            outcome = step(item, outcome, tools)
    except Rejected as e:
        return Row(name, e.stage, REJECTED, e.reason, None if math.isnan(e.score) else round(e.score, 6))
    except Exception as e:  # whatever one video does to a decoder or a model must not end the run
        reason = " ".join(str(e).split()).replace(video.path, Path(video.path).name)  # no machine's paths
        return Row(name, tools.stage, FAILED, f"{type(e).__name__}: {reason[:300]}")
    return outcome


class Screen(Job):
    """The first phase. The record's "known" is id → what `stages.fingerprint` found."""

    steps = stages.SCREEN_STEPS

    def gather(self, head: None, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        known, rows = {}, []
        for o in outcomes:
            if isinstance(o, Row):
                rows.append(asdict(o))
            else:
                known[o["id"]] = {k: v for k, v in o.items() if k != "id"}
        return {"known": known, "rows": rows}

    def has_models(self, options: Options) -> bool:
        return "similarity" in options.models()


class Make(Job):
    """The second phase: writes the shard, or none when every clip is left out; "sha256" is then None."""

    steps = stages.CLIP_STEPS

    def gather(self, head: ShardHead, outcomes: Iterable[Outcome]) -> dict[str, Any]:
        rows = []

        def samples() -> Iterable[State]:
            for o in outcomes:
                if isinstance(o, Row):
                    rows.append(asdict(o))
                else:
                    yield o

        shard = shards.write_shard(head.path, samples())
        if not len(shard):
            Path(head.path).unlink()
            Path(head.path).with_suffix(".json").unlink()
        return {"key": head.key, "rows": rows, "sha256": shard.sha256 if len(shard) else None}

    def has_models(self, options: Options) -> bool:
        return any(s != "similarity" for s in options.models())
