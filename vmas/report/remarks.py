"""What a sweep's numbers say, in words made of its record by stated rules: the note under its table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vmas.records import Record
from vmas.report import sweeps, table

RISE = 0.005  # share by which a validation objective may lie over its lowest before it counts as risen


def past_their_best(record: Record, by: float = RISE) -> list[str]:
    """A line on the rows whose own validation objective had risen again, by more than a share `by`, at the end."""
    found = sweeps.trained(record)
    over = found[found["L last"] > (1 + by) * found["L best"]] if len(found) else found
    if not len(over):
        return []
    named = "; ".join(
        f"{name} {min(part['best'])} of {max(part['updates'])}" for name, part in over.groupby("condition", sort=False)
    )
    return [
        "Trained past the lowest of their own validation objective (reached after so many updates), and evaluated at"
        f" the end as every row is: {named}. Where such a row is worse, what was learnt by heart may be the cause."
    ]


def machines(record: Record) -> list[str]:
    """A line on what the runs were trained on, where it was more than one machine, and how many pairs are of two."""
    of = record.extra.get("machines", {})
    counts = Counter(hardware for seeds in of.values() for hardware in seeds.values())
    if len(counts) < 2:
        return []
    pairs = [
        (of[name][seed], of[to][seed])
        for name, to, _ in sweeps.compared(record)
        for seed in of[name]
        if seed in of.get(to, {})
    ]
    mixed = sum(a != b for a, b in pairs)
    runs = "; ".join(f"{hardware}: {n}" for hardware, n in counts.most_common())
    return [
        f"Runs by machine, all in float32: {runs}. Of {len(pairs)} pairs of runs that are compared {mixed} are of two"
        " machines, whose difference in rounding is then a part of theirs."
    ]


def effects(record: Record, conditions: Sequence[str]) -> list[str]:
    """Of each condition against its reference, and of each further pair, a line a data set: what changes, with interval
    and verdict."""
    found = sweeps.gains(record)
    asked = {(name, record.extra["against"].get(name)) for name in conditions}
    asked |= {(p["condition"], p["against"]) for p in record.extra.get("pairs", ())}
    lines = []
    for (name, to, dataset), part in found.groupby(["condition", "against", "dataset"], sort=False):
        if (name, to) not in asked:
            continue
        seeds = int(part.seeds.iloc[0])
        if seeds < 2:
            values = "; ".join(f"{g.metric} {g.difference:+.3f}" for g in part.itertuples())
            lines.append(f"{name} against {to}, {table.short(dataset)}, one training each: {values}.")
            continue
        values = "; ".join(
            f"{g.metric} {g.difference:+.3f} [{g.lo:+.3f}, {g.hi:+.3f}], {g.verdict}" for g in part.itertuples()
        )
        lines.append(f"{name} against {to}, {table.short(dataset)}, {seeds} seeds: {values}.")
    tests = int(found.verdict.isin(["better", "worse", "no difference shown"]).sum())
    if lines and tests:
        lines.append(
            "better and worse: the paired difference's 95% interval leaves out 0. Intervals are not adjusted for their"
            f" number: of {tests}, some {max(1, round(tests / 20))} would leave it out by chance alone."
        )
    return lines


def reached(record: Record, bounds: Record, ceiling: str) -> list[dict[str, Any]]:
    """How far every row gets from its chance to `ceiling`, a system of `bounds` (Table 3) on the same clips.

    One dict a data set and metric: dataset, metric, ceiling, its value `top`, and `shares` by system: of MV Align the
    share of the way from the row's chance to the ceiling, of the tagger's accuracy the share of the ceiling's.
    """
    found = []
    for dataset in table.datasets(record):
        chosen = [r for r in record.rows if r.dataset == dataset and r.value is not None]
        for metric in dict.fromkeys(r.metric for r in chosen):
            align, top = metric.startswith("MV Align"), _value(bounds, ceiling, dataset, metric)
            if top is None or not (align or metric == "Tagger accuracy"):
                continue
            lows = {r.system: (r.chance or 0.0) if align else 0.0 for r in chosen if r.metric == metric}
            shares = {
                r.system: (float(r.value or 0) - lows[r.system]) / (top - lows[r.system])
                for r in chosen
                if r.metric == metric
            }
            found.append({"dataset": dataset, "metric": metric, "ceiling": ceiling, "top": top, "shares": shares})
    return found


def reach(record: Record, conditions: Sequence[str]) -> list[str]:
    """A line a data set and metric on how far these conditions get towards the ceiling, and the row that gets furthest.

    From `extra["reach"]`, as `reached` gives it; every row stands in `sweeps.reached`.
    """
    labels = dict(zip(record.extra["curves"], table.systems(record), strict=True))
    lines = []
    for r in record.extra.get("reach", ()):
        shares, align = r["shares"], r["metric"].startswith("MV Align")
        named = [labels[c] for c in conditions if labels.get(c) in shares]
        parts = [f"{system} {table.percent(shares[system])}" for system in named]
        first = max(shares, key=lambda system: shares[system])
        if first not in named:
            parts.append(f"furthest of all rows: {first} {table.percent(shares[first])}")
        ceiling = f"{r['ceiling'][0].lower()}{r['ceiling'][1:]}"
        what = f"{'of the way from chance to' if align else 'of'} {ceiling}"
        lines.append(f"{r['metric']}, {table.short(r['dataset'])}, {what} ({r['top']:.3f}): {'; '.join(parts)}.")
    return lines


def _value(bounds: Record, system: str, dataset: str, metric: str) -> float | None:
    return next((r.value for r in bounds.rows if (r.system, r.dataset, r.metric) == (system, dataset, metric)), None)
