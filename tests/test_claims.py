"""The claims ledger: every claim can be read, every verdict follows the rule, the committed one is that of today."""

import importlib
import json
import re
import string
from dataclasses import asdict, replace

import numpy as np
import pytest

from vmas import config, encoder_cost, paths, records
from vmas.errors import DataError
from vmas.experiments import claims, findings, follow, registry, table3
from vmas.experiments.claims import CLAIMS, Claim, verdict
from vmas.experiments.findings import (
    ALIGN,
    FAD,
    KL,
    TEST,
    Answer,
    Apart,
    Cell,
    Cheaper,
    Finding,
    Gain,
    Planned,
    Printed,
    Share,
    World,
)
from vmas.metrics.verdict import BETTER, FEW, TRAININGS, UNCLEAR, WORSE
from vmas.records import Record, Row
from vmas.report import ledger

MV = "MV Align (2025, 9.6 fps)"
BY = {c.name: c for c in CLAIMS}


@pytest.fixture(scope="module")
def world():
    """The records of mini as committed, read once."""
    return World(config.load("mini"))


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
        Row(name, TEST, MV, "up", float(values.mean()), n=len(values), seeds=1, status="scaled_down"),
    )
    extra = {"seed": seed, "per_clip": {TEST: {MV: values.tolist()}}, "curve": []}
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
    assert bool(claim.tests) or claim.never, "without a test it must say why"
    places = re.findall(
        r"\d\.\d|\b\d\b(?!\.)|appendix [A-F]", re.sub(r"(Tables?|Figures?) [\d and,]+", "", claim.where)
    )
    assert places
    assert set(places) <= {"1", "3", "4.2", "4.4", "6.1", "6.2", "appendix E", "appendix F"}, "sections of the paper"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prior-fad", "DISCO-MV 2.38 against 3.70 (CMT), 4.36 (Video2Music), 2.93 (VidMusicGen), 3.21 (Vid2MLDM)"),
        ("symbolic", "the other way round, 0.34 and 0.29 against 0.25 and 0.32"),
        ("v2meow", "FAD 4.51 against 4.62, KL 1.15 against 1.22"),
        ("contrast-fad", "FAD 2.75 to 2.40"),
        ("contrast-kl", "KL 1.40 to 1.34"),
        ("beats", "MV Align 0.251 to 0.352; the text's gain, +0.109, is that over the baseline's 0.243"),
        ("both", "FAD 2.38 against 2.75 of the baseline, KL 1.34 against 1.40, MV Align 0.352 against 0.243"),
        ("encoder-quality", "MV Align 0.342 against 0.274 and 0.316"),
        ("encoder-cost", "130.7 GFLOPs against 281.6 (CLIP) and 140.2 (Hiera)"),
        ("data-fad", "DISCO-MV 3.2, 2.9, 2.7, 2.4; MusicCaps 4.7, 4.4, 4.3, 4.1"),
        ("cleaning", "FAD 4.52 to 2.38, KL 2.11 to 1.34, MV Align 0.18 to 0.35"),
        ("similarity", "0.91 (DISCO-10M) to 0.61 (DISCO-MV)"),
        ("retrieval", "R@10 26.7 against 17.3 (CLIP) and 18.1 (Hiera)"),
        ("preference", "70% for quality, 67% for alignment"),
    ],
)
def test_numbers_stand_where_the_paper_has_them(name, says):
    assert says in BY[name].evidence()


TESTS = list({repr(t): t for c in CLAIMS for t in c.tests}.values())


@pytest.mark.parametrize("test", TESTS, ids=lambda t: repr(t)[:80])
def test_every_test_asks_for_what_there_is(test, world):
    if isinstance(test, Planned):
        assert not registry.REGISTRY[test.target].implemented, "it can be computed now: its claims need a test"
        assert test.lacks(world) == [f"{test.target}, which is planned"]
        return
    assert test.source.endswith(".ipynb") or registry.get(test.source)
    if isinstance(test, Gain):
        module = importlib.import_module(registry.get(test.target).sweep)
        order = [c.name for c in module.CONDITIONS]
        assert {test.better, test.than} <= set(order)
        assert test.dataset in table3.DATASETS.values()
        some = records.read(records.committed("table5-baseline", "mini", 0))
        assert {world.metric(m) for m in test.metrics} <= {r.metric for r in some.rows if r.dataset == test.dataset}
    if (isinstance(test, Apart) and test.target == "table1") or isinstance(test, Share):
        record = world.record(test.target)
        assert test.dataset in {r.dataset for r in record.rows}
        systems = test.better + test.than if isinstance(test, Apart) else (test.system,)
        assert set(systems) <= {r.system for r in record.rows}
        assert test.metric in {r.metric for r in record.rows}


