"""From a target's name to its table: reuse a record whose key still holds, else compute; then tell it.

A record computed on this machine is remembered in the cache. `source="compute"` (reproduce.sh) reuses
only such local ones, so that the first run on a machine computes there, and then says how far its numbers
lie from the committed record; `source="records"` (a notebook read as it is) takes the committed ones first.
"""

import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from vmas import config, paths, records
from vmas.config import Profile
from vmas.errors import UsageError, VmasError, nearest
from vmas.experiments import registry
from vmas.experiments.registry import Target
from vmas.records import Record

SOURCES = ("records", "compute")


def _module(target: Target) -> ModuleType:
    """The target's module: `key(profile, seed) -> str`, `compute(profile, seed, device, progress, say) -> Record`;
    `figure(record) -> Figure`, `as_markdown(record)` and `as_text(record) -> str` where those of `vmas.report.table`
    do not fit it, and `plan(profile, seed)` as `vmas.pipeline.plan` where it needs other things made."""
    return importlib.import_module(target.module)


def _quiet(_: str) -> None:
    pass


def obtain(
    name: str,
    profile: Profile | str = "mini",
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    source: str = "records",
    progress: bool = True,
    say: Callable[[str], None] = _quiet,
) -> Record:
    """The record of a target: read where its key (config, data, weights, stage versions) holds, else computed.

    Raises UsageError for an unknown or planned target or an unknown source; what computing raises besides.
    """
    if source not in SOURCES:
        raise UsageError(f"unknown source {source!r}: {nearest(source, SOURCES)}")
    target = registry.get(name)
    cfg = config.load(profile) if isinstance(profile, str) else profile
    module = _module(target)
    here = records.local(name, cfg.name, seed)
    if not force:
        key = module.key(cfg, seed)
        places = [here] if source == "compute" else [records.committed(name, cfg.name, seed), here]
        for place in places:
            if record := records.find(place, key):
                return record
    record = module.compute(cfg, seed, device, progress, say)
    records.write(record, here)
    return record


def plan(target: Target, profile: Profile, seed: int = 0) -> str:
    """What `run_target` would do, what is there already, and what it costs."""
    from vmas import pipeline

    module = _module(target)
    key = module.key(profile, seed)
    lines = [f"{target.name}, profile {profile.name}, seed {seed}: {target.title}"]
    steps = [
        (what, paths.relative(where), done)
        for what, where, done in getattr(module, "plan", pipeline.plan)(profile, seed)
    ]
    here = records.find(records.local(target.name, profile.name, seed), key) is not None
    steps.append(("generation and evaluation", "record in the cache", here))
    lines += [f"  {'there' if done else 'to do':6} {what:28} {where}" for what, where, done in steps]
    out = paths.relative(paths.target(profile.name, target.name))
    lines.append(f"  to do  {'notebook, table and figure':28} {out}")
    if here:
        lines.append("  cost   seconds: the record of this machine still holds (--force computes again)")
    else:
        lines.append(f"  cost   {_cost(target, profile, seed, all(done for *_, done in steps[:-1]))}")
    return "\n".join(lines)


def _cost(target: Target, profile: Profile, seed: int, ready: bool) -> str:
    path = records.committed(target.name, profile.name, seed)
    text = "see README for times"
    if path.is_file():
        about = records.read(path).provenance
        text = f"about {about['wall_s'] / 60:.1f} min when this was recorded ({about['hardware']})"
    return text if ready else f"{text}, besides making what is missing above"


