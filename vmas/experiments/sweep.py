"""Many training runs as one command: every condition of a table with several seeds (`vmas reproduce table5 --seeds 5`).

A run is (condition, seed): train, generate for both test sets, evaluate, one record. Runs whose record still
holds are skipped, an interrupted run goes on where it stopped (its training state lies in the cache), a run
that fails is reported and the others go on. On a CPU the runs follow each other; with several GPUs, or several
jobs a GPU, each goes to a process of its own.
"""

import dataclasses
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmas import checkpoint, config, paths, records, versions
from vmas.config import Profile, sha256
from vmas.errors import UsageError, VmasError, nearest
from vmas.experiments import references, table3
from vmas.pools import cores
from vmas.records import Record

STAGES = (*table3.STAGES, "training")
PUBLISHED = 2  # the seed whose weights go with the repository; what its stage 1 learnt is there too


@dataclass(frozen=True)
class Condition:
    """What a row of a table changes in the profile: `overrides` as `config.load` takes them.

    `paper` is the row of the paper that it stands for, "" for a variant of ours; `share` the share of the
    training clips that it sees; `data` a set of `vmas.experiments.cleaning_data`, a corpus of `corpora_data` or the
    further clips of `more_data` in place of the corpus's own clips; `published` says that the weights of its seed
    `PUBLISHED` go with the repository. `run` names the run of another sweep that it is ("table5-contrastive"),
    `against` the row that it is compared with where that is not the sweep's reference; stage 2 has `longer` times the
    profile's updates.
    """

    name: str
    label: str
    overrides: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    share: float = 1.0
    about: str = ""
    data: str = ""
    published: bool = False
    run: str = ""
    against: str = ""
    longer: int = 1

    def of(self, profile: Profile) -> Profile:
        """`profile` with what this row changes."""
        steps = self.overrides.get("train", {}).get("steps", profile.train.steps)
        more = {"train": {"steps": self.longer * steps}} if self.longer != 1 else {}
        return config.changed(config.changed(profile, self.overrides), more)


@dataclass(frozen=True)
class Run:
    """One training of a sweep."""

    target: str
    condition: Condition
    profile: Profile  # with the condition's overrides
    seed: int

    @property
    def name(self) -> str:
        return self.condition.run or f"{self.target}-{self.condition.name}"

    def key(self) -> str:
        """Hash of what its numbers depend on."""
        from vmas.corpus import data_sha256

        about = {k: v for k, v in config.plain(self.profile).items() if k not in ("note", "status")}
        root = paths.checkpoints(self.profile.name)
        shas = [checkpoint.read_manifest(root / n)["sha256"] for n in ("codec", "tagger")]
        given = [self.condition.share, data_sha256(self.profile), shas, self.seed, versions.of(*STAGES)]
        if self.condition.data:
            given.append(_sets(self.condition.data).key(self.profile, self.condition.data, self.seed))
        return sha256(about, *given)

    def record(self) -> Record | None:
        """Its record, committed or of this machine, where it still holds; its rows have the condition's label.

        A label is no part of the key: a row may have been named anew since, or have two names in two sweeps.
        """
        key, label = self.key(), self.condition.label
        for place in (records.committed, records.local):
            if found := records.find(place(self.name, self.profile.name, self.seed), key):
                rows = tuple(dataclasses.replace(r, system=label) for r in found.rows)
                return dataclasses.replace(found, title=label, rows=rows)
        return None

    @property
    def folder(self) -> Path:
        """Where its checkpoint goes."""
        return paths.cache() / "sweep" / self.profile.name / f"{self.name}-seed{self.seed}"

    @property
    def committed(self) -> Path | None:
        """Its committed checkpoint, where that is the one that its record was computed with."""
        record, folder = self.record(), paths.checkpoints(self.profile.name) / f"{self.name}-seed{self.seed}"
        if record is None or not (folder / checkpoint.MANIFEST).is_file():
            return None
        same = checkpoint.read_manifest(folder)["sha256"] == record.provenance["checkpoint_sha256"]
        return folder if same else None


def runs(target: str, conditions: Sequence[Condition], profile: str, seeds: Sequence[int]) -> list[Run]:
    """Every (condition, seed), seed by seed, so that an early end leaves whole comparisons."""
    cfg = config.load(profile)
    return [Run(target, c, c.of(cfg), s) for s in seeds for c in conditions]


