"""One table out of the records of a sweep: means over seeds with intervals over seeds and clips, paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmas import records
from vmas.config import Profile, sha256
from vmas.errors import DataError
from vmas.experiments.sweep import Condition
from vmas.metrics import intervals
from vmas.metrics.intervals import MeanCI
from vmas.records import Record, Row

BETTER = {"up": 1, "down": -1}
# What a metric can be, by the beginning of its name; of a wide interval over few seeds the rest is cut off.
RANGE = {
    "FAD": (0.0, np.inf),
    "KL": (0.0, np.inf),
    "MV Align": (0.0, 1.0),
    "Tagger": (0.0, 1.0),
    "Onsets": (0.0, np.inf),
}
# The option that says how long each part of stage 1 is, by the name that the part has in a record.
LENGTHS = {"motion": ("encoder", "motion_steps"), "music": ("train", "pretrain_steps")}


def clips(found: Sequence[Record], dataset: str, metric: str) -> np.ndarray:
    """Scores [seeds, clips] of one condition's records; NaN where a clip has none."""
    rows = [[np.nan if x is None else x for x in r.extra["per_clip"][dataset][metric]] for r in found]
    if len({len(r) for r in rows}) != 1:
        raise DataError(f"{found[0].target}: the seeds were evaluated on different numbers of clips")
    return np.asarray(rows, float)


def rows(condition: Condition, found: Sequence[Record], profile: Profile) -> list[Row]:
    """Rows of one condition: every metric's mean over its seeds.

    Metrics of single clips get an interval over seeds and clips together. FAD belongs to a set: its mean over the
    seeds, with `intervals.seeds_and_clips`.
    """
    out = []
    for first in found[0].rows:
        same = [r.row(first.system, first.dataset, first.metric) for r in found]
        values = np.array([r.value for r in same], float)
        if first.metric in found[0].extra["per_clip"][first.dataset]:
            s = intervals.stratified(clips(found, first.dataset, first.metric), n=profile.eval.bootstrap)
            value, ci = s.mean, (s.lo, s.hi)
        else:
            value = float(values.mean())
            within = [r.ci95 or (np.nan, np.nan) for r in same]
            ci = intervals.seeds_and_clips(values, np.array(within, float))
        lowest, highest = next((v for k, v in RANGE.items() if first.metric.startswith(k)), (-np.inf, np.inf))
        ci = float(np.maximum(ci[0], lowest)), float(np.minimum(ci[1], highest))
        chances = [r.chance for r in same if r.chance is not None]
        out.append(
            Row(
                condition.label,
                first.dataset,
                first.metric,
                first.direction,
                value,
                ci if np.isfinite(ci).all() else None,
                first.n,
                len(found),
                float(np.mean(chances)) if chances else None,
                None,
                profile.status,
                condition.about,
            )
        )
    return out


def differences(a: Sequence[Record], b: Sequence[Record], profile: Profile) -> list[dict[str, Any]]:
    """What condition `a` gains over `b` on the same seeds and clips: `contrast` of the two, a - b."""
    return contrast([(1, a), (-1, b)], profile)


def contrast(sides: Sequence[tuple[int, Sequence[Record]]], profile: Profile) -> list[dict[str, Any]]:
    """A sum of conditions with signs (1 or -1), the first a 1, on the same seeds and clips.

    One dict a data set and metric: dataset, metric, direction, difference (the sum), lo, hi (95%), seeds, and
    `improvement`, the share of (seed, clip) pairs in which it is for the better, ties counted half, with
    `improvement_lo` and `improvement_hi`. It speaks of a clip of a training, not of the mean of a training. FAD
    belongs to a set: its difference is a seed's, the interval Student's t over seeds (None for one), and `improvement`
    the share of seeds, with Wilson's interval.

    Seeds that one side lacks are left out, and so are those whose runs began from another stage 1
    (`extra["stage1"]`): they would differ by more than the condition.
    """
    by_seed = [{r.extra["seed"]: r for r in found} for _, found in sides]
    shared = [
        s for s in sorted(set.intersection(*map(set, by_seed)))
        if all(_began_alike(by_seed[0][s], other[s]) for other in by_seed[1:])
    ]  # fmt: skip
    if not shared:
        return []
    same = [(sign, [runs[s] for s in shared]) for (sign, _), runs in zip(sides, by_seed, strict=True)]
    first = same[0][1]
    out = []
    for row in first[0].rows:
        if row.direction not in BETTER:
            continue
        better = BETTER[row.direction]
        if row.metric in first[0].extra["per_clip"][row.dataset]:
            gap = np.sum([sign * clips(found, row.dataset, row.metric) for sign, found in same], axis=0)
            s = intervals.stratified(gap, n=profile.eval.bootstrap)
            won = np.where(np.isnan(gap), np.nan, (better * gap > 0) + 0.5 * (gap == 0))
            wins = intervals.stratified(won, n=profile.eval.bootstrap)
        else:
            values = [[r.row(r.rows[0].system, row.dataset, row.metric).value for r in found] for _, found in same]
            gap = np.array([sign for sign, _ in same]) @ np.array(values, float)
            s = intervals.over_seeds(gap)
            won = float(((better * gap > 0) + 0.5 * (gap == 0)).sum())
            wins = MeanCI(won / gap.size, *intervals.wilson(won, gap.size), gap.size, 0)
        found = {
            **{"difference": s.mean, "lo": s.lo, "hi": s.hi, "improvement": wins.mean},
            **{"improvement_lo": np.maximum(0.0, wins.lo), "improvement_hi": np.minimum(1.0, wins.hi)},
        }
        out.append(
            {"dataset": row.dataset, "metric": row.metric, "direction": row.direction, "seeds": len(shared)}
            | {k: None if np.isnan(v) else float(v) for k, v in found.items()}
        )
    return out


