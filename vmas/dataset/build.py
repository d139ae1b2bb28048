"""`vmas dataset build`: a manifest of videos → WebDataset shards, a rejection ledger and a dataset card.

    screen every video → compare them (duplicates, held-out splits) → make the clips, shard by shard → index, card

What is known of a video and every shard is a pure function of the manifest's row and file, the options and the models,
and is kept under a hash of them. It is written aside, renamed and then marked, and a restart does what has no mark: a
run that was killed at any moment ends with the same bytes as one that was not. Only `timings.json` tells them apart.
A folder can also be brought up to date (`update`): rows that stayed as they were are not screened again, shards of the
same clips are not made again, and the bytes are those of a build into an empty folder, but for the choice of held-out
videos, which is kept (`vmas.dataset.splits`).

In memory are the manifest, what the screening found and the ledger, and no clips (`vmas.dataset.layout`). Fingerprints
and the indexes that they are compared by lie in the folder while a build runs.
"""

import contextlib
import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vmas.config import sha256
from vmas.dataset import card, dedupe, layout, shards, stages
from vmas.dataset.fingerprints import Shelf
from vmas.dataset.layout import LOCK, SPLITS, WORK
from vmas.dataset.manifest import READERS, Video, content_sha256
from vmas.dataset.pool import Backend, Local
from vmas.dataset.splits import moved, originals, select
from vmas.dataset.stages import Options, Tools
from vmas.dataset.tasks import FAILED, NO_FILE, ONCE, REJECTED, TWICE, Block, Job, Make, Row, Screen
from vmas.errors import DataError
from vmas.pools import cores

LEDGER, TIMINGS = "rejected.parquet", "timings.json"
BLOCK = 16  # videos that are screened together
# More failures than this share stop a run, but one alone never does: of a handful of files, one that is broken is no
# sign that the rest is, and a user with ten of their own videos wants the other nine.
MAX_FAILED, ALWAYS = 0.05, 1
RULE = f"a run stops when more than {ALWAYS} and more than {MAX_FAILED:.0%} of its videos or of its clips fail"
SMALL = 8  # videos that are done in this process before others have loaded their libraries