def run_notebook(target: Target, profile: str, seed: int, device: str, out) -> Path:
    """Execute a target's notebook with papermill into `out`; it finds the record just computed by its key.

    Raises VmasError naming the cell's error in one line when the notebook fails.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = paths.NOTEBOOKS / target.notebook
    given = {"profile": profile, "seed": seed, "device": device, "force": False, "source": "compute"}
    known = papermill.inspect_notebook(str(source))
    if missing := sorted(set(given) - set(known)):
        raise VmasError(f"{target.notebook}: its parameters cell lacks {', '.join(missing)}")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(
                str(source),
                str(aside),
                given,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(paths.NOTEBOOKS),
                extra_arguments=["--log-level=50"],  # of the kernel application: no notices on the terminal
            )
        except PapermillExecutionError as e:
            raise VmasError(f"{target.notebook}, cell {e.cell_index}: {e.ename}: {' '.join(e.evalue.split())}") from e
        else:
            os.replace(aside, out)
        finally:
            aside.unlink(missing_ok=True)
    return out


def run_target(
    target: Target,
    profile: str,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    save_record: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = _quiet,
    show: Callable[[str], None] = print,
) -> Record:
    """Obtain a target's record, leave table, figure and result in `results/<profile>/<target>/`, execute its notebook.

    Prints the table with `show`, and beside it how far the numbers lie from the committed record.
    """
    from vmas.report import table

    record = obtain(target.name, profile, seed, device, force, "compute", progress, say)
    own = {name: getattr(_module(target), name, None) for name in ("figure", "as_markdown", "as_text")}
    out = table.save(record, paths.target(record.profile, target.name), own["figure"], own["as_markdown"])
    if save_record:
        records.write(record, records.committed(target.name, record.profile, seed))
    say(f"notebook: {target.notebook}")
    told = paths.cache() / "notebooks" / record.profile / target.notebook
    run_notebook(target, profile, seed, device, told)
    show((own["as_text"] or table.plain)(record))
    show(f"\nin {paths.relative(out)}: table.md, table.csv, figure.png, result.json; the notebook as run here: {told}")
    path = records.committed(target.name, record.profile, seed)
    if path.is_file() and not save_record:
        committed = records.read(path)
        other = "" if committed.key == record.key else " (of other code, data or weights)"
        found = records.compare(record, committed)
        show(f"{found}{other}")
        for line in found.lines[:5]:
            show(f"  {line}")
    return record


def run_sweep(
    target: Target,
    profile: str,
    seeds: list[int],
    only: list[str] | None = None,
    device: str = "auto",
    jobs: int = 1,
    force: bool = False,
    save_record: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = _quiet,
    show: Callable[[str], None] = print,
) -> Record | None:
    """Train what is not recorded yet of a sweep target's conditions, then put its table together.

    No `seeds`: nothing is trained, the table comes from the records that are there. `only` names conditions; the
    table is then left to the command that asked for all. `force` trains recorded runs again and shows how far they
    land from their records; without `seeds` it generates and evaluates again from the committed checkpoints, with
    the first of the record's sampling seeds. Raises VmasError when runs failed, after all others are done.
    """
    from vmas import pipeline
    from vmas.experiments import sweep
    from vmas.report import sweeps, table

    cfg = config.load(profile)
    todo = sweep_runs(target, profile, seeds, only)
    before = {(r.name, r.seed): r.record() for r in todo} if todo and sweep.ready(cfg) else {}
    wanted = [r for r in todo if force or not before.get((r.name, r.seed))]
    if wanted:
        pipeline.parts(cfg, 0, progress, say=say)
        failed = sweep.execute(wanted, profile, device, jobs, save_record, progress, say, force)
        if failed:
            raise VmasError(f"{len(failed)} of {len(wanted)} runs failed; first: {failed[0]}")
    for r in wanted if force else ():
        if (old := before.get((r.name, r.seed))) and (new := records.find(_local(r), r.key())):
            show(f"{r.name}, seed {r.seed}: {records.compare(new, old)}")
    if force and not seeds:
        kept = sweep.PUBLISHED
        ready = [(r, folder) for r in sweep_runs(target, profile, [kept], only) if (folder := r.committed)]
        if not ready:
            one = f"--only ROW --seed {kept} --save-record"
            say(f"{target.name}: no checkpoint of seed {kept} is committed; {one} trains and keeps one")
        for r, folder in ready:
            say(f"{r.name}, seed {kept}: from its committed checkpoint")
            pipeline.parts(cfg, 0, progress, say=say, splits=pipeline.TEST_SPLITS)
            new, old = sweep.judged(r, folder, [r.seed], device, progress), r.record()
            found = records.compare(new, old)
            show(f"{r.name}, seed {kept}, its checkpoint with one of {old.rows[0].seeds} sampling seeds: {found}")
            for line in found.lines[:5]:
                show(f"  {line}")
    if only:
        return None
    record = sweep_record(target, profile)
    draw = getattr(importlib.import_module(target.sweep), "figure", None)
    out = table.save(record, paths.target(record.profile, target.name), draw, sweeps.markdown)
    told = ""
    if target.notebook:
        say(f"notebook: {target.notebook}")
        where = paths.cache() / "notebooks" / record.profile / target.notebook
        run_notebook(target, profile, 0, device, where)
        told = f"; the notebook as run here: {where}"
    show(sweeps.plain(record))
    show(f"\nin {paths.relative(out)}: table.md, table.csv, figure.png, result.json{told}")
    return record


def sweep_record(target: Target, profile: str) -> Record:
    """The table of a sweep target from the records that are there, the paper's rows beside it.

    A module's `finish(record, profile, file)` adds what no single run can know; `extra["remarks"]` says in words what
    the numbers say (`vmas.report.remarks`). Raises DataError when no run is recorded yet.
    """
    from vmas.experiments import assemble, sweep
    from vmas.report import paper

    module, cfg = importlib.import_module(target.sweep), config.load(profile)
    found = sweep.recorded(module.TARGET, module.CONDITIONS, profile)
    quoted = [r for name in getattr(module, "QUOTED", ()) for r in paper.quoted_rows(name)]
    title = module.TITLE if module.TARGET == target.name else target.title  # several targets may share the runs
    pairs = getattr(module, "PAIRS", ())
    record = assemble.record(target.name, title, module.CONDITIONS, found, module.REFERENCE, cfg, quoted, pairs)
    record = module.finish(record, cfg, profile) if hasattr(module, "finish") else record
    record = _with(record, reach=_reached(record))
    return _with(record, remarks=_remarks(record, module))


def _with(record: Record, **more: Any) -> Record:
    return dataclasses.replace(record, extra={**record.extra, **more})


def _reached(record: Record) -> list[dict[str, Any]]:
    """How far its rows get towards Table 3's real music through the codec; nothing where that has no record."""
    from vmas.experiments import table3
    from vmas.report import remarks

    bounds = records.committed(table3.TARGET, record.profile, 0)
    return remarks.reached(record, records.read(bounds), table3.CODEC) if bounds.is_file() else []