def test_what_is_said_to_be_better_is_the_papers_better_row():
    """Direction: the winner of a test is the row that the paper's winner stands for."""
    pairs = {
        name: [(t.better, t.than) for t in BY[name].tests if t.counts]
        for name in BY
        if isinstance((*BY[name].tests, None)[0], Gain)
    }
    assert pairs["contrast-fad"] == pairs["contrast-kl"] == [("contrastive", "baseline")]
    assert pairs["beats"] == [("beats", "contrastive"), ("beats", "baseline")]
    assert pairs["both"] == [("beats", "baseline")]
    assert pairs["encoder-quality"] == [("ours", "clip"), ("ours", "hiera")]
    assert pairs["cleaning"] == [("similarity", "dirty")]
    steps = [("share-25", "share-10"), ("share-50", "share-25"), ("share-100", "share-50")]
    assert pairs["data-fad"] == pairs["data-align"] == 2 * steps
    assert pairs["data-tenth"] == 2 * [("share-100", "share-10")]


def test_every_question_of_follow_is_asked():
    asked = [q for c in CLAIMS for t in c.tests if isinstance(t, Answer) for q in t.questions]
    for _, question, *_ in follow._questions("M"):
        assert sum(question.startswith(q) for q in asked) == 1, question


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
        ([], "cannot tell: no record of it"),
    ],
)
def test_verdicts_follow_the_rule(found, want):
    claim = Claim("x", "A text", "section 1", "nothing")
    assert verdict(claim, [finding(f) for f in found]) == want


def test_what_is_missing_keeps_a_claim_open():
    claim = Claim("x", "A text", "section 1", "nothing")
    assert verdict(claim, [finding(BETTER)], ["table6's hiera", "table6's hiera"]) == (
        "cannot tell: no record of table6's hiera"
    )
    assert verdict(claim, [finding(WORSE)], ["table6's hiera"]) == claims.FAILS


def test_what_stands_beside_decides_nothing():
    never = Claim("x", "A text", "section 1", "nothing", never="it takes listeners")
    assert verdict(never, []) == "not testable here: it takes listeners"
    assert verdict(never, [finding(WORSE, counts=False)]) == "not testable here: it takes listeners"
    assert verdict(never, [finding(BETTER)]) == claims.HOLDS


def test_smoke_never_decides():
    claim = Claim("x", "A text", "section 1", "nothing")
    assert verdict(claim, [finding(BETTER)], smoke=True) == "cannot tell: numbers of smoke mean nothing"


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
    test = Gain("table5", "contrastive", "baseline", (FAD, ALIGN))
    got = {f.metric: f for f in test.findings(world)}
    assert got[MV].found == want
    assert got["FAD (codec)"].found == want
    assert got[MV].value == pytest.approx(gain, abs=0.01)
    assert got[MV].seeds == count
    assert got[MV].n == 60


def test_what_a_gain_lacks_is_named(mini):
    runs = trainings(3, 0.1, -1.0)
    test = Gain("table5", "contrastive", "baseline", (FAD, ALIGN))
    assert test.lacks(World(mini, {"table5": runs})) == []
    more = Gain("table5", "contrastive", "baseline", (FAD, KL, ALIGN))
    assert more.lacks(World(mini, {"table5": runs})) == ["a pair of contrastive and baseline by KL"]
    other = [replace(r, extra={**r.extra, "stage1": {"music": "another"}}) for r in runs["baseline"]]
    unpaired = World(mini, {"table5": {**runs, "baseline": other}})
    assert test.findings(unpaired) == []
    assert len(test.lacks(unpaired)) == 2
    half = World(mini, {"table5": {"contrastive": runs["contrastive"]}})
    assert replace(test, counts=False).lacks(half) == []
    assert test.findings(half) == []
    assert test.lacks(half) == ["table5's baseline"]


@pytest.mark.parametrize(("lo", "hi", "want"), [(0.1, 0.2, BETTER), (0.1, 0.5, UNCLEAR), (0.7, 0.8, WORSE)])
def test_rows_of_one_record_are_apart_or_not(mini, lo, hi, want):
    rows = [
        Row("after", "d", "similarity", "down", (lo + hi) / 2, (lo, hi), 70, status="scaled_down"),
        Row("before", "d", "similarity", "down", 0.5, (0.4, 0.6), 90, status="scaled_down"),
        Row("nothing", "d", "similarity", "down", status="unavailable", note="no weights"),
    ]
    world = World(mini, {"table1": Record("table1", "mini", "T", "k", tuple(rows))})
    test = Apart("table1", "d", ("after", "nothing"), ("before",), "similarity")
    (got,) = test.findings(world)
    assert got.found == want
    assert (got.lo, got.hi) == pytest.approx((lo - 0.6, hi - 0.4))
    assert test.lacks(world) == ["table1's nothing"]


