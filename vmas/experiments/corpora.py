"""On which corpora do beat weights help? Table 5's contrast and its weights, trained where the picture shows more, or
fewer, of the beats.

The paper's videos are edited to their music, more or less strictly, and nobody knows how strictly. Here it is a knob.
The weights are those of Table 5's `normalised`, eq. 4 divided by Σw with the paper's α: read literally they weigh L_g
so little that nothing else can be seen. All rows share stage 1 and are evaluated on the profile's own test clips, so
that they differ by the clips of stage 2 alone; the rows of the profile's own corpus are Table 5's. Both knobs turn
together, from strict to loose: which of them matters is not told apart. The question is one of a difference of
differences, what weights change on the strict corpus less what they change on the loose one (`apart`).
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas.config import Profile
from vmas.experiments import assemble, corpora_data, sweep, table5
from vmas.experiments.corpora_data import OWN
from vmas.experiments.sweep import Condition
from vmas.metrics import intervals, verdict
from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "corpora"
TITLE = "Beat weights on other corpora"
ORDER = ("clean", OWN, "loose")  # from the most beats shown to the fewest
BARE, WEIGHTED = "contrastive", "normalised"
REFERENCE = f"{OWN}-{BARE}"


def _pair(name: str) -> tuple[Condition, Condition]:
    """Without and with beat weights on one corpus."""
    rows = {c.name: c for c in table5.CONDITIONS}
    if name == OWN:
        where, about = "own corpus", "Table 5's row"
    else:
        k = corpora_data.get(name)
        where = f"{name} corpus"
        about = f"{k.beat_share:.0%} of the beats shown, {k.spurious_per_s:g} movements a second at random"

    def condition(row: str, against: str) -> Condition:
        first = rows[row]
        data, run = ("", f"{table5.TARGET}-{row}") if name == OWN else (name, "")
        return Condition(
            f"{name}-{row}",
            f"{first.label}, {where}",
            first.overrides,
            about=about,
            data=data,
            run=run,
            against=against,
        )

    return condition(BARE, ""), condition(WEIGHTED, f"{name}-{BARE}")


CONDITIONS: tuple[Condition, ...] = tuple(c for name in ORDER for c in _pair(name))
PAPER: tuple[str, ...] = ()
TOLD = tuple(c.name for c in CONDITIONS if c.against)
EVERY_SEED: tuple[str, ...] = ()
VARIANT_SEEDS = 3


def finish(record: Record, profile: Profile, file: str | None = None) -> Record:
    """The record with what the corpora are like, as their runs found it (`corpora_data.composition`), `apart` and
    `taken`."""
    found = sweep.recorded(TARGET, CONDITIONS, file or profile.name)
    sets = {}
    for c in (c for c in CONDITIONS if c.data and found.get(c.name)):
        sets[c.data] = dict(found[c.name][0].extra["set"])
        sets[OWN] = sets[c.data].pop(OWN)
    sets = {name: sets[name] for name in ORDER if name in sets}
    return dataclasses.replace(
        record, extra={**record.extra, "sets": sets, "apart": apart(found, profile), "taken": taken(found)}
    )


def apart(found: dict[str, list[Record]], profile: Profile) -> list[dict[str, Any]]:
    """What weights change on a corpus less what they change on a looser one, as `assemble.contrast` tells it.

    The question is that of the first corpus and the last (`between` "clean less loose"); the other pairs stand beside.
    """
    out = []
    for strict, loose in itertools.combinations(ORDER, 2):
        rows = ((1, strict, WEIGHTED), (-1, strict, BARE), (-1, loose, WEIGHTED), (1, loose, BARE))
        sides = [(sign, found.get(f"{name}-{row}", [])) for sign, name, row in rows]
        out += [{"between": f"{strict} less {loose}", **g} for g in assemble.contrast(sides, profile)]
    return out


def remarks(record: Record) -> list[str]:
    """What the corpora are like, and `apart` of every metric, for the notes under the table."""
    lines = [
        f"{name} corpus: " + ", ".join(f"{what} {value:g}" for what, value in about.items()) + "."
        for name, about in record.extra["sets"].items()
    ]
    for (between, dataset), found in itertools.groupby(record.extra["apart"], lambda g: (g["between"], g["dataset"])):
        strict = between.split(" less ")[0]
        words = {v: f"more for the {v} on {strict}" for v in (verdict.BETTER, verdict.WORSE)}
        parts = []
        for g in found:
            said = verdict.side(g["lo"], g["hi"], g["direction"], g["seeds"])
            ends = "" if g["lo"] is None else f" [{g['lo']:+.3f}, {g['hi']:+.3f}]"
            parts.append(f"{g['metric']} {g['difference']:+.3f}{ends} ({words.get(said, said)})")
        values = "; ".join(parts)
        lines.append(f"What weights change, {between}, {dataset}: {values}.")
    for (metric, dataset), found in itertools.groupby(record.extra["taken"], lambda g: (g["metric"], g["dataset"])):
        parts = (
            f"{g['of']} {g['share']:.0%}" + ("" if g["lo"] is None else f" [{g['lo']:.0%}, {g['hi']:.0%}]")
            for g in found
        )
        lines.append(
            f"{metric}, {dataset}, of the lift over chance that a training has without weights, weights take: "
            f"{'; '.join(parts)}. A looser corpus leaves less to lose, so differences and shares may rank the corpora "
            "otherwise; the shares were added after the result."
        )
    return lines


def taken(found: dict[str, list[Record]]) -> list[dict[str, Any]]:
    """The share of the lift over chance that weights take, training by training, and what the corpora differ by in it.

    One dict a metric of MV Align, data set and corpus (or "clean less loose", on their common seeds): metric, dataset,
    of, share, lo, hi (Student's t over seeds, None for one), seeds.
    """
    lift: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = {}
    for name in ORDER:
        by_seed = [{r.extra["seed"]: r for r in found.get(f"{name}-{row}", [])} for row in (BARE, WEIGHTED)]
        for seed in sorted(set(by_seed[0]) & set(by_seed[1])):
            for record in (by_seed[0][seed], by_seed[1][seed]):
                for r in record.rows:
                    if r.metric.startswith("MV Align") and r.value is not None and r.chance is not None:
                        lift.setdefault((r.metric, r.dataset), {}).setdefault((name, seed), []).append(
                            r.value - r.chance
                        )
    out = []
    for (metric, dataset), pairs in lift.items():
        share = {k: 1 - b / a for k, (a, b) in pairs.items() if a > 0}
        shares = {n: {s: v for (m, s), v in share.items() if m == n} for n in ORDER}
        for strict, loose in itertools.combinations(ORDER, 2):
            both = sorted(set(shares[strict]) & set(shares[loose]))
            shares[f"{strict} less {loose}"] = {s: shares[strict][s] - shares[loose][s] for s in both}
        for of, values in shares.items():
            if values:
                s = intervals.over_seeds(np.array(list(values.values())))
                lo, hi = (s.lo, s.hi) if len(values) > 1 else (None, None)
                about = {"metric": metric, "dataset": dataset, "of": of}
                out.append({**about, "share": s.mean, "lo": lo, "hi": hi, "seeds": len(values)})
    return out


def figure(record: Record) -> "Figure":
    """MV Align and FAD with and without weights by corpus, and what the weights change."""
    from vmas.report import corpora

    return corpora.figure(record)