def _began_alike(a: Record, b: Record) -> bool:
    """Whether two runs of a seed share stage 1, as far as their encoders and the lengths of its parts are the same.

    Records of seed 0 that were made before stage 1 was named have none: it was trained once for all of them, and lost.
    """
    x, y = (r.extra.get("stage1") or {} for r in (a, b))
    one, other = (r.extra.get("condition", {}).get("overrides", {}) for r in (a, b))
    if bool(x) != bool(y):
        return False
    if _shape(one) != _shape(other):  # another encoder, whose X_v may have another width, has another decoder, too
        return True
    differ = {stage for stage, of in LENGTHS.items() if _of(one, *of) != _of(other, *of)}  # what they are compared for
    return all(x.get(stage) == y.get(stage) for stage in {*x, *y} - differ)


def _of(overrides: dict[str, Any], section: str, option: str) -> Any:
    """What a condition sets an option to; None where it leaves the profile's."""
    return overrides.get(section, {}).get(option)


def _shape(overrides: dict[str, Any]) -> dict[str, Any]:
    """What a condition changes of the encoder itself, and not of how long it is pretrained."""
    return {k: v for k, v in overrides.get("encoder", {}).items() if k != LENGTHS["motion"][1]}


def changes(condition: Condition) -> str:
    """What a condition changes in the profile, `section.option = value` each."""

    def flat(at: str, value) -> list[str]:
        if isinstance(value, dict):
            return [line for k, v in value.items() for line in flat(f"{at}.{k}" if at else k, v)]
        return [f"{at} = {value}"]

    longer = [f"train.steps {condition.longer} times as many"] if condition.longer != 1 else []
    return ", ".join([*flat("", condition.overrides), *longer])


def record(
    target: str,
    title: str,
    conditions: Sequence[Condition],
    found: dict[str, list[Record]],
    reference: str,
    profile: Profile,
    quoted: Sequence[Row] = (),
    pairs: Sequence[tuple[str, str]] = (),
) -> Record:
    """The table's record from the runs' records by condition; conditions without a record are left out.

    `pairs` names further comparisons than each row's own: (condition, the one that it is compared with). Raises
    DataError when no run has a record yet.
    """
    there = [c for c in conditions if found.get(c.name)]
    if not there:
        raise DataError(f"{target}: no run is recorded yet; 'vmas reproduce {target} --seeds 1' makes the first")
    table = [r for c in there for r in rows(c, found[c.name], profile)]
    against = {c.name: c.against or reference for c in there if (c.against or reference) != c.name}
    gains = {name: differences(found[name], found[to], profile) for name, to in against.items() if found.get(to)}
    further = [
        {"condition": name, "against": to, "differences": differences(found[name], found[to], profile)}
        for name, to in pairs
        if found.get(name) and found.get(to)
    ]
    every = [r for c in there for r in found[c.name]]
    extra = {
        "note": profile.note,
        "reference": reference,
        "against": against,
        "differences": gains,
        "pairs": further,
        "seeds": {c.name: sorted(r.extra["seed"] for r in found[c.name]) for c in there},
        "missing": [c.name for c in conditions if c not in there],
        "changes": {c.label: changes(c) for c in there if changes(c)},
        "curves": {c.name: [r.extra["curve"] for r in found[c.name]] for c in there},
        "machines": {c.name: {r.extra["seed"]: r.provenance.get("hardware", "") for r in found[c.name]} for c in there},
    }
    first = every[0].provenance
    prov = records.provenance(
        f"vmas reproduce {target} --profile {profile.name}",
        sum(r.provenance["wall_s"] for r in every),
        sha256(profile),
        first["data_sha256"],
        sha256([r.provenance["checkpoint_sha256"] for r in every]),
    )
    return Record(target, profile.name, title, sha256(sorted(r.key for r in every)), (*table, *quoted), prov, extra)