@pytest.mark.parametrize(
    ("ci", "want"), [((0.92, 0.97), BETTER), ((0.96, 1.0), BETTER), ((0.5, 0.89), WORSE), ((0.05, 0.96), UNCLEAR)]
)
def test_a_share_reaches_the_papers_or_not(mini, ci, want):
    row = Row("After Demucs", "stems", "free of vocals", "up", sum(ci) / 2, ci, 40, status="scaled_down")
    world = World(mini, {"table1": Record("table1", "mini", "T", "k", (row,))})
    cell = Cell("data", "vocal removal", "soundtracks without vocals")
    (got,) = Share("table1", "stems", "After Demucs", "free of vocals", cell).findings(world)
    assert got.found == want
    assert got.lo == pytest.approx(ci[0] - 0.95)
    assert Share("table1", "stems", "Another", "free of vocals", cell).lacks(world) == ["table1's Another"]
    assert Share("table1", "stems", "Another", "free of vocals", cell, counts=False).lacks(world) == []


def test_one_trained_model_decides_nothing(mini, world):
    test, every = BY["follows-motion"].tests[0], world.trainings()
    got = test.findings(World(mini, {"follow": every[:1]}))
    assert len(got) == 3
    assert {f.found for f in got} == {FEW}
    assert {f.seeds for f in got} == {1}
    assert len(every) >= TRAININGS
    assert {f.seeds for f in test.findings(world)} == {len(every)}
    assert FEW not in {f.found for f in test.findings(world)}


def test_costs_are_counted_in_every_reading(mini):
    linear = "with 2 a MAC of linear layers alone"
    counted = findings.counted()
    assert set(counted["VMAs encoder"][linear]) == {f"{a}x{b}" for a, b in encoder_cost.STAGE_1_WINDOWS}
    assert counted["VMAs encoder"][linear]["8x8"] == pytest.approx(130.25, abs=0.01)
    assert counted["Hiera-B"][linear]["4x4"] == pytest.approx(140.11, abs=0.01)
    got = {f.what: f for f in Cheaper().findings(World(mini))}
    clip = [f for what, f in got.items() if "CLIP" in what]
    assert {f.found for f in clip} == {BETTER}
    hiera = got["VMAs encoder against Hiera-B, with 2 a MAC"]
    assert hiera.found == "depends on the windows of stage 1 (not with 28x28)"
    assert hiera.value == pytest.approx(152.5 / 203.45 - 1, abs=0.001)
    assert hiera.hi == pytest.approx(240.9 / 203.45 - 1, abs=0.001)
    assert got[f"VMAs encoder against Hiera-B, {linear}"].found == BETTER, "linear layers know no windows"
    *each, every = Printed().findings(World(mini))
    assert [f.found for f in each] == 3 * ["as printed"]
    assert not any(f.counts for f in each)
    assert (every.value, every.found) == (0, WORSE), "two of one convention, one of another"
    assert {f.status for f in (*got.values(), every)} == {"reproduced"}


# ---------------------------------------------------------------- the ledger


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The ledger of the committed records, whatever this machine has computed besides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield claims.compute(config.load("mini"))


@pytest.fixture
def there() -> Record:
    return records.read(records.committed("claims", "mini", 0))


def _leaves(x) -> list:
    """What a nest of lists and dicts holds, in its order."""
    if isinstance(x, dict):
        return [leaf for k, v in x.items() for leaf in [k, *_leaves(v)]]
    return [leaf for v in x for leaf in _leaves(v)] if isinstance(x, list | tuple) else [x]


def _numbers(x) -> list[float]:
    """Its numbers: another processor's sums differ in their last digits."""
    return [v for v in _leaves(x) if isinstance(v, float)]


def _words(x) -> list:
    return [v for v in _leaves(x) if not isinstance(v, float)]


