"""What a sweep's record shows: comparisons, curves, words made by rules, and tables that a reader can read."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from sweep_runs import DATA, METRIC, made

from vmas import config
from vmas.errors import DataError
from vmas.experiments import assemble, data_size, table5
from vmas.experiments.sweep import Condition
from vmas.records import Record, Row
from vmas.report import paper, remarks, sweeps, table


@pytest.fixture(scope="module")
def smoke():
    return config.load("smoke", {"eval": {"bootstrap": 400}})


def _assembled(
    smoke, conditions, curve=(), seeds=(0, 1), values=lambda i, s: [0.2 + 0.1 * i, 0.4 + 0.1 * i + 0.01 * s], pairs=()
):
    found = {}
    for i, c in enumerate(conditions):
        found[c.name] = [made(s, values(i, s), 1.0 + i, c.label) for s in seeds]
        for r in found[c.name]:
            r.extra["curve"] = list(curve)
    return assemble.record("t", "T", conditions, found, conditions[0].name, smoke, pairs=pairs)


def test_gains_are_the_paired_differences(smoke):
    two = [Condition("a", "Autoregressive baseline"), Condition("b", "+ contrastive")]
    got = sweeps.gains(_assembled(smoke, two))
    fad, align = got.itertuples()
    assert (fad.condition, align.condition) == ("b", "b")
    assert (fad.difference, align.difference) == (1.0, pytest.approx(0.1))
    assert (fad.better, align.better) == (0.0, 1.0)
    assert (fad.lo, fad.hi, fad.seeds) == (1.0, 1.0, 2)
    assert align.lo <= 0.1 + 1e-9 <= align.hi + 2e-9
    assert {fad.verdict, align.verdict} == {"cannot tell: 2 trainings each"}
    assert list(sweeps.gains(_assembled(smoke, two[:1])).columns) == list(got.columns)


def test_further_pairs_stand_beside_each_rows_own_and_are_told(smoke):
    three = [Condition(n, n) for n in ("a", "b", "c")]
    record = _assembled(smoke, three, seeds=(0, 1, 2), pairs=(("c", "b"), ("c", "not recorded")))
    got = sweeps.gains(record)
    pairs = list(zip(got.condition, got.against, strict=True))
    assert list(dict.fromkeys(pairs)) == [("b", "a"), ("c", "a"), ("c", "b")]
    align = got[got.metric.str.startswith("MV Align")].set_index(["condition", "against"]).difference
    assert align["c", "b"] == pytest.approx(align["c", "a"] - align["b", "a"]) == pytest.approx(0.1)
    told = remarks.effects(record, ["b"])
    assert [line.split(",")[0] for line in told[:-1]] == ["b against a", "c against b"]
    assert [line.split(",")[0] for line in remarks.effects(record, [])[:-1]] == ["c against b"]


def test_curves_draw_every_condition_with_its_colour(smoke):
    two = [Condition("a", "Autoregressive baseline"), Condition("b", "+ contrastive")]
    curve = [{"step": s, "ce": v, "L_g": v, "L_c": 0.0, "loss": v} for s, v in ((10, 3.0), (20, 2.5))]
    ce, _, contrast = sweeps.curves(_assembled(smoke, two, curve)).axes
    assert [line.get_color() for line in ce.lines] == ["#56B4E9", "#E69F00"]
    assert list(ce.lines[0].get_ydata()) == [3.0, 2.5]
    assert not contrast.lines  # neither has a contrast
    assert "nats" in ce.get_ylabel()


def test_curves_of_chosen_rows_differ_in_looks_and_none_is_left_out(smoke):
    curve = [{"step": s, "ce": v, "L_g": v, "L_c": 0.0, "loss": v} for s, v in ((10, 3.0), (20, 2.5))]
    record = _assembled(smoke, table5.CONDITIONS, curve, values=lambda i, s: [0.2, 0.4])
    drawn = []
    for names in table5.CURVES.values():
        fig = sweeps.curves(record, names)
        lines = fig.axes[0].lines
        assert len({(x.get_color(), x.get_linestyle(), x.get_marker()) for x in lines}) == len(lines) == len(names)
        table.png(fig)  # laid out
        (legend,) = fig.legends
        around = legend.get_window_extent()
        assert 0 <= around.x0 <= around.x1 <= 11 * 130, "the legend fits"
        assert around.y1 <= min(ax.get_window_extent().y0 for ax in fig.axes)
        drawn += [x.get_label() for x in lines]
    assert sorted(drawn) == sorted(c.label for c in table5.CONDITIONS)
    with pytest.raises(DataError, match="no validation curve of nothing"):
        sweeps.curves(record, ["nothing"])


@pytest.mark.parametrize(
    ("direction", "lo", "hi", "seeds", "want"),
    [
        ("up", 0.1, 0.2, 3, "better"),
        ("up", 0.1, 0.2, 2, "cannot tell: 2 trainings each"),
        ("down", 0.1, 0.2, 3, "worse"),
        ("down", -0.2, -0.1, 3, "better"),
        ("up", -0.1, 0.2, 5, "no difference shown"),
        ("up", 0.1, 0.2, 1, "cannot tell: 1 training each"),
        ("up", None, None, 1, "cannot tell: 1 training each"),
    ],
)
def test_verdicts_follow_a_rule(direction, lo, hi, seeds, want):
    assert sweeps.verdict(direction, lo, hi, seeds) == want


def _curve(*points) -> list[dict]:
    return [{"step": s, "ce": v, "L_g": v, "L_c": 0.0, "loss": v} for s, v in points]


def _two_seeds(smoke, *curves) -> Record:
    found = [made(s, [0.2, 0.4], name="B") for s in range(len(curves))]
    for r, curve in zip(found, curves, strict=True):
        r.extra["curve"] = curve
    return assemble.record("t", "T", [Condition("b", "Autoregressive baseline")], {"b": found}, "b", smoke)


def test_a_row_of_one_training_is_hollow_beside_rows_of_several(smoke):
    two = [Condition("a", "Autoregressive baseline"), Condition("b", "+ contrastive")]
    found = {"a": [made(s, [0.2, 0.4]) for s in range(2)], "b": [made(0, [0.3, 0.5])]}

    def faces(record) -> dict[str, bool]:
        dots = [line for line in table.figure(record).axes[0].lines if line.get_marker() == "o"]
        return {("a", "b")[int(line.get_ydata()[0])]: line.get_markerfacecolor() == "white" for line in dots}

    assert faces(assemble.record("t", "T", two, found, "a", smoke)) == {"a": False, "b": True}
    found["a"] = found["a"][:1]
    assert faces(assemble.record("t", "T", two, found, "a", smoke)) == {"a": False, "b": False}


def test_seeds_validated_at_other_updates_are_drawn_where_both_were(smoke):
    often = _curve((10, 3.0), (20, 2.0), (30, 1.0))
    record = _two_seeds(smoke, often, _curve((15, 9.0), (30, 2.0)))
    (line,) = sweeps.curves(record).axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([30], [1.5])


def test_rows_that_were_trained_past_their_best_are_named(smoke):
    falls, rises = _curve((10, 3.0), (20, 2.0), (30, 1.99)), _curve((10, 2.0), (20, 2.1), (30, 2.2))
    ended = sweeps.trained(_two_seeds(smoke, falls, rises))
    assert list(ended.best) == [30, 10]
    assert list(ended["last third"]) == pytest.approx([-0.5, 100 * (2.2 / 2.1 - 1)])
    assert remarks.machines(_two_seeds(smoke, falls, falls)) == [], "one machine, or none is named"
    (line,) = remarks.past_their_best(_two_seeds(smoke, falls, rises))
    assert "b 10 of 30" in line
    assert remarks.past_their_best(_two_seeds(smoke, falls, falls)) == []


def test_effects_are_told_with_interval_and_rule(smoke):
    two = [Condition("a", "Autoregressive baseline"), Condition("b", "+ contrastive")]
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, (3, 50))
    found = {"a": [made(s, base[s], fad=5 + s) for s in range(3)]}
    found["b"] = [made(s, base[s] + 0.05, fad=7.0 + s) for s in range(3)]
    record = assemble.record("t", "T", two, found, "a", smoke)
    effect, rule = remarks.effects(record, ["b"])
    assert effect.startswith("b against a, corpus, 3 seeds: FAD (codec) +2.000 [+2.000, +2.000], worse; MV Align")
    assert effect.endswith("+0.050 [+0.050, +0.050], better.")
    assert "of 2" in rule
    assert remarks.effects(record, ["no such row"]) == []


def test_how_far_rows_reach_is_told_beside_the_ceiling(smoke):
    record = _two_seeds(smoke, _curve((1, 1.0)))  # MV Align .3, chance .2
    top = Record("table3", "smoke", "T", "k", (Row("Through codec", DATA, METRIC, "up", 0.6, status="smoke"),), {}, {})
    assert remarks.reached(record, top, "Another") == []
    (found,) = remarks.reached(record, top, "Through codec")
    record.extra["reach"] = [found]
    first = f"{METRIC}, corpus, of the way from chance to through codec (0.600): "
    assert remarks.reach(record, ["b"]) == [f"{first}Autoregressive baseline 25%."]
    assert remarks.reach(record, []) == [f"{first}furthest of all rows: Autoregressive baseline 25%."]
    assert sweeps.reached(record).to_dict() == {f"{METRIC}, corpus": {"Autoregressive baseline": "25%"}}


def test_pairs_are_a_line_each_with_word_and_probability(smoke):
    record = _assembled(smoke, [Condition(n, f"row {n}") for n in "abc"], seeds=(0, 1, 2), pairs=(("c", "b"),))
    found = sweeps.paired(record, DATA)
    assert list(found.columns) == ["row", "against", "trainings", "FAD (codec)", METRIC]
    assert found[["row", "against"]].to_numpy().tolist() == [["b", "a"], ["c", "a"], ["c", "b"]]
    assert found["FAD (codec)"].tolist() == [f"{x} [{x}, {x}] worse" for x in ("+1.000", "+2.000", "+1.000")]
    assert found[METRIC].tolist()[1] == "+0.200 [+0.200, +0.200] better"
    often = sweeps.improvement(record, DATA)
    assert often[METRIC].tolist() == ["100% [100%, 100%]"] * 3
    assert often["FAD (codec)"].tolist() == ["0% [0%, 56%]"] * 3  # Wilson's, of three trainings
    one = _assembled(smoke, [Condition("a", "row a"), Condition("b", "row b")], seeds=(0,))
    assert sweeps.paired(one, DATA)["FAD (codec)"].tolist() == ["+1.000"]
    alone = _assembled(smoke, [Condition("a", "row a")])
    assert sweeps.paired(alone, DATA).empty
    assert "Paired differences" not in sweeps.markdown(alone)
    page = sweeps.markdown(record)
    assert page.index("## Computed") < page.index(f"## Paired differences: {DATA}") < page.index("## Probability")
    assert "- b: row b." in page


def test_how_trainings_went_is_a_line_a_row(smoke):
    falls, rises = _curve((10, 3.0), (20, 2.0), (30, 1.99)), _curve((10, 2.0), (20, 2.1), (30, 2.2))
    (line,) = sweeps.ended(_two_seeds(smoke, falls, rises)).itertuples()
    assert (line.Index, line.trainings, line.updates) == ("b", 2, 30)
    found = sweeps.ended(_two_seeds(smoke, falls, rises)).loc["b"]
    assert found["lowest L after"] == "10 to 30"
    assert found["last third, %"] == pytest.approx((-0.5 + 100 * (2.2 / 2.1 - 1)) / 2, abs=1e-3)
    assert (found["cross-entropy, first"], found["cross-entropy, last"]) == (2.5, 2.095)
    assert sweeps.ended(_two_seeds(smoke, falls, falls)).loc["b", "lowest L after"] == "30"


def test_in_a_terminal_rows_have_their_short_names_and_lines_fit(smoke):
    many = [Condition(f"row-{i}", f"A row with a name that is much longer than a column, {i}") for i in range(9)]
    text = sweeps.plain(_assembled(smoke, many))
    assert max(map(len, text.splitlines())) <= table.WIDTH
    assert sum(line.startswith("row-3  ") for line in text.splitlines()) == 1
    assert f"row-3: {many[3].label}." in " ".join(text.split())


def test_a_wide_table_is_cut_between_metrics():
    import pandas as pd

    columns = ("FAD ↓", "MV ↑", "MV, chance", "MV, lift", "KL ↓")
    wide = pd.DataFrame({c: ["0.441 [0.410, 0.470]"] for c in columns}, ["a"])
    parts = table.blocks(wide, 60)
    assert [list(p.columns) for p in parts] == [["FAD ↓"], ["MV ↑", "MV, chance", "MV, lift"], ["KL ↓"]]
    assert [list(p.columns) for p in table.blocks(wide, 200)] == [list(wide.columns)]


def test_each_figure_of_the_data_size_has_its_own_metrics(smoke):
    both = _assembled(smoke, data_size.CONDITIONS)
    for target, first in (("fig6", "FAD (codec)"), ("fig7", METRIC)):
        got = data_size.finish(replace(both, target=target), smoke)
        assert {r.metric for r in got.rows} == {first}
        assert {g["metric"] for found in got.extra["differences"].values() for g in found} == {first}
        assert data_size.figure(got).axes[0].get_ylabel().startswith(first)


def test_data_size_figure_draws_ours_and_the_papers_on_axes_of_their_own(smoke):
    (left,) = sweeps.data_size(_assembled(smoke, data_size.CONDITIONS), "fig7").axes
    ours = next(line for line in left.lines if line.get_label() == DATA)
    np.testing.assert_allclose(ours.get_xdata(), [10, 25, 50, 100], atol=1)  # test sets stand a little aside
    np.testing.assert_allclose(ours.get_ydata(), [0.3025, 0.4025, 0.5025, 0.6025])
    left, right = sweeps.data_size(_assembled(smoke, data_size.CONDITIONS), "fig6").axes
    assert list(next(line for line in left.lines if line.get_label() == DATA).get_ydata()) == [1.0, 2.0, 3.0, 4.0]
    quoted = paper.load("fig6")
    assert sum(len(line.get_xdata()) for line in right.lines) == len(quoted)
    assert "quoted" in right.get_title(loc="left")
    with pytest.raises(DataError, match="fig6"):
        sweeps.data_size(_assembled(smoke, data_size.CONDITIONS), "fig8")
    with pytest.raises(DataError, match="names no share"):
        sweeps.data_size(_assembled(smoke, [Condition("a", "VMAs")]), "fig6")


def test_the_papers_rows_stand_beside_ours():
    for module in (table5, data_size):
        rows = [r for name in module.QUOTED for r in paper.quoted_rows(name)]
        assert rows
        assert all(r.status in ("quoted", "unavailable") for r in rows)


def test_runs_of_two_machines_are_counted(smoke):
    conditions = [Condition("a", "A"), Condition("b", "B")]
    found = {c.name: [made(s, [0.2, 0.4], name=c.label) for s in (0, 1, 2)] for c in conditions}
    for name, where in (("a", "xxy"), ("b", "xyy")):
        found[name] = [
            dataclasses.replace(r, provenance={**r.provenance, "hardware": w})
            for r, w in zip(found[name], where, strict=True)
        ]
    record = assemble.record("t", "T", conditions, found, "a", smoke)
    (line,) = remarks.machines(record)
    assert "x: 3; y: 3" in line
    assert "Of 3 pairs of runs that are compared 1 are of two machines" in line
