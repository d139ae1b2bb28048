"""Run a target: reuse or compute its record, execute its notebook, leave table, figure and result.

Two questions are kept apart. A notebook that is merely read or tested shows the committed record
(`source="record"`). `./reproduce.sh TARGET` computes on this machine (`source="compute"`), once: what was
computed here is remembered in the cache and reused while its key holds, and every value is compared
with the committed record.
"""

import importlib
import time
from collections.abc import Callable
from pathlib import Path

from vmas import config, paths, pipeline, records
from vmas.errors import DataError, UsageError, VmasError
from vmas.experiments.registry import Target, get
from vmas.records import Record
from vmas.report import table

SOURCES = ("record", "compute")


def obtain(
    name: str, profile: str = "mini", seed: int = 0, device: str = "auto", force: bool = False, source: str = "record"
) -> Record:
    """The record of a target: committed, remembered, or computed now (see the module's text).

    Raises UsageError for an unknown target or source; DataError when `source="record"` finds no committed
    record with the current key and profile is not smoke.
    """
    target = get(name)
    if source not in SOURCES:
        raise UsageError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    module = importlib.import_module(target.module or "")
    p = config.load(profile)
    key = module.key(p, seed)
    kept = records.committed(name, profile, seed)
    if source == "record" and not force:
        found = records.find(kept, key)
        if found is not None:
            return found
        if profile != "smoke":
            raise DataError(
                f"{paths.relative(kept)}: no record with the current config, data, weights and code versions;"
                f" make one with './reproduce.sh {name} --profile {profile}'"
            )
    here = records.local(name, profile, seed)
    if not force and (found := records.find(here, key)) is not None:
        return found
    record = module.compute(p, seed, device)
    records.write(record, here)
    return record


def plan(name: str, profile: str, seed: int = 0, force: bool = False) -> list[str]:
    """What a run would do, as lines: what is there, what will be made, what it costs."""
    target = get(name)
    p = config.load(profile)
    module = importlib.import_module(target.module or "")
    lines = [f"{name}: {target.title} (profile {profile}, seed {seed})"]
    steps = pipeline.plan(p, seed)
    lines += [f"  {'have' if done else 'make'}  {what}" for what, _, done in steps]
    try:
        key = module.key(p, seed)
    except VmasError as e:
        return [*lines, f"  stop  {e}"]
    cached = not force and records.find(records.local(name, profile, seed), key) is not None
    lines.append(f"  {'have' if cached else 'make'}  record computed on this machine")
    lines.append(f"  run   notebooks/{target.notebook}")
    minutes = {"smoke": target.minutes[0], "mini": target.minutes[1]}.get(profile)
    cost = "seconds" if cached else f"about {minutes} minutes on 2 cores" if minutes else "hours, on GPUs"
    return [*lines, f"  cost  {cost}"]


def execute(target: Target, parameters: dict, out: Path) -> Path:
    """Run a notebook with papermill into `out`. Raises UsageError for a parameter that it does not have."""
    import papermill

    source = paths.NOTEBOOKS / (target.notebook or "")
    known = papermill.inspect_notebook(str(source))
    for name in parameters:
        if name not in known:
            raise UsageError(f"{source.name} has no parameter {name!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(source), str(out), parameters=parameters, cwd=str(paths.NOTEBOOKS), progress_bar=False, log_output=False
    )
    return out


def run_target(
    name: str,
    profile: str = "mini",
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """What `./reproduce.sh TARGET` does."""
    target = get(name)
    if dry_run:
        say("\n".join(plan(name, profile, seed, force)))
        return
    start = time.monotonic()
    record = obtain(name, profile, seed, device, force, source="compute")
    folder = table.save(record, paths.target(profile, name))
    execute(
        target,
        {"profile": profile, "seed": seed, "device": device, "source": "compute"},
        paths.cache() / "notebooks" / profile / (target.notebook or ""),
    )
    say(table.plain(record))
    reference = records.committed(name, profile, seed)
    if reference.is_file():
        differences = records.compare(record, records.read(reference))
        say(
            f"\nEvery value equals the committed record {paths.relative(reference)}."
            if not differences
            else f"\n{len(differences)} values differ from the committed record, the furthest:\n"
            + "\n".join(differences[:5])
        )
    say(f"\n{paths.relative(folder)}/: table.md, table.csv, figure.png, result.json ({time.monotonic() - start:.0f} s)")