def test_the_committed_ledger_is_that_of_the_committed_records(there, fresh):
    """A record that lands without its ledger would leave yesterday's verdicts standing."""
    assert there.key == fresh.key, "vmas reproduce claims --save-record"
    was, now = ([asdict(r) for r in x.rows] for x in (there, fresh))
    assert _words(was) == _words(now)
    assert _numbers(was) == pytest.approx(_numbers(now), abs=1e-9)
    was, now = there.extra["ledger"], json.loads(json.dumps(fresh.extra["ledger"]))
    assert _numbers(was) == pytest.approx(_numbers(now), abs=1e-9)
    assert _words(was) == _words(now)
    told = (paths.target("mini", "claims") / "table.md").read_text(encoding="utf-8")
    assert told == ledger.markdown(there)


def test_a_number_that_changes_makes_the_ledger_anew(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    real = records.find

    def changed(path, key):
        found = real(path, key)
        if found and found.target == "follow":
            first = replace(found.rows[0], value=found.rows[0].value + 0.5)
            return replace(found, rows=(first, *found.rows[1:]))
        return found

    assert claims.key(config.load("mini")) == fresh.key
    monkeypatch.setattr(records, "find", changed)
    assert claims.key(config.load("mini")) != fresh.key


def test_the_ledger_has_every_claim_and_links_that_lead_somewhere(there):
    assert [e["name"] for e in there.extra["ledger"]] == [c.name for c in CLAIMS]
    table = ledger.frame(there)
    assert list(table.columns) == list(ledger.COLUMNS)
    assert sum(ledger.counts(there).values()) == len(CLAIMS)
    assert set(ledger.counts(there)) <= {claims.HOLDS, claims.FAILS, claims.OPEN, claims.CLOSED}
    for start in (paths.target("mini", "claims"), paths.NOTEBOOKS):
        for links in ledger.frame(there, start).record:
            for part in links.split("](")[1:]:
                where = start / part.split(")")[0]
                assert where.resolve().is_file(), where
    text = ledger.plain(there)
    assert max(map(len, text.splitlines())) <= 120
    assert all(f"\n{c.name}: " in text for c in CLAIMS)


def test_rows_of_the_ledger_carry_the_paper_and_the_verdict(there):
    for e in there.extra["ledger"]:
        rows = [r for r in there.rows if r.note.startswith(f"{e['name']}: {e['verdict']}.") or r.system == e["claim"]]
        assert len(rows) == max(1, len(e["findings"]))
        assert all(r.paper == e["paper"] for r in rows)
        assert all((r.status == "unavailable") == (not e["findings"]) for r in rows)
        for r, f in zip(rows, e["findings"], strict=False):
            assert r.metric == f"{f['metric']}, difference"
            assert (r.ci95 is None) == (f["readings"] or f["lo"] is None), "a range of readings is no interval"


def test_the_figure_draws_every_comparison_with_an_interval(there):
    wanted = {
        (f["what"], f["dataset"], f["metric"])
        for e in there.extra["ledger"]
        for f in e["findings"]
        if f["lo"] is not None
    }
    fig = claims.figure(there)
    assert sum(len(ax.get_yticks()) for ax in fig.axes) == len(wanted)
    for ax in fig.axes:
        lo, hi = ax.get_xlim()
        assert lo == -hi, "0 in the middle: left is against, right for"
        assert ax.get_xlabel()


def test_without_records_the_ledger_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    record = claims.compute(config.load("mini"))
    found = {e["name"]: e["verdict"] for e in record.extra["ledger"]}
    assert found["contrast-fad"] == "cannot tell: no record of table5's contrastive, table5's baseline"
    assert found["follows-motion"] == "cannot tell: no record of follow"
    assert found["preference"].startswith("not testable here")
    assert not any(done for *_, done in claims.plan(config.load("mini")))


def test_smoke_has_a_ledger_without_verdicts(monkeypatch, tmp_path):
    """Records of a sweep may lie in the cache where the codec was deleted: they are passed over, not tripped on."""
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    smoke = config.load("smoke")
    records.write(run("baseline", 0, [0.1, 0.2], 1.0), records.local("table5-baseline", "smoke", 0))
    record = claims.compute(smoke)
    assert ledger.counts(record) == {claims.OPEN: len(CLAIMS)}
    assert record.key == claims.key(smoke)
    assert ledger.markdown(record)


def test_paper_scale_has_no_ledger_yet():
    with pytest.raises(DataError, match="mini"):
        claims.compute(config.load("paper"))


def test_overrides_are_the_same_on_a_profile_as_on_its_file():
    for over in ({}, {"align": {"beta": 0.5}}, {"encoder": {"frames": 16}, "decoder": {"row_times": "frames"}}):
        assert config.changed(config.load("mini"), over) == config.load("mini", over)
