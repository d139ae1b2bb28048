"""What the claims ledger is made of: measured differences, read from the records that hold.

    Gain      one row of a sweep against another: paired over the seeds and clips that both have
    Apart     rows of one record: better where their intervals lie apart
    Answer    questions to the trained models (`vmas.experiments.follow`)
    Share     a share of clips that is to reach what the paper says
    Cheaper, Printed   counted at the paper's size, over the readings that the paper leaves open
    Planned   a target that cannot be computed yet

`findings(world)` gives what can be said, `lacks(world)` names what is not recorded, `source` the target whose results
(or the notebook that) show it.
"""

import dataclasses
import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmas.config import Profile, sha256
from vmas.experiments import assemble, follow, registry, sweep, table3
from vmas.metrics.verdict import BETTER, UNCLEAR, WORSE, side
from vmas.records import Record, Row, committed, find, local

TEST, SHIFTED = table3.DATASETS["test"], table3.DATASETS["shifted"]
FAD, KL, ALIGN = "FAD (codec)", "KL", "MV Align"
COUNTED = "reproduced"  # status of what is counted at the paper's own size
NEAR = 0.01  # share by which a counted number may miss a printed one
ABOUT = 0.05  # by which a share may miss one that the paper says of "approximately" so many


@dataclass(frozen=True)
class Finding:
    """One measured difference in the metric's units; `found` is what the rule says of it.

    [lo, hi] is its 95% interval, or with `readings` the range of what the paper leaves open. What does not count
    (`counts`) stands beside a claim and decides nothing.
    """

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
    readings: bool = False
    counts: bool = True


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
    pairs: dict[tuple, list[dict[str, Any]]] = field(default_factory=dict)

    def runs(self, target: str) -> dict[str, list[Record]]:
        """Records of a sweep's runs by condition; `target` is any that shows them."""
        if target not in self.seen:
            module = importlib.import_module(registry.REGISTRY[target].sweep)
            there = sweep.ready(self.profile)
            self.seen[target] = sweep.recorded(module.TARGET, module.CONDITIONS, self.profile) if there else {}
        return self.seen[target]

    def record(self, target: str) -> Record | None:
        """A target's record of seed 0, of this machine or committed, where it still holds."""
        if target not in self.seen:
            module = importlib.import_module(registry.REGISTRY[target].module)
            key = module.key(self.profile, 0)
            places = (place(target, self.profile.name, 0) for place in (local, committed))
            self.seen[target] = next((r for place in places if (r := find(place, key))), None)
        return self.seen[target]

    def trainings(self) -> list[Record]:
        """The records of `follow`, one a trained model, that still hold."""
        if follow.TARGET not in self.seen:
            self.seen[follow.TARGET] = follow.recorded(self.profile)
        return self.seen[follow.TARGET]

    def metric(self, name: str) -> str:
        """MV Align is named by its version and frame rate; the others by themselves."""
        p = self.profile
        return f"MV Align ({p.eval.mv_align_version}, {p.clip.fps:g} fps)" if name == ALIGN else name

    def found(self, target: str) -> list[Record]:
        """What was read of a target."""
        match self.seen.get(target):
            case None:
                return []
            case Record() as record:
                return [record]
            case dict() as runs:
                return [r for found in runs.values() for r in found]
            case several:
                return list(several)

    def hashes(self) -> dict[str, str]:
        """What was read, by name: a hash of the numbers themselves."""
        out = {}
        for target in self.seen:
            for r in self.found(target):
                rows = [dataclasses.asdict(row) for row in r.rows]
                out[f"{target}: {r.target}-{r.extra.get('seed', 0)}"] = sha256(rows, r.extra.get("per_clip", {}))
        return out


class Test(Protocol):
    """What a claim is tested by."""

    @property
    def source(self) -> str: ...
    def findings(self, world: World) -> list[Finding]: ...
    def lacks(self, world: World) -> list[str]: ...


