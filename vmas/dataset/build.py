"""`vmas dataset build`: a manifest of videos → WebDataset shards, a rejection ledger and a dataset card.

    screen every video → compare them (duplicates, held-out splits) → make the clips, shard by shard → index, card

Every block of videos and every shard is a pure function of the manifest, the options and the models. It is written
aside, renamed and then marked, and a restart does what has no mark: a run that was killed at any moment ends with
the same bytes as one that was not. Only `timings.json` tells them apart.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmas.config import sha256
from vmas.dataset import card, dedupe, shards, stages
from vmas.dataset.manifest import Video, content_sha256
from vmas.dataset.pool import Backend, Local
from vmas.dataset.splits import select
from vmas.dataset.stages import Clip, Options, Tools
from vmas.dataset.tasks import FAILED, REJECTED, Block, Job, Make, Row, Screen, ShardTask
from vmas.errors import DataError

WORK, LOCK, PLAN = ".build", "lock", "plan.json"
LEDGER, TIMINGS = "rejected.parquet", "timings.json"
SPLITS = ("train", "val", "test")
BLOCK = 16  # videos that are screened together
MAX_FAILED = 0.05
SMALL = 8  # videos that are done in this process before others have loaded their libraries


@dataclass
class Result:
    """What a build found. `kept[split]` counts clips."""

    out: Path
    videos: int
    kept: dict[str, int] = field(default_factory=dict)
    ledger: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        clips = ", ".join(f"{n} {split}" for split, n in self.kept.items() if n)
        gone = Counter(f"{r.stage} ({r.kind})" for r in self.ledger)
        left_out = ", ".join(f"{n} by {k}" for k, n in sorted(gone.items()))
        return f"{self.out}: {clips or 'no'} clips of {self.videos} videos; left out: {left_out or 'nothing'}"


def build(
    videos: Sequence[Video],
    out,
    options: Options,
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    backend: Backend | None = None,
) -> Result:
    """Build the dataset in `out`, or finish what a stopped run began there.

    The work is done by `workers` processes of this machine (default: one per core, for a few videos none but this
    one), or where `backend` does it, such as `vmas.dataset.cluster.Ray`; the bytes are the same.

    Leaves `<split>/shard-*.tar` with their indexes, `rejected.parquet` (id, stage, kind, reason, score),
    `dataset_card.md`, `timings.json` (seconds per stage and process) and, last, `dataset.json`. Raises DataError when
    another run works on the folder, when it holds a build of other videos or options, when more than 5% of the
    videos or clips fail, when no clip is left, or when the disk is full.
    """
    out = Path(out).absolute()  # processes elsewhere start in another folder
    if backend is None:
        backend = Local(workers or (1 if len(videos) <= SMALL else os.cpu_count() or 1))
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        with _locked(out):
            with backend:
                return _build(list(videos), out, options, backend, device, progress, say)
    except OSError as e:
        raise DataError(f"{e.filename or out}: cannot be written: {e.strerror or e}") from e


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    # The system gives the lock back when its holder ends, however it ends.
    with open(out / WORK / LOCK, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another run is building here; wait for it, or name another folder") from None
        yield


def _build(
    videos: list[Video], out: Path, options: Options, backend: Backend, device: str, progress: bool, say
) -> Result:
    tools = Tools(options, device)
    keys = tools.keys()
    plan = {
        "screen": sha256(stages.screen_key(options, keys), content_sha256(videos), BLOCK),
        "make": stages.make_key(options, keys),
    }
    _same_plan(out, plan)
    result = Result(out, len(videos))
    say(f"screening {len(videos)} videos")
    found = _screen(videos, out, tools, backend, progress, result)
    splits = _compare(videos, found, options, result)
    say("making clips: " + ", ".join(f"{sum(s == n for s in splits.values())} {n}" for n in SPLITS) + " videos")
    made = _make(videos, found, splits, out, tools, backend, progress, result)
    if not any(len(s) for part in made.values() for s in part):
        raise DataError(f"{out}: no clip is left; {result.line()}")
    _finish(out, videos, options, keys, plan, made, result, device)
    return result


def _same_plan(out: Path, plan: dict[str, str]) -> None:
    path = out / WORK / PLAN
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        before = {}
    if before is not None and before != plan:
        raise DataError(f"{out}: holds a build of another manifest, other options or models; name another folder")
    if before is None:
        if any(out.glob("*/*.tar")) or any(out.glob("*.tar")):
            raise DataError(f"{out}: holds shards that this command did not make; name another folder")
        shards.write_text(path, json.dumps(plan) + "\n")
    for split in SPLITS:
        _remove_asides(out / split)


def _remove_asides(folder: Path) -> None:
    """What a killed process was writing."""
    for path in folder.glob(".shard-*"):
        path.unlink(missing_ok=True)


@dataclass
class _Progress:
    """Counts failures over a whole phase and stops it when there are too many."""

    total: int
    what: str
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        failed = [r for r in self.rows if r.kind == FAILED]
        if len(failed) > max(1, MAX_FAILED * self.total):
            counts = Counter(f"{r.stage}: {r.reason}" for r in failed).most_common(3)
            worst = "; ".join(f"{n} x {reason}" for reason, n in counts)
            raise DataError(f"{len(failed)} of {self.total} {self.what} failed, more than {MAX_FAILED:.0%}: {worst}")


def _run(job: Job, tasks: dict[str, Any], out: Path, tools: Tools, backend: Backend, progress: bool, state, usable):
    """name → record of every task: read where it is marked and `usable`, else made and marked. A record holds
    "rows" of the ledger and "seconds" per stage."""
    from tqdm.auto import tqdm

    records: dict[str, dict] = {}
    for name in tasks:
        record = _read(out / WORK / f"{name}.json")
        # What failed may have been the machine's fault: it is tried again.
        if record is not None and usable(name, record) and all(r["kind"] != FAILED for r in record["rows"]):
            records[name] = record
            state.add([Row(**r) for r in record["rows"]])
    left = [n for n in tasks if n not in records]
    bar = tqdm(total=len(tasks), initial=len(records), desc=state.what, disable=None if progress else True)
    with bar, contextlib.closing(backend.run(job, [tasks[n] for n in left], tools)) as results:
        for i, record in results:
            shards.write_text(out / WORK / f"{left[i]}.json", json.dumps(record, sort_keys=True) + "\n")
            records[left[i]] = record
            bar.update()
            state.add([Row(**r) for r in record["rows"]])
    return {n: records[n] for n in tasks}


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _screen(videos, out: Path, tools: Tools, backend: Backend, progress: bool, result: Result) -> dict[str, dict]:
    blocks = {f"screen-{i // BLOCK:06d}": Block(videos[i : i + BLOCK]) for i in range(0, len(videos), BLOCK)}
    state = _Progress(len(videos), "videos")
    records = _run(Screen(), blocks, out, tools, backend, progress, state, lambda *_: True)
    _take(records, result)
    return {name: known for r in records.values() for name, known in r["known"].items()}


def _take(records: dict[str, dict], result: Result) -> None:
    for r in records.values():
        result.ledger += [Row(**row) for row in r["rows"]]
        for stage, s in r["seconds"].items():
            result.seconds[stage] = result.seconds.get(stage, 0.0) + s


def _compare(videos: list[Video], found: dict[str, dict], options: Options, result: Result) -> dict[str, str]:
    """id → split of the videos that stay; the others go to the ledger."""
    here = [v for v in videos if v.id in found]
    known = [dedupe.known_of(v, found[v.id]) for v in here]
    duplicates, group = dedupe.compare(known)
    for i in sorted(duplicates):
        reason = f"same picture and sound as {known[duplicates[i]].id}"
        result.ledger.append(Row(known[i].id, "duplicates", REJECTED, reason))
    stay = [i for i in range(len(known)) if i not in duplicates]
    chosen = select([known[i] for i in stay], [group[i] for i in stay], options.val, options.test)
    for i, split in zip(stay, chosen, strict=True):
        if not split:
            reason = "shares source, track, picture or sound with a held-out video"
            result.ledger.append(Row(known[i].id, "splits", REJECTED, reason))
    return {known[i].id: split for i, split in zip(stay, chosen, strict=True) if split}


def _make(videos, found, splits, out: Path, tools: Tools, backend: Backend, progress: bool, result: Result):
    """split → finished shards."""
    size, tasks, total = tools.options.shard_size, dict[str, ShardTask](), 0
    for split in SPLITS:
        here = [v for v in videos if splits.get(v.id) == split]
        clips = [
            Clip(v, start, {k: x for k, x in found[v.id].items() if k not in ("pictures", "sound", "quality")})
            for v in here
            for start in stages.segment_starts(v, found[v.id]["seconds"], tools.options)
        ]
        total += len(clips)
        if clips:
            (out / split).mkdir(exist_ok=True)
        for n, i in enumerate(range(0, len(clips), size)):
            path = str(out / split / shards.shard_name(n))
            tasks[f"{split}-{n:06d}"] = ShardTask(path, clips[i : i + size])

    def usable(name: str, record: dict) -> bool:
        mark = shards.read_mark(tasks[name].path)
        same = record["sha256"] == (mark.sha256 if mark else None)
        return same and record["key"] == tasks[name].key

    state = _Progress(total, "clips")
    records = _run(Make(), tasks, out, tools, backend, progress, state, usable)
    _take(records, result)
    made: dict[str, list[shards.Shard]] = {s: [] for s in SPLITS}
    for name in tasks:
        mark = shards.read_mark(tasks[name].path)
        if mark is not None:
            made[name.split("-")[0]].append(mark)
    for split in SPLITS:  # of a run that had planned more, and of workers that were killed in this one
        for path in {*(out / split).glob("shard-*.tar")} - {out / split / s.name for s in made[split]}:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
        _remove_asides(out / split)
    result.kept = {s: sum(map(len, part)) for s, part in made.items()}
    return made


def _finish(out: Path, videos, options: Options, keys, plan, made, result: Result, device: str) -> None:
    import pandas as pd

    describe = shards.describe(options.profile) | {
        "kind": "built",
        "key": sha256(plan),
        "models": keys,
        "stages": {s: v for s, v in stages.VERSIONS.items() if options.runs(s)},
        "clips": result.kept,
    }
    for split, part in made.items():
        if part:
            shards.finish(out / split, part, describe | {"split": split})
    columns = ["id", "stage", "kind", "reason", "score"]
    ledger = pd.DataFrame([asdict(r) for r in result.ledger], columns=columns).astype({"score": float})
    shards.write_parquet(ledger, out / LEDGER)
    samples = {s: shards.read_index(out / s)[0] for s, part in made.items() if part}
    shards.write_text(out / card.NAME, card.text(videos, samples, ledger, options, keys))
    hours = sum(result.kept.values()) * options.profile.clip.seconds / 3600
    timings = {
        "videos": result.videos,
        "clip_hours": hours,
        "bytes": sum(s.bytes for part in made.values() for s in part),
        "seconds": {k: round(s, 3) for k, s in sorted(result.seconds.items())},
        "gpu": [] if device == "cpu" else options.models(),
    }
    shards.write_text(out / TIMINGS, json.dumps(timings, indent=1) + "\n")
    shards.write_text(out / shards.MARK, json.dumps(describe, indent=1, sort_keys=True) + "\n")
