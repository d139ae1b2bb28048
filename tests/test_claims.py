"""The claims ledger: every claim can be read, every verdict follows the rule, the committed one is that of today."""

import importlib
import string
from dataclasses import replace

import numpy as np
import pytest

from vmas import config, encoder_cost, paths, records
from vmas.errors import DataError
from vmas.experiments import claims, findings, follow, registry, table3
from vmas.experiments.claims import CLAIMS, Claim, verdict
from vmas.experiments.findings import (
    BETTER,
    FEW,
    TEST,
    UNCLEAR,
    WORSE,
    Answer,
    Apart,
    Cell,
    Cheaper,
    Finding,
    Gain,
    Printed,
    Share,
    World,
)
from vmas.records import Record, Row
from vmas.report import ledger

ALIGN = "MV Align (2025, 9.6 fps)"
BY = {c.name: c for c in CLAIMS}


@pytest.fixture(scope="module")
def mini():
    return config.load("mini", {"eval": {"bootstrap": 300}})


def finding(found: str, **other) -> Finding:
    return replace(Finding("a against b", TEST, "KL", "down", -0.1, -0.2, -0.05, 300, 3, found, "scaled_down"), **other)


def run(name: str, seed: int, scores, fad: float) -> Record:
    """The record of one training with MV Align `scores` [clips] and a FAD."""
    values = np.asarray(scores, float)
    rows = (
        Row(name, TEST, "FAD (codec)", "down", fad, (fad - 0.1, fad + 0.1), len(values), 1, status="scaled_down"),
        Row(name, TEST, ALIGN, "up", float(values.mean()), n=len(values), seeds=1, status="scaled_down"),
    )
    extra = {"seed": seed, "per_clip": {TEST: {ALIGN: values.tolist()}}, "curve": []}
    return Record(f"table5-{name}", "mini", name, f"{name}{seed}", rows, {}, extra)


def trainings(count: int, gain: float, fad: float) -> dict[str, list[Record]]:
    """`count` seeds of two conditions that differ by `gain` in MV Align and by `fad` in FAD."""
    rng = np.random.default_rng(0)
    clips = [rng.uniform(0.2, 0.6, 60) for _ in range(count)]
    noise = [rng.normal(0, 0.02, 60) for _ in range(count)]
    return {
        "baseline": [run("baseline", s, clips[s], 10.0 + s) for s in range(count)],
        "contrastive": [
            run("contrastive", s, clips[s] + gain + noise[s], 10.0 + s + fad + 0.05 * s) for s in range(count)
        ],
    }


# ---------------------------------------------------------------- the claims themselves


def test_what_the_design_asks_for_is_there():
    wanted = "prior symbolic autoregressive contrast beats encoder data cleaning similarity vocals retrieval preference"
    names = {c.name.split("-")[0] for c in CLAIMS}
    assert set(wanted.split()) <= names
    assert {"encoder-quality", "encoder-cost", "encoder-gflops"} <= set(BY)
    assert len(BY) == len(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.name)
def test_every_claim_prints_what_the_paper_prints(claim):
    holes = [f for _, f, _, _ in string.Formatter().parse(claim.printed) if f is not None]
    assert len(holes) == len(claim.cells)
    for cell in claim.cells:
        assert str(cell) in claim.evidence()  # raises where the paper has no such number
    assert bool(claim.tests) or claim.waits or claim.never, "without a test it must say why"
    assert claim.where.startswith(("section", "appendix"))


@pytest.mark.parametrize("test", [t for c in CLAIMS for t in c.tests], ids=repr)
def test_every_test_names_what_there_is(test, mini):
    source = test.source()
    assert source.endswith(".ipynb") or registry.get(source)
    if isinstance(test, Gain):
        module = importlib.import_module(registry.get(test.target).sweep)
        assert {test.better, test.than} <= {c.name for c in module.CONDITIONS}
        assert test.dataset in table3.DATASETS.values()
    elif isinstance(test, Apart | Share | Answer):
        record = World(config.load("mini")).record(test.target)
        if isinstance(test, Apart):
            assert record is not None
            assert record.row(test.better, test.dataset, test.metric).value is not None
        if isinstance(test, Share):
            assert record is not None
            assert record.row(test.system, test.dataset, test.metric)
        if isinstance(test, Answer):
            texts = [q for _, q, *_ in follow._questions("M")]
            assert all(sum(t.startswith(q) for t in texts) == 1 for q in test.questions)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ([BETTER], claims.HOLDS),
        ([BETTER, BETTER], claims.HOLDS),
        ([WORSE], claims.FAILS),
        ([BETTER, WORSE], claims.FAILS),
        ([BETTER, UNCLEAR], "cannot tell: no difference shown"),
        ([UNCLEAR], "cannot tell: no difference shown"),
        ([BETTER, FEW], "cannot tell: too few trainings"),
        ([UNCLEAR, FEW], "cannot tell: too few trainings"),
        ([WORSE, FEW], claims.FAILS),
        ([BETTER, "depends on the reading"], "cannot tell: depends on the reading"),
        ([], "cannot tell: no record yet"),
    ],
)
def test_verdicts_follow_the_rule(found, want):
    claim = Claim("x", "A text", "section 1", "nothing")
    assert verdict(claim, [finding(f) for f in found]) == want