def perform(
    run: Run, device: str, progress: bool, say: Callable[[str], None], publish: bool = False, again: bool = False
) -> Record:
    """Train, generate, evaluate: the record of one run, with the scores of every clip in `extra`.

    `publish` puts what stage 1 learnt among the checkpoints, `again` trains stage 2 anew where it was finished
    (`vmas.training.stages.train_profile`).
    """
    from vmas.generate import pick_device
    from vmas.training.stages import train_profile

    start, device = time.monotonic(), pick_device(device)
    say(f"{run.name}, seed {run.seed}: {run.condition.label}")
    data, about = _data(run, progress, say)
    share = run.condition.share
    p = run.profile
    if p.train.precision == "auto":  # rows are compared wherever they were trained: not half precision on a GPU alone
        p = config.changed(p, {"train": {"precision": "fp32"}})
    folder = train_profile(p, run.seed, device, run.folder, progress, say, share, data, publish, again)
    seeds = [run.seed + i for i in range(run.profile.eval.sweep_sampling_seeds)]
    return judged(run, folder, seeds, device, progress, start, about)


def judged(
    run: Run,
    folder: Path,
    sampling_seeds: Sequence[int],
    device: str = "cpu",
    progress: bool = True,
    start: float | None = None,
    about: dict[str, Any] | None = None,
) -> Record:
    """Generate with the checkpoint in `folder` for both test sets and evaluate: a record under the run's key.

    `start` is the clock (`time.monotonic`) that its wall time counts from; `about` goes into `extra`.
    """
    import torch
    from tqdm.auto import tqdm

    from vmas.codec import load_codec
    from vmas.corpus import data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.experiments import evaluate
    from vmas.generate import pick_device
    from vmas.model import VMAs

    device = pick_device(device)
    torch.backends.cudnn.allow_tf32 = False  # as the training is: a GPU's convolutions in float32 too
    start, p = time.monotonic() if start is None else start, run.profile
    root = paths.checkpoints(p.name)
    model = VMAs.from_pretrained(folder, device, load_codec(root / "codec"))
    rows, clips = [], {}
    with evaluate.Evaluator(load_tagger(root / "tagger").to(device), p.clip.sample_rate) as judge:
        for name, dataset in table3.DATASETS.items():
            found = references.load(p, name, dataset, model.codec, judge, progress)
            total = 2 * found.n * len(sampling_seeds)
            with tqdm(total=total, desc=f"{run.name} {name}", unit="clip", disable=None if progress else True) as bar:
                draws = [references.generated(model, found, s, judge, bar) for s in sampling_seeds]
            rows += evaluate.rows(run.condition.label, dataset, draws, found.reference, p)
            clips[dataset] = evaluate.per_clip(draws, found.reference, p)
    manifest = checkpoint.read_manifest(folder)
    stages = manifest["training"]
    training = stages["vmas"]
    command = f"vmas reproduce {run.target} --profile {p.name} --only {run.condition.name} --seed {run.seed}"
    wall = time.monotonic() - start
    prov = records.provenance(command, wall, sha256(p), data_sha256(p), manifest["sha256"], device)
    extra = {
        "condition": dataclasses.asdict(run.condition),
        "seed": run.seed,
        "per_clip": {
            d: {m: [None if x != x else round(float(x), 5) for x in v] for m, v in c.items()} for d, c in clips.items()
        },
        "curve": training["curve"],
        "train_s": training["seconds"],
        "stage1": {
            n: sha
            for n in ("motion", "music")
            if (sha := stages.get(n, {}).get("sha256") or stages.get(n, {}).get("state_sha256"))
        },
        **(about or {}),
    }
    return Record(run.name, p.name, run.condition.label, run.key(), tuple(rows), prov, extra)


