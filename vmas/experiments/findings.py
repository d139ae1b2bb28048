"""What the claims ledger is made of: measured differences, read from the records that hold.

Each kind of test says over what its interval goes:

    Gain      one row of a sweep against another: paired over the seeds and clips that both have
    Apart     two rows of one record: better where their intervals lie apart
    Answer    a question to the committed model (`vmas.experiments.follow`): over clips
    Share     a share of clips that is to reach what the paper says
    Cheaper, Printed   counted at the paper's size, without an interval

`source` is the target whose results (or the notebook that) show the test, `keys` the keys of the records that it reads.
"""

import importlib
from dataclasses import dataclass, field
from typing import Any

from vmas.config import Profile
from vmas.experiments import assemble, follow, registry, sweep, table3
from vmas.records import Record, committed, find, local

BETTER, WORSE, UNCLEAR, FEW = "better", "worse", "no difference shown", "too few trainings"
TEST, SHIFTED = table3.DATASETS["test"], table3.DATASETS["shifted"]
TRAININGS = 3  # of each side, before a row of a sweep may be called better or worse than another
COUNTED = "reproduced"  # status of what is counted at the paper's own size
NEAR = 0.01  # share by which a counted number may miss a printed one


@dataclass(frozen=True)
class Finding:
    """One measured difference in the metric's units, with its interval [lo, hi]; `found` is what the rule says."""

    what: str
    dataset: str
    metric: str
    direction: str  # of the difference: "up" where more is in the claim's favour
    value: float
    lo: float | None
    hi: float | None
    n: int | None
    seeds: int | None
    found: str
    status: str


@dataclass(frozen=True)
class Cell:
    """A number that the paper prints (`vmas.report.paper.value`)."""

    table: str
    row: str
    metric: str
    dataset: str | None = None

    def __str__(self) -> str:
        from vmas.report import paper

        return paper.value(self.table, self.row, self.metric, self.dataset)


@dataclass
class World:
    """The records that hold for a profile, each read once."""

    profile: Profile
    seen: dict[str, Any] = field(default_factory=dict)

    def runs(self, target: str) -> dict[str, list[Record]]:
        """Records of a sweep's runs by condition; `target` is any that shows them."""
        if target not in self.seen:
            module = importlib.import_module(registry.REGISTRY[target].sweep)
            self.seen[target] = sweep.recorded(module.TARGET, module.CONDITIONS, self.profile)
        return self.seen[target]

    def record(self, target: str) -> Record | None:
        """A target's record of seed 0, committed or of this machine, where it still holds."""
        if target not in self.seen:
            module = importlib.import_module(registry.REGISTRY[target].module)
            key = module.key(self.profile, 0)
            places = (place(target, self.profile.name, 0) for place in (committed, local))
            self.seen[target] = next((r for place in places if (r := find(place, key))), None)
        return self.seen[target]


@dataclass(frozen=True)
class Gain:
    """Condition `better` of a sweep is better than `than` by `metrics`."""

    target: str
    better: str
    than: str
    metrics: tuple[str, ...]
    dataset: str = TEST

    def source(self) -> str:
        return self.target

    def keys(self, world: World) -> list[str]:
        return [r.key for name in (self.better, self.than) for r in world.runs(self.target).get(name, [])]

    def findings(self, world: World) -> list[Finding]:
        there = world.runs(self.target)
        a, b = there.get(self.better, []), there.get(self.than, [])
        if not a or not b:
            return []
        return [
            Finding(
                f"{a[0].rows[0].system} against {b[0].rows[0].system}",
                self.dataset,
                g["metric"],
                g["direction"],
                g["difference"],
                g["lo"],
                g["hi"],
                a[0].row(a[0].rows[0].system, self.dataset, g["metric"]).n,
                g["seeds"],
                _of_sweep(g),
                world.profile.status,
            )
            for g in assemble.differences(a, b, world.profile)
            if g["dataset"] == self.dataset and g["metric"] in self.metrics
        ]


def _of_sweep(g: dict[str, Any]) -> str:
    if g["seeds"] < TRAININGS:
        return FEW
    return _side(g["lo"], g["hi"], g["direction"])


@dataclass(frozen=True)
class Apart:
    """Row `better` of a record is better than row `than`: their intervals do not meet."""

    target: str
    dataset: str
    better: str
    than: str
    metric: str

    def source(self) -> str:
        return self.target

    def keys(self, world: World) -> list[str]:
        return _one_key(self, world)

    def findings(self, world: World) -> list[Finding]:
        if (record := world.record(self.target)) is None:
            return []
        a, b = (record.row(name, self.dataset, self.metric) for name in (self.better, self.than))
        if a.value is None or b.value is None or a.ci95 is None or b.ci95 is None:
            return []
        lo, hi = a.ci95[0] - b.ci95[1], a.ci95[1] - b.ci95[0]  # the widest that both intervals allow
        what = f"{self.better} against {self.than}"
        found = _side(lo, hi, a.direction)
        return [
            Finding(what, self.dataset, self.metric, a.direction, a.value - b.value, lo, hi, a.n, None, found, a.status)
        ]