@dataclass(frozen=True)
class Gain:
    """Condition `better` of a sweep is better than `than` by `metrics`."""

    target: str
    better: str
    than: str
    metrics: tuple[str, ...]
    dataset: str = TEST
    counts: bool = True

    @property
    def source(self) -> str:
        return self.target

    def lacks(self, world: World) -> list[str]:
        if not self.counts:
            return []
        there = world.runs(self.target)
        gone = [f"{self.target}'s {name}" for name in (self.better, self.than) if not there.get(name)]
        if gone:
            return gone
        seen = {f.metric for f in self.findings(world)}
        return [f"a pair of {self.better} and {self.than} by {m}" for m in self.metrics if world.metric(m) not in seen]

    def findings(self, world: World) -> list[Finding]:
        a, b = (world.runs(self.target).get(name, []) for name in (self.better, self.than))
        if not a or not b:
            return []
        wanted = [world.metric(m) for m in self.metrics]
        module, own = importlib.import_module(registry.REGISTRY[self.target].sweep), a[0].rows[0].system
        label = {c.name: c.label for c in module.CONDITIONS}
        what, status = f"{label[self.better]} against {label[self.than]}", world.profile.status
        out = []
        for g in _differences(world, self.target, self.better, self.than):
            if g["dataset"] != self.dataset or g["metric"] not in wanted:
                continue
            lo, hi, seeds, n = g["lo"], g["hi"], g["seeds"], a[0].row(own, self.dataset, g["metric"]).n
            found = side(lo, hi, g["direction"], seeds)
            at = (what, self.dataset, g["metric"], g["direction"], g["difference"], lo, hi, n, seeds, found, status)
            out.append(Finding(*at, counts=self.counts))
        return out


def _differences(world: World, target: str, better: str, than: str) -> list[dict[str, Any]]:
    """Bootstrapped once a pair: several claims ask for the same one."""
    name, runs = (target, better, than), world.runs(target)
    if name not in world.pairs:
        world.pairs[name] = assemble.differences(runs[better], runs[than], world.profile)
    return world.pairs[name]


@dataclass(frozen=True)
class Apart:
    """Every one of the rows `better` of a record is better than every one of `than`: their intervals do not meet."""

    target: str
    dataset: str
    better: tuple[str, ...]
    than: tuple[str, ...]
    metric: str

    @property
    def source(self) -> str:
        return self.target

    def _row(self, world: World, system: str) -> Row | None:
        record, metric = world.record(self.target), world.metric(self.metric)
        at = (system, self.dataset, metric)
        rows = [r for r in record.rows if (r.system, r.dataset, r.metric) == at] if record else []
        return rows[0] if rows and rows[0].value is not None and rows[0].ci95 else None

    def lacks(self, world: World) -> list[str]:
        return [f"{self.target}'s {s}" for s in (*self.better, *self.than) if self._row(world, s) is None]

    def findings(self, world: World) -> list[Finding]:
        out = []
        for ours in self.better:
            for theirs in self.than:
                a, b = self._row(world, ours), self._row(world, theirs)
                if a is None or b is None or a.value is None or b.value is None or a.ci95 is None or b.ci95 is None:
                    continue
                lo, hi = a.ci95[0] - b.ci95[1], a.ci95[1] - b.ci95[0]  # the widest that both intervals allow
                found = side(lo, hi, a.direction)
                out.append(Finding(f"{ours} against {theirs}", self.dataset, a.metric, a.direction, a.value - b.value,
                                   lo, hi, a.n, None, found, a.status))  # fmt: skip
        return out