def test_reasons_stand_only_where_nothing_was_found():
    never = Claim("x", "A text", "section 1", "nothing", never="it takes listeners")
    waits = Claim("x", "A text", "section 1", "nothing", waits="table9 is not there yet")
    assert verdict(never, []) == "not testable here: it takes listeners"
    assert verdict(never, [finding(BETTER)]) == claims.HOLDS
    assert verdict(waits, []) == "cannot tell: table9 is not there yet"


def test_smoke_never_decides():
    claim = Claim("x", "A text", "section 1", "nothing")
    assert verdict(claim, [finding(BETTER, status="smoke")]) == "cannot tell: numbers of smoke mean nothing"


# ---------------------------------------------------------------- the findings


@pytest.mark.parametrize(
    ("count", "gain", "fad", "want"),
    [(3, 0.1, -2.0, BETTER), (3, -0.1, 2.0, WORSE), (2, 0.1, -2.0, FEW), (3, 0.0, 0.0, UNCLEAR)],
)
def test_a_gain_needs_three_trainings_and_an_interval_without_0(mini, count, gain, fad, want):
    runs = trainings(count, gain, fad)
    if not gain:
        for r, shift in zip(runs["contrastive"], (-1.0, 0.5, 0.7), strict=True):
            object.__setattr__(r.rows[0], "value", 10.0 + r.extra["seed"] + shift)
    world = World(mini, {"table5": runs})
    test = Gain("table5", "contrastive", "baseline", ("FAD (codec)", ALIGN))
    got = {f.metric: f for f in test.findings(world)}
    assert got[ALIGN].found == want
    assert got["FAD (codec)"].found == want
    assert got[ALIGN].value == pytest.approx(gain, abs=0.01)
    assert got[ALIGN].seeds == count
    assert got[ALIGN].n == 60
    assert len(test.keys(world)) == 2 * count


def test_without_one_side_there_is_no_finding(mini):
    runs = trainings(3, 0.1, -1.0)
    del runs["baseline"]
    assert Gain("table5", "contrastive", "baseline", (ALIGN,)).findings(World(mini, {"table5": runs})) == []


@pytest.mark.parametrize(("lo", "hi", "want"), [(0.1, 0.2, BETTER), (0.1, 0.5, UNCLEAR), (0.7, 0.8, WORSE)])
def test_rows_of_one_record_are_apart_or_not(mini, lo, hi, want):
    rows = [
        Row("after", "d", "similarity", "down", (lo + hi) / 2, (lo, hi), 70, status="scaled_down"),
        Row("before", "d", "similarity", "down", 0.5, (0.4, 0.6), 90, status="scaled_down"),
    ]
    world = World(mini, {"table1": Record("table1", "mini", "T", "k", tuple(rows))})
    (got,) = Apart("table1", "d", "after", "before", "similarity").findings(world)
    assert got.found == want
    assert (got.lo, got.hi) == pytest.approx((lo - 0.6, hi - 0.4))


@pytest.mark.parametrize(("ci", "want"), [((0.90, 0.97), BETTER), ((0.96, 1.0), BETTER), ((0.5, 0.9), WORSE)])
def test_a_share_reaches_the_papers_or_not(mini, ci, want):
    row = Row("After Demucs", "stems", "free of vocals", "up", sum(ci) / 2, ci, 40, status="scaled_down")
    world = World(mini, {"table1": Record("table1", "mini", "T", "k", (row,))})
    cell = Cell("data", "vocal removal", "soundtracks without vocals")
    (got,) = Share("table1", "stems", "After Demucs", "free of vocals", cell).findings(world)
    assert got.found == want
    assert got.lo == pytest.approx(ci[0] - 0.95)