@dataclass(frozen=True)
class Answer:
    """A question that `follow` asks the committed model, by how its text begins."""

    questions: tuple[str, ...]
    target: str = follow.TARGET

    def source(self) -> str:
        return self.target

    def keys(self, world: World) -> list[str]:
        return _one_key(self, world)

    def findings(self, world: World) -> list[Finding]:
        if (record := world.record(self.target)) is None:
            return []
        return [
            Finding(f"the music follows {a['question'].rstrip('?')}", record.extra["split"], f"gain, {a['unit']}", "up",
                    a["value"], a["lo"], a["hi"], a["n"], None, _side(a["lo"], a["hi"], "up"), record.rows[0].status)
            for a in follow.answers(record)
            if a["question"].startswith(self.questions)
        ]  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A share of clips reaches what the paper says (`cell`, in percent); the finding is the share less the paper's."""

    target: str
    dataset: str
    system: str
    metric: str
    cell: Cell

    def source(self) -> str:
        return self.target

    def keys(self, world: World) -> list[str]:
        return _one_key(self, world)

    def findings(self, world: World) -> list[Finding]:
        if (record := world.record(self.target)) is None:
            return []
        row, bound = record.row(self.system, self.dataset, self.metric), float(str(self.cell).rstrip("%")) / 100
        if row.value is None or row.ci95 is None:
            return []
        lo, hi = row.ci95[0] - bound, row.ci95[1] - bound
        found = WORSE if hi < 0 else BETTER  # the paper's share lies in the interval, or below it
        what = f"{self.system}: share {row.value:.3f} less the paper's {bound:.2f}"
        return [
            Finding(what, self.dataset, self.metric, "up", row.value - bound, lo, hi, row.n, None, found, row.status)
        ]


@dataclass(frozen=True)
class Cheaper:
    """Fewer operations than the other encoders of Table 6 in every reading: ways of counting, windows of stage 1."""

    def source(self) -> str:
        return registry.REGISTRY["table6"].notebook

    def keys(self, world: World) -> list[str]:
        return ["counted"]

    def findings(self, world: World) -> list[Finding]:
        counted = _counted()
        *others, ours = counted
        where = f"one clip at the paper's size, {len(counted[ours])} readings (ways of counting, windows of stage 1)"
        out = []
        for other in others:
            ratios = sorted(counted[ours][way] / counted[other][way] - 1 for way in counted[ours])
            lo, hi = ratios[0], ratios[-1]
            what, middle = f"{ours} against {other}", ratios[len(ratios) // 2]
            side = _side(lo, hi, "down")
            found = "depends on the reading" if side == UNCLEAR else side
            out.append(Finding(what, where, "GFLOPs, ratio less 1", "down", middle, lo, hi, None, None, found, COUNTED))
        return out


@dataclass(frozen=True)
class Printed:
    """The GFLOPs that Table 6 prints come out of one reading for all three encoders, within `NEAR`."""

    def source(self) -> str:
        return registry.REGISTRY["table6"].notebook

    def keys(self, world: World) -> list[str]:
        return ["counted"]

    def findings(self, world: World) -> list[Finding]:
        from vmas.encoder_cost import PAPER_GFLOPS

        counted = _counted()
        ways = list(next(iter(counted.values())))
        worst = {way: max(abs(counted[m][way] / PAPER_GFLOPS[m] - 1) for m in counted) for way in ways}
        way = min(worst, key=lambda w: worst[w])
        what = f"furthest of the three from its printed number, counted as {way}, the nearest of {len(ways)} readings"
        found = BETTER if worst[way] <= NEAR else WORSE
        return [Finding(what, "one clip at the paper's size", "GFLOPs, share off", "down", worst[way], None, None,
                        None, None, found, COUNTED)]  # fmt: skip


Test = Gain | Apart | Answer | Share | Cheaper | Printed


def _counted() -> dict[str, dict[str, float]]:
    """GFLOPs of Table 6's encoders at the paper's size by reading, ours last: the ways of counting that papers use, and
    for ours the windows of stage 1, which the paper leaves open."""
    from vmas import encoder_cost as cost

    *others, ours = cost.PAPER_SCALE
    readings: dict[str, dict[str, float]] = {model: {} for model in cost.PAPER_SCALE}
    for window in cost.STAGE_1_WINDOWS:
        for model in (*others, ours):
            found = cost.macs(cost.at_paper_scale(model, window=window if model == ours else None))
            total = sum(found.values())
            ways = {"1 a MAC": total, "2 a MAC": 2 * total, "2 a MAC of linear layers": 2 * found["linear"]}
            readings[model] |= {f"{way}, {window[0]}x{window[1]} windows": n / 1e9 for way, n in ways.items()}
    return readings


def _side(lo: float, hi: float, direction: str) -> str:
    if lo <= 0 <= hi:
        return UNCLEAR
    return BETTER if (lo > 0) == (direction == "up") else WORSE


def _one_key(test: Apart | Answer | Share, world: World) -> list[str]:
    record = world.record(test.target)
    return [record.key] if record else []