@dataclass
class Result:
    """What a build found. `kept[split]` counts clips; `seconds` are core seconds (GPU seconds for models there) per
    stage; `video_hours` of usable video were screened and `clip_hours` of clips begun, with those kept before."""

    out: Path
    videos: int
    kept: dict[str, int] = field(default_factory=dict)
    ledger: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    video_hours: float = 0.0
    clip_hours: float = 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Stage → hours of video that went into its phase, per hour that one core (or GPU) spent in it."""
        hours = {k: self.video_hours if k in stages.SCREENED else self.clip_hours for k in self.seconds}
        return {k: round(h * 3600 / self.seconds[k], 3) for k, h in hours.items() if self.seconds[k] > 0}

    def line(self) -> str:
        clips = ", ".join(f"{n} {split}" for split, n in self.kept.items() if n)
        gone = Counter(f"{r.stage} ({r.kind})" for r in self.ledger)
        left_out = ", ".join(f"{n} by {k}" for k, n in sorted(gone.items()))
        text = f"{self.out}: {clips or 'no'} clips of {self.videos} videos; left out: {left_out or 'nothing'}"
        if any(r.kind == FAILED for r in self.ledger):
            text += f" ({RULE})"
        rates = ", ".join(f"{k} {r:.0f}" for k, r in self.rates.items())
        return text + (f"; video-hours per core-hour: {rates}" if rates else "")

    def take(self, seconds: dict[str, float]) -> None:
        for stage, s in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + s


def build(
    videos: Sequence[Video],
    out,
    options: Options,
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    backend: Backend | None = None,
    update: bool = False,
) -> Result:
    """Build the dataset in `out`, or finish what a stopped run began there.

    The work is done by `workers` processes of this machine (default: one per core, for a few videos none but this
    one), or where `backend` does it, such as `vmas.dataset.cluster.Ray`; the bytes are the same. With `update` a
    folder that holds a build of another manifest or other options becomes this one, and keeps what can stay. Its
    held-out videos stay held out and none comes from train, unless `options` name other numbers than it has.

    Leaves `<split>/shard-*.tar` with their indexes, `rejected.parquet` (id, stage, kind, reason, score),
    `dataset_card.md`, `timings.json` (seconds per stage and process) and, last, `dataset.json`. Raises DataError when
    another run works on the folder, when it holds another build and `update` is not given, when more than 5% of the
    videos or clips fail (and more than one), when no clip is left, or when the disk or the memory is full, UsageError
    when the held-out videos leave none to train on.
    """
    options.check(len(videos))
    out = Path(out).absolute()  # processes elsewhere start in another folder
    if backend is None:
        backend = Local(workers or (1 if len(videos) <= SMALL else cores()))
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        with _locked(out):
            with backend:
                return _build(list(videos), out, options, backend, device, progress, say, update)
    except OSError as e:
        raise DataError(f"{e.filename or out}: cannot be written: {e.strerror or e}") from e
    except MemoryError as e:
        raise DataError(f"{out}: out of memory: run again with fewer workers; what is done stays") from e


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
    videos: list[Video], out: Path, options: Options, backend: Backend, device: str, progress: bool, say, update: bool
) -> Result:
    val, test = layout.held_out(out)
    val, test = val if options.val is None else options.val, test if options.test is None else options.test
    options = replace(options, val=val, test=test)
    tools = Tools(options, device)
    keys = tools.keys()
    options.check(len(videos))  # with the numbers that were not given
    say(f"reading both ends of {len(videos)} files, by which a replaced one is told")
    content = dict(zip((v.id for v in videos), content_sha256(videos, progress), strict=True))
    plan = {**layout.plan(options, keys), "rows": sha256(list(content.values()))}
    layout.begin(out, {**plan, "held": [*options.held]}, update)
    before, since = layout.before(out)
    result = Result(out, len(videos))
    with contextlib.closing(Shelf(out / WORK)) as prints:
        work = _Work(out, tools, backend, progress, result, prints)
        say(f"screening {len(videos)} videos")
        screened_by = layout.screen_key(options, keys)
        found = _screen(videos, {i: sha256(screened_by, c) for i, c in content.items()}, work)
        splits = _compare(videos, found, before, work, say)
    say("making clips: " + ", ".join(f"{sum(s == n for s in splits.values())} {n}" for n in SPLITS) + " videos")
    made = _make(layout.Tasks(out, videos, found, splits, content, options, layout.make_key(options, keys)), work)
    if not any(made.values()):
        raise DataError(f"{out}: no clip is left; {result.line()}")
    follows = [since] if any(options.held) and before.val + before.test else []  # else nothing depends on the past
    _finish(out, videos, options, keys, sha256(plan, *follows), made, result, device)
    return result


@dataclass
class _Progress:
    """Counts failures over a whole phase and stops it when there are too many."""

    total: int
    what: str
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def most(self) -> float:
        return max(ALWAYS, MAX_FAILED * self.total)

    def add(self, rows: Sequence[Row]) -> None:
        failed = [f"{r.stage}: {r.reason}" for r in rows if r.kind == FAILED]
        if not failed:
            return
        self.failed += len(failed)
        self.reasons.update(failed)
        if self.failed > self.most:
            worst = "; ".join(f"{n} x {reason}" for reason, n in self.reasons.most_common(3))
            raise DataError(f"{self.failed} of {self.total} {self.what} failed, more than {MAX_FAILED:.0%}: {worst}")

    def keep(self, rows: Sequence[Row]) -> bool:
        """Count failures of earlier runs; False, and none is counted, where no run could go on with them."""
        if self.failed + sum(r.kind == FAILED for r in rows) > self.most:
            return False
        self.add(rows)
        return True


@dataclass
class _Work:
    """What both phases need."""

    out: Path
    tools: Tools
    backend: Backend
    progress: bool
    result: Result
    prints: Shelf

    def run(
        self,
        job: Job,
        names: Sequence[str],
        tasks: Sequence[Any],
        state: _Progress,
        done: int = 0,
        tried: Callable[[int, str], bool] = lambda i, name: False,
    ):
        """(index, record, its rows of the ledger) of every task, once it is marked. `done` tasks were before, and
        `tried` tells of an item of task i whether it had failed before."""
        from tqdm.auto import tqdm

        bar = tqdm(total=done + len(names), initial=done, desc=state.what, disable=None if self.progress else True)
        with bar, contextlib.closing(self.backend.run(job, tasks, self.tools)) as results:
            for i, record in results:
                rows = [Row(**r) for r in record["rows"]]
                rows = [replace(r, tries=TWICE) if r.tries == ONCE and tried(i, r.id) else r for r in rows]
                record |= {"rows": [asdict(r) for r in rows]}
                shards.write_text(self.record(names[i]), json.dumps(record, sort_keys=True) + "\n")
                bar.update()
                state.add(rows)
                yield i, record, rows

    def record(self, name: str) -> Path:
        return self.out / WORK / f"{name}.json"


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _screen(videos: list[Video], keys: dict[str, str], work: _Work) -> dict[str, dict]:
    """id → what is known of every video that passes. `keys` id → hash of what that depends on.

    A record holds the videos of one block, and every video whose key is still the same is taken from it, with its part
    of the seconds. What failed is tried again (`Row.tries`), and so is a video that was too similar and is not by
    today's threshold, since nothing else is known of it. A video whose file is not here is not sent to anybody.
    """
    options = work.tools.options
    known: dict[str, dict] = {}
    gone: dict[str, Row] = {}
    tried: set[str] = set()

    def take(record: dict, rows: list[Row]) -> bool:
        here = {i for i, key in record["keys"].items() if keys.get(i) == key}
        new = [i for i in here if i not in known and i not in gone]
        found = {i: k for i, k in record["known"].items() if i in here}
        similar = [
            Row(i, "similarity", REJECTED, "", k["similarity"], k["seconds"])
            for i, k in found.items()
            if "similarity" in k and stages.too_similar(k["similarity"], options)
        ]
        stay = found.keys() - {r.id for r in similar}
        known.update({i: work.prints.put(i, k) for i, k in found.items() if i in stay})
        for r in [*similar, *(r for r in rows if r.id in here and r.id not in known)]:
            if r.stage == "similarity" and r.kind == REJECTED and r.score is not None:
                r = replace(r, reason=stages.too_similar(r.score, options))
            if r.reason:
                gone[r.id] = r
        lengths = {i: k["seconds"] for i, k in record["known"].items()}
        lengths |= {r["id"]: r["seconds"] for r in record["rows"]}
        mine, total = [lengths[i] for i in new if i in known or i in gone], sum(lengths.values())
        share = sum(mine) / total if total else len(mine) / max(len(lengths), 1)
        work.result.take({k: s * share for k, s in record["seconds"].items()})
        return bool(here)

    for path in sorted((work.out / WORK).glob("screen-*.json")):
        record = _read(path) or {}
        rows = [Row(**r) for r in record.get("rows", ())]
        if not record.get("keys") or not take(record, [r for r in rows if r.tries in ("", TWICE)]):
            path.unlink()
            continue
        tried.update(r.id for r in rows if r.tries == ONCE and keys.get(r.id) == record["keys"][r.id])
    gone = {i: r for i, r in gone.items() if i not in known}
    state = _Progress(len(videos), "videos")
    state.add([r for r in gone.values() if not r.tries])
    twice = [r for r in gone.values() if r.tries]
    if not state.keep(twice):
        tried.update(gone.pop(r.id).id for r in twice)
    left = [v for v in videos if v.id not in known and v.id not in gone]
    with ThreadPoolExecutor(READERS) as pool:
        here = dict(zip((v.id for v in left), pool.map(lambda v: Path(v.path).is_file(), left), strict=True))
    gone.update({v.id: Row(v.id, "probe", REJECTED, "no file on this machine") for v in left if not here[v.id]})
    left = [v for v in left if here[v.id]]
    blocks = [left[i : i + BLOCK] for i in range(0, len(left), BLOCK)]
    names = [f"screen-{sha256([keys[v.id] for v in b])[:16]}" for b in blocks]
    tasks = [Block(b, {v.id: keys[v.id] for v in b}) for b in blocks]
    for _, record, rows in work.run(Screen(), names, tasks, state, tried=lambda _, name: name in tried):
        take(record, rows)
    ids = [v.id for v in videos]
    work.result.ledger += [gone[i] for i in ids if i in gone]
    seconds = (known[i]["seconds"] if i in known else gone[i].seconds for i in ids)
    work.result.video_hours = sum(seconds) / 3600
    return known


def _compare(videos: list[Video], found: dict[str, dict], before: dedupe.Before, work: _Work, say) -> dict[str, str]:
    """id → split of the videos that stay; the others go to the ledger."""
    here = [v for v in videos if v.id in found]
    options, result, folder = work.tools.options, work.result, work.out / WORK
    known = [dedupe.known_of(v, found[v.id], work.prints) for v in here]
    duplicates, group = dedupe.compare(known, folder)
    duplicates = originals(known, duplicates, before) if any(options.held) else duplicates
    for i in sorted(duplicates):
        reason = f"same picture and sound as {known[duplicates[i]].id}"
        result.ledger.append(Row(known[i].id, "duplicates", REJECTED, reason))
    stay = [i for i in range(len(known)) if i not in duplicates]
    chosen = select([known[i] for i in stay], [group[i] for i in stay], *options.held, before, folder)
    if line := moved([known[i] for i in stay], chosen, before):
        say(f"warning: videos change their split: {line}")
    for split, n in zip(SPLITS[1:], options.held, strict=True):
        if before.splits and chosen.count(split) < n:
            say(f"warning: {chosen.count(split)} of {n} {split} videos: too few that were not in train before")
    for i, split in zip(stay, chosen, strict=True):
        if not split:
            reason = "shares source, track, picture or sound with a held-out video"
            result.ledger.append(Row(known[i].id, "splits", REJECTED, reason))
    return {known[i].id: split for i, split in zip(stay, chosen, strict=True) if split}


def _make(tasks: layout.Tasks, work: _Work) -> dict[str, list[Path]]:
    """split → finished shards."""
    sizes: dict[int, int] = {}
    rows: dict[int, list[Row]] = {}
    twice: dict[int, tuple[dict, list[Row]]] = {}
    tried: set[int] = set()
    state = _Progress(tasks.clips, "clips")

    def take(i: int, record: dict, gone: list[Row]) -> None:
        sizes[i] = record["clips"] - len(gone)
        work.result.take(record["seconds"])
        if gone:
            rows[i] = gone

    for split in {split for split, _ in tasks.where}:
        (work.out / split).mkdir(exist_ok=True)
    for i, name in enumerate(tasks.names):
        record = _read(work.record(name))
        if record is None or not _usable(tasks, i, record):
            continue
        gone = [Row(**r) for r in record["rows"]]
        tries = {r.tries for r in gone}
        if tries & {ONCE, NO_FILE}:
            tried |= {i} if ONCE in tries else set()
        elif TWICE in tries:
            twice[i] = record, gone
        else:
            take(i, record, gone)
            state.add(gone)
    if state.keep([r for _, gone in twice.values() for r in gone]):
        for i, found in twice.items():
            take(i, *found)
    else:
        tried.update(twice)
    left = [i for i in range(len(tasks)) if i not in sizes]
    names, chosen = [tasks.names[i] for i in left], layout.Some(tasks, left)
    for k, record, gone in work.run(Make(), names, chosen, state, len(sizes), lambda k, _: left[k] in tried):
        take(left[k], record, gone)
    work.result.ledger += [r for i in sorted(rows) for r in rows[i]]
    work.result.clip_hours = tasks.clips * work.tools.options.profile.clip.seconds / 3600
    made: dict[str, list[Path]] = {s: [] for s in SPLITS}
    work.result.kept = dict.fromkeys(SPLITS, 0)
    for i, (split, _) in enumerate(tasks.where):
        work.result.kept[split] += sizes[i]
        if sizes[i]:
            made[split].append(tasks.path(i))
    layout.tidy(work.out, made, tasks.names)
    return made


def _usable(tasks: layout.Tasks, i: int, record: dict) -> bool:
    """Whether a record is of this very task, and its shard as it says."""
    if record["key"] != tasks[i].key:
        return False
    mark = shards.read_mark(tasks.path(i))
    return record["sha256"] == (mark.sha256 if mark else None)


def _finish(out: Path, videos, options: Options, keys, key: str, made, result: Result, device: str) -> None:
    import pandas as pd

    describe = shards.describe(options.profile) | {
        "kind": "built",
        "key": key,
        "models": keys,
        "stages": {s: v for s, v in stages.VERSIONS.items() if options.runs(s)},
        "clips": result.kept,
    }
    here = [s for s in SPLITS if made[s]]
    for split in here:
        shards.finish(out / split, layout.Marks(made[split]), describe | {"split": split})
    columns = ["id", "stage", "kind", "reason", "score"]
    ledger = pd.DataFrame([asdict(r) for r in result.ledger], columns=columns).astype({"score": float})
    shards.write_parquet(ledger, out / LEDGER)
    kept = {s: card.read(out / s / shards.INDEX) for s in here}
    shards.write_text(out / card.NAME, card.text(videos, kept, ledger, options, keys))
    timings = {
        "videos": result.videos,
        "video_hours": round(result.video_hours, 6),
        "made_hours": round(result.clip_hours, 6),
        "clip_hours": sum(result.kept.values()) * options.profile.clip.seconds / 3600,
        "bytes": sum(p.stat().st_size for part in made.values() for p in part),
        "seconds": {k: round(s, 6) for k, s in sorted(result.seconds.items())},
        "video_hours_per_core_hour": dict(sorted(result.rates.items())),
        "gpu": [] if device == "cpu" else options.models(),
    }
    shards.write_text(out / TIMINGS, json.dumps(timings, indent=1) + "\n")
    shards.write_text(out / shards.MARK, json.dumps(describe, indent=1, sort_keys=True) + "\n")