def test_costs_are_counted_in_every_reading(mini):
    counted = findings._counted()
    assert len(counted["VMAs encoder"]) == 3 * len(encoder_cost.STAGE_1_WINDOWS)
    assert counted["VMAs encoder"]["2 a MAC of linear layers, 8x8 windows"] == pytest.approx(130.25, abs=0.01)
    assert counted["Hiera-B"]["2 a MAC of linear layers, 4x4 windows"] == pytest.approx(140.11, abs=0.01)
    clip, hiera = Cheaper().findings(World(mini))
    assert clip.found == BETTER  # at every window
    assert hiera.found == "depends on the reading"  # 28x28 windows cost more
    assert (hiera.lo or 0) < 0 < (hiera.hi or 0)
    (printed,) = Printed().findings(World(mini))
    assert printed.found == WORSE
    assert printed.value > 0.2
    assert {clip.status, hiera.status, printed.status} == {"reproduced"}


# ---------------------------------------------------------------- the ledger


def test_the_committed_ledger_is_that_of_the_committed_records():
    """A record that lands without its ledger would leave yesterday's verdicts standing."""
    there = records.read(records.committed("claims", "mini", 0))
    assert there.key == claims.key(config.load("mini")), "vmas reproduce claims --save-record"
    told = (paths.target("mini", "claims") / "table.md").read_text(encoding="utf-8")
    assert told == ledger.markdown(there)


def test_the_ledger_has_every_claim_and_links_that_lead_somewhere(mini):
    record = records.read(records.committed("claims", "mini", 0))
    assert [e["name"] for e in record.extra["ledger"]] == [c.name for c in CLAIMS]
    table = ledger.frame(record)
    assert list(table.columns) == list(ledger.COLUMNS)
    assert sum(ledger.counts(record).values()) == len(CLAIMS)
    kinds = {claims.HOLDS, claims.FAILS, claims.OPEN, claims.CLOSED}
    assert set(ledger.counts(record)) <= kinds
    for links in table.record:
        for part in links.split("](")[1:]:
            where = paths.target("mini", "claims") / part.split(")")[0]
            assert where.resolve().is_file(), where
    text = ledger.plain(record)
    assert max(map(len, text.splitlines())) <= 120
    assert all(f"\n{c.name}: " in text for c in CLAIMS)


def test_rows_of_the_ledger_carry_the_paper_and_the_verdict():
    record = records.read(records.committed("claims", "mini", 0))
    by = {e["name"]: e for e in record.extra["ledger"]}
    for e in by.values():
        rows = [r for r in record.rows if r.system == e["claim"]]
        assert rows
        assert all(r.paper == e["paper"] and r.note.endswith(e["verdict"]) for r in rows)
        assert all((r.value is None) == (not e["findings"]) for r in rows)


def test_the_figure_draws_every_finding_with_an_interval():
    record = records.read(records.committed("claims", "mini", 0))
    with_interval = [f for e in record.extra["ledger"] for f in e["findings"] if f["lo"] is not None]
    fig = claims.figure(record)
    assert sum(len(ax.get_yticks()) for ax in fig.axes) == len(with_interval)
    for ax in fig.axes:
        lo, hi = ax.get_xlim()
        assert lo == -hi, "0 in the middle: left is against, right for"
        assert ax.get_xlabel()


def test_without_records_the_ledger_still_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    record = claims.compute(config.load("mini"))
    found = {e["name"]: e["verdict"] for e in record.extra["ledger"]}
    assert found["contrast-fad"] == found["follows-motion"] == "cannot tell: no record yet"
    assert found["preference"].startswith("not testable here")
    assert all(done is False for what, _, done in claims.plan(config.load("mini")) if ".ipynb" not in what)


def test_paper_scale_has_no_ledger_yet():
    with pytest.raises(DataError, match="mini"):
        claims.compute(config.load("paper"))


def test_overrides_are_the_same_on_a_profile_as_on_its_file():
    for over in ({}, {"align": {"beta": 0.5}}, {"encoder": {"frames": 16}, "decoder": {"row_times": "frames"}}):
        assert config.changed(config.load("mini"), over) == config.load("mini", over)