def _remarks(record: Record, module: ModuleType) -> list[str]:
    from vmas.report import remarks

    told = getattr(module, "TOLD", module.PAPER)
    own = module.remarks(record) if hasattr(module, "remarks") else []
    found = [*own, *remarks.effects(record, told), *remarks.past_their_best(record), *remarks.reach(record, told)]
    return [*found, *remarks.machines(record)]


def plan_sweep(target: Target, profile: str, seeds: list[int], only: list[str] | None = None) -> str:
    """Which runs of a sweep are recorded and which are to do."""
    from vmas.experiments import sweep

    title = f"{target.name}, profile {profile}: {target.title}"
    if not sweep.ready(config.load(profile)):
        return f"{title}\n  to do                corpus, codec and tagger, then every run"
    return f"{title}\n{sweep.listing(sweep_runs(target, profile, seeds, only))}"


def _local(run) -> Path:
    return records.local(run.name, run.profile.name, run.seed)


def sweep_runs(target: Target, profile: str, seeds: list[int], only: list[str] | None = None) -> list:
    """The runs of a sweep target: the paper's rows with all `seeds`, variants with the first few, `only` those named.

    Raises UsageError for a condition that there is not.
    """
    from vmas.experiments import sweep

    module = importlib.import_module(target.sweep)
    names = [c.name for c in module.CONDITIONS]
    for name in only or ():
        if name not in names:
            raise UsageError(f"unknown condition {name!r} of {target.name}: {nearest(name, names)}")
    chosen = [c for c in module.CONDITIONS if not only or c.name in only]
    every = sweep.runs(module.TARGET, chosen, profile, seeds)
    few = seeds if only else seeds[: module.VARIANT_SEEDS]
    return [r for r in every if r.condition.name in module.EVERY_SEED or r.seed in few]