def _data(run: Run, progress: bool, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """The training clips of a run where they are not the corpus's own, and what its record says of them."""
    name = run.condition.data
    if not name:
        return None, {}
    from vmas.training.stages import the_codec

    found = _sets(name).load(run.profile, name, run.seed, the_codec(run.profile), progress=progress, say=say)
    return found, {"set": _sets(name).composition(run.profile, name, run.seed, progress=progress)}


def _sets(name: str) -> Any:
    """The module that knows the training clips called `name`: `key`, `load` and `composition`."""
    from vmas.experiments import cleaning_data, corpora_data, more_data

    known = {name: module for module in (corpora_data, cleaning_data, more_data) for name in module.SETS}
    if name not in known:
        raise UsageError(f"no training clips are called {name!r}: {nearest(name, known)}")
    return known[name]


def execute(
    todo: Sequence[Run],
    profile: str,
    device: str = "auto",
    jobs: int = 1,
    save_record: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
    again: bool = False,
) -> list[str]:
    """Perform `todo`; returns one line for each run that failed. Finished runs stay whatever happens later.

    `again` trains those anew whose training was finished before.
    """
    slots = devices(device, jobs)
    failed: list[str] = []
    if len(slots) == 1:
        for i, run in enumerate(todo, 1):
            say(f"run {i} of {len(todo)}")
            try:
                keep(perform(run, slots[0], progress, say, save_record, again), run, save_record)
            except (VmasError, RuntimeError) as e:  # torch's lack of memory is a RuntimeError
                failed.append(f"{run.name}, seed {run.seed}: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
        return failed
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def work(run: Run) -> None:
        slot = free.get()
        try:
            problem = _child(run, profile, slot, save_record, again, max(1, cores() // len(slots)))
        finally:
            free.put(slot)
        say(f"{run.name}, seed {run.seed}: {problem or 'done'} on {slot}")
        if problem:
            failed.append(f"{run.name}, seed {run.seed}: {problem}")

    with ThreadPoolExecutor(len(slots)) as pool:
        list(pool.map(work, todo))
    return failed


def keep(record: Record, run: Run, save_record: bool) -> None:
    """Write a run's record to the cache, and among the committed ones when asked to, there with its weights.

    Only the weights of seed `PUBLISHED` are kept, of the conditions that say so: a repository is no place for all.
    """
    records.write(record, records.local(run.name, run.profile.name, run.seed))
    if save_record:
        if run.condition.published and run.seed == PUBLISHED:
            checkpoint.copy(run.folder, paths.checkpoints(run.profile.name) / run.folder.name)
        records.write(record, records.committed(run.name, run.profile.name, run.seed))


def devices(device: str, jobs: int) -> list[str]:
    """A slot for every run that may go at the same time: each GPU `jobs` times, or the CPU once."""
    import torch

    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    if device == "cpu" or not torch.cuda.is_available():
        if jobs > 1:
            raise UsageError("--jobs needs a GPU: on a CPU two trainings at once take longer than one after the other")
        return ["cpu"]
    names = [device] if device.startswith("cuda:") else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return names * jobs


def _child(run: Run, profile: str, slot: str, save_record: bool, again: bool = False, share: int = 1) -> str:
    """One run in a process that sees one GPU and takes `share` cores; returns what went wrong, or nothing."""
    line = [sys.executable, "-m", "vmas", "reproduce", run.target, "--profile", profile, "--quiet"]
    line += ["--only", run.condition.name, "--seed", str(run.seed), "--device", "cuda"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible(slot), "TQDM_DISABLE": "1"}
    # else each would start threads and processes for all cores
    env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), str(share))
    log = paths.cache() / "sweep" / f"{run.name}-seed{run.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        line += ["--save-record"] * save_record + ["--force"] * again
        done = subprocess.run(line, env=env, stdout=out, stderr=out)
    if done.returncode == 0 and run.record():
        return ""
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
    return f"exit code {done.returncode}: {last[0] if last else 'no message'} ({log})"


def visible(slot: str) -> str:
    """What `CUDA_VISIBLE_DEVICES` must say so that a process sees the GPU `slot` ("cuda:1") of this one alone."""
    index = int(slot.removeprefix("cuda:"))
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[index].strip() if mine else str(index)


def ready(profile: Profile) -> bool:
    """Whether the codec and the tagger are there, which the keys of the runs name."""
    root = paths.checkpoints(profile.name)
    return all((root / n / checkpoint.MANIFEST).is_file() for n in ("codec", "tagger"))


def recorded(target: str, conditions: Sequence[Condition], profile: Profile | str) -> dict[str, list[Record]]:
    """The records of every condition that still hold, by condition, in the order of the seeds."""
    out: dict[str, list[Record]] = {}
    cfg = config.load(profile) if isinstance(profile, str) else profile
    for c in conditions:
        p = c.of(cfg)
        found = (Run(target, c, p, s).record() for s in records.seeds(Run(target, c, p, 0).name, p.name))
        out[c.name] = [r for r in found if r]
    return out


def listing(all_runs: Sequence[Run]) -> str:
    """Which runs have their record and which are to do, for `--dry-run`."""
    lines = []
    for run in all_runs:
        found = run.record()
        took = f"recorded, {found.provenance['wall_s'] / 60:.0f} min" if found else "to do"
        of = f" ({run.condition.name})" if run.condition.run else ""
        lines.append(f"  {took:20} {run.name}{of}, seed {run.seed}: {run.condition.label}")
    return "\n".join(lines)