@dataclass(frozen=True)
class Answer:
    """Questions that `follow` asks the trained models, by how their texts begin."""

    questions: tuple[str, ...]
    target: str = follow.TARGET

    @property
    def source(self) -> str:
        return self.target

    def lacks(self, world: World) -> list[str]:
        return [] if world.trainings() else [self.target]

    def findings(self, world: World) -> list[Finding]:
        found = world.trainings()
        return [
            Finding(f"the music follows {a['question'].rstrip('?')}", found[0].extra["split"],
                    f"advantage, {a['unit']}", "up", a["value"], a["lo"], a["hi"], a["n"], a["seeds"],
                    side(a["lo"], a["hi"], "up", a["seeds"]), found[0].rows[0].status)
            for a in follow.over_trainings(found)
            if a["question"].startswith(self.questions)
        ]  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A share of clips reaches what the paper says (`cell`, in percent), less `ABOUT`."""

    target: str
    dataset: str
    system: str
    metric: str
    cell: Cell
    counts: bool = True

    @property
    def source(self) -> str:
        return self.target

    def lacks(self, world: World) -> list[str]:
        return [f"{self.target}'s {self.system}"] if self.counts and not self.findings(world) else []

    def findings(self, world: World) -> list[Finding]:
        record = world.record(self.target)
        at = (self.system, self.dataset, self.metric)
        rows = [r for r in record.rows if (r.system, r.dataset, r.metric) == at] if record else []
        if not rows or rows[0].value is None or rows[0].ci95 is None:
            return []
        row, bound = rows[0], float(str(self.cell).rstrip("%")) / 100
        lo, hi = (x - bound for x in rows[0].ci95)
        found = BETTER if lo >= -ABOUT else WORSE if hi < -ABOUT else UNCLEAR
        what = f"{self.system}, against the paper's {self.cell}"
        return [Finding(what, self.dataset, self.metric, "up", rows[0].value - bound, lo, hi, row.n, None, found,
                        row.status, counts=self.counts)]  # fmt: skip


@dataclass(frozen=True)
class Cheaper:
    """Fewer operations than Table 6's other encoders, whatever the windows of stage 1, in every way of counting."""

    @property
    def source(self) -> str:
        return registry.REGISTRY["table6"].notebook

    def lacks(self, world: World) -> list[str]:
        return []

    def findings(self, world: World) -> list[Finding]:
        found = counted()
        *others, ours = found
        out = []
        for other in others:
            for way, by_window in found[ours].items():
                ratios = {w: n / found[other][way][w] - 1 for w, n in by_window.items()}
                lo, hi = min(ratios.values()), max(ratios.values())
                turned = ", ".join(w for w, r in ratios.items() if r >= 0)
                said = side(lo, hi, "down")
                if lo < 0 <= hi:
                    said = f"depends on the windows of stage 1 (not with {turned})"
                out.append(
                    Finding(f"{ours} against {other}, {way}", "one clip at the paper's size", "GFLOPs, relative",
                            "down", ratios[TAKEN], lo, hi, None, None, said, COUNTED, readings=True)
                )  # fmt: skip
        return out


@dataclass(frozen=True)
class Printed:
    """The GFLOPs that Table 6 prints for its three encoders come out of one way of counting, within `NEAR`."""

    @property
    def source(self) -> str:
        return registry.REGISTRY["table6"].notebook

    def lacks(self, world: World) -> list[str]:
        return []

    def findings(self, world: World) -> list[Finding]:
        from vmas.encoder_cost import PAPER_GFLOPS

        off = {m: {way: by[TAKEN] / PAPER_GFLOPS[m] - 1 for way, by in ways.items()} for m, ways in counted().items()}
        where = "one clip at the paper's size"
        out = []
        for model, ways in off.items():
            way = min(ways, key=lambda w: abs(ways[w]))
            found = "as printed" if abs(ways[way]) <= NEAR else "not as printed"
            out.append(
                Finding(f"{model} against its printed number, counted {way}", where, "GFLOPs, relative", "none",
                        ways[way], None, None, None, None, found, COUNTED, readings=True, counts=False)
            )  # fmt: skip
        every = list(next(iter(off.values())))
        alike = sum(all(abs(ways[w]) <= NEAR for ways in off.values()) for w in every)
        what = f"of {len(every)} ways of counting, those that give all {len(off)} printed numbers"
        out.append(
            Finding(what, where, "number", "up", alike, None, None, None, None,
                    BETTER if alike else WORSE, COUNTED, readings=True)
        )  # fmt: skip
        return out


@dataclass(frozen=True)
class Planned:
    """A target that has no code yet; once it has, its claims need tests of their own."""

    target: str

    @property
    def source(self) -> str:
        return ""

    def lacks(self, world: World) -> list[str]:
        return [f"{self.target}, which is planned"]

    def findings(self, world: World) -> list[Finding]:
        return []


TAKEN = "8x8"  # Hiera's own windows of stage 1, which we take


def counted() -> dict[str, dict[str, dict[str, float]]]:
    """GFLOPs of Table 6's encoders at the paper's size: model (ours last), way of counting, windows of our stage 1.

    The ways are those that papers use; the windows, which the paper leaves open, change our encoder alone.
    """
    from vmas import encoder_cost as cost

    *_, ours = cost.PAPER_SCALE
    out: dict[str, dict[str, dict[str, float]]] = {model: {} for model in cost.PAPER_SCALE}
    for model in cost.PAPER_SCALE:
        for window in cost.STAGE_1_WINDOWS:
            found = cost.macs(cost.at_paper_scale(model, window=window if model == ours else None))
            total, linear = sum(found.values()), found["linear"]
            ways = {"with 1 a MAC": total, "with 2 a MAC": 2 * total, "with 2 a MAC of linear layers alone": 2 * linear}
            for way, n in ways.items():
                out[model].setdefault(way, {})[f"{window[0]}x{window[1]}"] = n / 1e9
    return out
