"""The numbers that `results/mini/FINDINGS.md` tells of the experiments are those of the records."""

import json
import re

import numpy as np
import pytest

from vmas import config, paths, records
from vmas.experiments import assemble, corpora, follow, follow_tests, placement, runner, sweep, table5, table6
from vmas.metrics import verdict
from vmas.records import Record, Row
from vmas.report import sweeps

TEST = "corpus, test (stands for DISCO-MV)"
SHIFTED = "corpus, shifted style (stands for MusicCaps)"
ALIGN = "MV Align (2025, 9.6 fps)"
DENSE = "MV Align (2025, 24 fps)"
FAD = "FAD (codec)"
TAGGER = "Tagger accuracy"


@pytest.fixture(scope="module")
def told() -> str:
    return " ".join(paths.target("mini", "FINDINGS.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", ["table5", "table6", "cleaning", "fig6", "fig7", "corpora"])
def test_committed_tables_are_those_of_the_committed_runs(name, swept):
    """What a reader opens in `results/mini/` is what the command would write; measured times are another each time."""
    rows = json.loads((paths.target("mini", name) / "result.json").read_text(encoding="utf-8"))["rows"]
    want = json.loads(json.dumps(swept[name].result()))["rows"]
    assert [(r["system"], r["dataset"], r["metric"]) for r in rows] == [
        (r["system"], r["dataset"], r["metric"]) for r in want
    ]
    for a, b in zip(rows, want, strict=True):
        if a["value"] is not None and not a["metric"].startswith("Time"):
            assert a["value"] == pytest.approx(b["value"], rel=1e-6), (a["system"], a["metric"])
    page = (paths.target("mini", name) / "table.md").read_text(encoding="utf-8")
    for remark in swept[name].extra["remarks"]:
        assert f"- {remark}" in page


def share(x: float) -> str:
    return f"{x:.3f}".removeprefix("0")


def at(record: Record, condition: str, metric: str) -> Row:
    """The row of a condition on the test split."""
    labels = dict.fromkeys(r.system for r in record.rows if r.value is not None)
    return record.row(dict(zip(record.extra["curves"], labels, strict=True))[condition], TEST, metric)


def value(record: Record, condition: str, metric: str) -> float:
    return float(at(record, condition, metric).value or 0)


def chance(record: Record, condition: str) -> float:
    """What music of the condition scores by MV Align against other clips' pictures."""
    return float(at(record, condition, ALIGN).chance or 0)


def gap(found: list, dataset: str = TEST, metric: str = ALIGN, digits: int = 3, sign: int = 1) -> str:
    """A difference with its interval, as the page writes it: +.034 [+.026, +.042]."""
    (g,) = [g for g in found if (g["dataset"], g["metric"]) == (dataset, metric)]
    ends = [sign * g["difference"], *sorted(sign * g[k] for k in ("lo", "hi"))]
    text = [re.sub(r"(?<![0-9])0\.", ".", f"{x:+.{digits}f}") for x in ends]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def between(record: Record, condition: str, other: str) -> list:
    """What one row of a table changes against another, of the comparisons that the table has."""
    (found,) = [g for a, b, g in sweeps.compared(record) if (a, b) == (condition, other)]
    return found


def side(found: list, dataset: str = TEST, metric: str = ALIGN) -> str:
    (g,) = [g for g in found if (g["dataset"], g["metric"]) == (dataset, metric)]
    return verdict.side(g["lo"], g["hi"], g["direction"], g["seeds"])


def changed(found: list) -> str:
    """What two rows differ by, metric by metric, each with its verdict."""
    parts = [
        f"{name} by {gap(found, metric=m, digits=d)} ({side(found, metric=m)})"
        for name, m, d in (("FAD", FAD, 1), ("MV Align", ALIGN, 3), ("KL", "KL", 2), ("tagger", TAGGER, 3))
    ]
    return f"{', '.join(parts)}, over {found[0]['seeds']} seeds"


def test_numbers_of_trainings(told, swept):
    tables = {name: swept[name] for name in ("table5", "table6", "cleaning", "fig6", "fig7")}
    n = {c: len(seeds) for r in tables.values() for c, seeds in r.extra["seeds"].items()}
    assert (
        "Five trainings of each of Table 5's three rows stand behind this page, three or four of most other rows, and "
        "one of Table 5's rows with a longer stage 1b (two of `longer-music`) and of Table 6's `clip-8` and `hiera-8` "
        "(cleaning's `moving` and `filtered` have none)"
    ) in told
    assert {n[c] for c in table5.PAPER} == {5}
    single = {c for c in longer_music() if c != "longer-music"} | {"clip-8", "hiera-8"}
    assert {c for c, v in n.items() if v == 1} == single
    assert n["longer-music"] == 2
    assert {v for c, v in n.items() if c not in (*table5.PAPER, *single, "longer-music")} <= {3, 4}
    missing = {name: r.extra["missing"] for name, r in tables.items() if r.extra["missing"]}
    assert missing == {"cleaning": ["moving", "filtered"]}


def test_contrast(told, swept):
    r = swept["table5"]
    gains = r.extra["differences"]
    fad, align, kl = ([value(r, c, m) for c in ("contrastive", "baseline")] for m in (FAD, ALIGN, "KL"))
    change = f"(difference {gap(gains['contrastive'], metric=FAD, digits=1)} over 5 seeds)"
    assert f"FAD is worse, {fad[0]:.1f} against the baseline's {fad[1]:.1f} {change}" in told
    assert f"{share(align[0])} against {share(align[1])}, and KL {kl[0]:.2f} against {kl[1]:.2f}" in told
    assert [side(gains["contrastive"], metric=m) for m in (FAD, ALIGN, "KL")] == ["worse", *[verdict.UNCLEAR] * 2]
    low = f"MV Align {share(value(r, 'temperature', ALIGN))} (chance {share(chance(r, 'temperature'))})"
    assert f"{low} at {value(r, 'temperature', 'Onsets per clip'):.0f} onsets a clip" in told
    longer = [gap(gains["contrastive-long"], metric=m, digits=d) for m, d in ((FAD, 1), (ALIGN, 3))]
    assert f"change FAD by {longer[0]} and MV Align by {longer[1]}: no difference is shown" in told
    assert {side(gains["contrastive-long"], metric=m) for m in (FAD, ALIGN)} == {verdict.UNCLEAR}


def test_contrast_that_can_shape_the_encoder(told, swept):
    r, name, unclear = swept["table5"], "trained-.1", verdict.UNCLEAR
    gains = r.extra["differences"][name]
    assert r.extra["against"][name] == "baseline-trained-.1"
    seeds = {n: len(r.extra["seeds"][n]) for n in (name, "baseline-trained-.1")}
    assert set(seeds.values()) == {3}
    changes = [gap(gains, metric=m, digits=d) for m, d in ((FAD, 1), (ALIGN, 3), (DENSE, 3), ("KL", 2))]
    assert f"it changes FAD by {changes[0]}, MV Align by {changes[1]} at 9.6 fps and {changes[2]} at 24 fps" in told
    assert f"KL by {changes[3]}" in told
    assert "MV Align is worse, of FAD and KL no difference is shown" in told
    assert [side(gains, metric=m) for m in (FAD, ALIGN, DENSE, "KL")] == [unclear, "worse", "worse", unclear]
    ends = [np.mean([run[-1]["L_c"] for run in r.extra["curves"][n]]) for n in (name, "contrastive")]
    assert f"L_c ends at {ends[0]:.2f} and with the frozen encoder at {ends[1]:.2f} (chance 2.77)" in told


def test_weaker_weights_cost_less(told, swept):
    r = swept["table5"]
    names = ("normalised", "alpha-.25", "alpha-.5")
    fads, aligns = ([value(r, n, m) for n in names] for m in (FAD, ALIGN))
    assert fads == sorted(fads, reverse=True)
    assert aligns == sorted(aligns)
    near = f"MV Align {share(aligns[0])}, {share(aligns[1])} and {share(aligns[2])}"
    assert f"α = .05, .25 and .5 FAD is {fads[0]:.1f}, {fads[1]:.1f} and {fads[2]:.1f}, {near}" in told
    none = f"{value(r, 'contrastive', FAD):.1f} and {share(value(r, 'contrastive', ALIGN))}"
    assert f"with none {none} (.5 is not told from none)" in told
    gone = between(r, "alpha-.5", "contrastive")
    assert {side(gone, metric=m) for m in (FAD, ALIGN, DENSE)} == {verdict.UNCLEAR}


def test_beat_weights(told, swept):
    r = swept["table5"]
    assert f"FAD {value(r, 'beats', 'FAD (codec)'):.0f}, MV Align {share(value(r, 'beats', ALIGN))}" in told
    assert f"at a chance of {share(chance(r, 'beats'))}" in told
    assert f"Three times as many updates do not mend it (MV Align {share(value(r, 'beats-long', ALIGN))})" in told
    found = r.extra["differences"]["beats"]
    less = next(g for g in found if (g["dataset"], g["metric"]) == (TEST, ALIGN))
    assert f"baseline's by {share(-less['difference'])} [{share(-less['hi'])}, {share(-less['lo'])}]" in told
    runs = r.extra["curves"]["beats"]
    first, last = ({k: np.mean([run[at][k] for run in runs]) for k in ("L_c", "ce")} for at in (0, -1))
    fall, rise = (f"from {first[k]:.2f} to {last[k]:.2f}" for k in ("L_c", "ce"))
    assert f"L_c falls {fall} while the cross-entropy rises {rise}" in told
    over, less = ([value(r, c, m) for m in ("FAD (codec)", ALIGN)] for c in ("normalised", "beta"))
    assert f"(FAD {over[0]:.1f}, MV Align {share(over[1])}) or with β a tenth ({less[0]:.1f}, {share(less[1])})" in told
    lowest = {c: min(r.extra["curves"][c][0], key=lambda x: x["loss"])["step"] for c in ("normalised", "beta")}
    assert set(lowest.values()) == {150}
    fig2 = runner.obtain("fig2", "mini")
    weight = float(fig2.row("O > 0 required", "test: P_av", "mean weight").value or 0)
    assert f"mean weight of {share(weight)} shrinks L_g, so that βL_c weighs {1 / weight:.0f} times as much" in told
    end, mid = (
        fig2.row(f"Farneback, δ = 5{which}", "test: P_v against the picture's events", "late by, ms").value
        for which in ("", ", mid frame")
    )
    assert f"video beat {end:.0f} ms late (put between them it would be {mid:.0f} ms)" in told


def short(x: float, digits: int) -> str:
    """No zero before the point: .2, -.4, 9.1."""
    return f"{x:.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.{digits}f}"


def test_where_the_weights_sit(told):
    record = runner.obtain("placement", "mini")

    def times(system: str):
        return record.row(system, f"test: {placement.BASELINE}", placement.TIMES)

    for system, text in (
        ("eq. 3", "times the mean at the weights of eq. 3"),
        ("on the onset, 60 ms earlier", "times 60 ms before the matched onsets"),
    ):
        r = times(system)
        assert f"{short(r.value, 1)} [{short(r.ci95[0], 1)}, {short(r.ci95[1], 1)}] {text}" in told
    every, foreign = (f"{times(s).value:.1f}" for s in (placement.EVERY, placement.FOREIGN))
    assert f"(before every onset {every}, before those that another clip's motion meets {foreign})" in told
    (ahead,) = (p["first"] for p in record.extra["lookahead"] if p["offset"] == -2)
    assert f"{ahead:.0%} of the first codebook's tokens two before an onset" in told


def test_weights_where_the_video_helps(told, swept):
    r = swept["table5"]
    moved, by_place = between(r, "lead-.25", "alpha-.25"), between(r, "lead", "onset")
    assert f"MV Align changes by {gap(by_place)}; from the video beat" in told
    assert f"with α = .25, by {gap(moved)} (shifted style {gap(moved, SHIFTED)})" in told
    assert {side(by_place), side(moved), side(moved, SHIFTED)} == {"better"}
    less, none = between(r, "lead-.25", "contrastive"), between(r, "lead-.25", "baseline")
    assert f"against the contrast {gap(less)} (shifted style {gap(less, SHIFTED)})" in told
    assert f"against the baseline {gap(none)}, and a FAD of {value(swept['table5'], 'lead-.25', FAD):.1f}" in told
    assert f"{gap(none, metric=FAD, digits=1)} against the baseline's" in told
    assert (side(less), side(none), side(none, metric=FAD)) == (verdict.UNCLEAR, verdict.UNCLEAR, "worse")
    assert "No weights at all are not shown to be worse" in told


def test_the_recipe_is_told_against_its_own_baseline(told, swept):
    gains = swept["table5"].extra["differences"]
    fad, near, dense = (gap(gains["shipped"], metric=m, digits=d) for m, d in ((FAD, 1), (ALIGN, 3), (DENSE, 3)))
    assert f"is worse than its own baseline, too: FAD {fad}, MV Align {near} at 9.6 fps and {dense} at 24" in told
    assert [side(gains["shipped"], metric=m) for m in (FAD, ALIGN, DENSE)] == ["worse", verdict.UNCLEAR, "worse"]
    literal_alpha = [
        c.name for c in table5.CONDITIONS if (a := c.overrides.get("align", {})).get("normalise") == "weight"
        and a["alpha"] == 0.05 and c.name in gains
    ]  # fmt: skip
    assert len(literal_alpha) >= 6
    assert {side(gains[n], metric=m) for n in literal_alpha for m in (FAD, DENSE)} == {"worse"}


def test_what_is_not_the_papers(told, swept):
    r, cfg = swept["table5"], config.load("mini")
    gains = r.extra["differences"]
    low = {n: f"{share(value(r, n, ALIGN))}, chance {share(chance(r, n))}" for n in ("no-bias", "trained", "no-motion")}
    assert f"(`no-bias`) MV Align is at chance ({low['no-bias']}) and FAD {value(r, 'no-bias', FAD):.1f}" in told
    assert f"(`trained`, {low['trained']}) and without (`no-motion`, {low['no-motion']})" in told
    for name in low:
        assert abs(value(r, name, ALIGN) - chance(r, name)) < 0.01, name
    tagged = [share(value(r, n, "Tagger accuracy")) for n in ("trained", "no-motion")]
    assert f"so is the tagger ({tagged[0]} and {tagged[1]})" in told
    slow = gains["baseline-trained-.1"]
    moved = f"({gap(slow)}), and FAD worse ({gap(slow, metric=FAD, digits=1)})"
    low = f"(`baseline-trained-.1`) MV Align is {share(value(r, 'baseline-trained-.1', ALIGN))}"
    assert f"{low}, not told from that with the frozen encoder {moved}" in told
    assert [side(slow), side(slow, metric=FAD)] == [verdict.UNCLEAR, "worse"]
    near, dense = (gap(gains["row-times"], metric=m) for m in (ALIGN, DENSE))
    assert f"{near} at 9.6 fps (no difference shown) and {dense} at 24 fps (better)" in told
    assert [side(gains["row-times"], metric=m) for m in (ALIGN, DENSE)] == [verdict.UNCLEAR, "better"]
    ours, shipped = (
        next(found for name, found in sweep.recorded(m.TARGET, m.CONDITIONS, cfg).items() if name == row)
        for m, row in ((table6, "ours"), (table5, "shipped"))
    )
    assert f"which is Table 6's row with every frame, {gap(assemble.differences(ours, shipped, cfg))}" in told
    rates = cfg.train.lr * cfg.train.encoder_lr_scale, cfg.encoder.motion_lr
    assert rates[0] == pytest.approx(3 * rates[1])
    assert "thrice stage 1a's" in told


def test_encoders(told, swept):
    r = swept["table6"]
    parts, distances = [], []
    for name, head in (("ours", "with every frame MV Align is"), ("clip", "CLIP-style"), ("hiera", "Hiera-style")):
        parts.append(f"{head} {share(value(r, name, ALIGN))} (chance {share(chance(r, name))})")
        distances.append(f"{value(r, name, 'FAD (codec)'):.1f}")
    assert f"{parts[0]}, with 16 of 48 {parts[1]} and {parts[2]}; FAD is {', '.join(distances)}" in told
    gains = r.extra["differences"]
    for name in ("clip", "hiera", "ours-16"):
        assert [side(gains[name], metric=m) for m in (ALIGN, FAD)] == ["worse", "worse"], name
    assert {side(gains[name], metric="KL") for name in ("clip", "hiera")} == {verdict.UNCLEAR}
    same = f"has {share(value(r, 'ours-16', ALIGN))} (chance {share(chance(r, 'ours-16'))})"
    assert f"With 16 frames our own encoder {same} and FAD {value(r, 'ours-16', FAD):.1f}" in told
    few = [f"{share(value(r, n, ALIGN))} (chance {share(chance(r, n))})" for n in ("clip-8", "hiera-8")]
    told_few = f"CLIP-style has {few[0]} and Hiera-style {few[1]}, one training each"
    assert f"With 8 frames, as many a second as the paper's 16 of 10 s, {told_few}" in told


def one_training(record: Record, name: str, trainings: int = 1) -> str:
    """What a row with one training has over the one that it is compared with; intervals are over clips."""
    found = record.extra["differences"][name]
    (fad,) = [g["difference"] for g in found if (g["dataset"], g["metric"]) == (TEST, FAD)]
    changes = [f"FAD {fad:+.1f}", f"MV Align {gap(found)}", f"tagger {gap(found, metric='Tagger accuracy')}"]
    assert {g["seeds"] for g in found} == {trainings}
    return ", ".join(changes)


def longer_music() -> list[str]:
    """Table 5's rows with a longer stage 1b."""
    return [c.name for c in table5.CONDITIONS if c.overrides.get("train", {}).get("pretrain_steps")]


def longer_rows(record: Record) -> list[str]:
    """The sentences about the rows with a longer stage 1b."""
    cfg = config.load("mini")
    found = sweep.recorded(table5.TARGET, table5.CONDITIONS, cfg)
    curves = [next(r.extra["curve"] for r in found[n] if r.extra["seed"] == 1) for n in ("longer-music", "row-times")]
    first, last = (" against ".join(f"{c[i]['ce']:.2f}" for c in curves) for i in (0, -1))
    after = curves[0][0]["step"]
    slow = found["longer-slow"][0].extra["curve"][-1]["ce"]
    told = {n: one_training(record, n) for n in ("longer-slow", "longer-twice", "longer-fourfold")}
    told["longer-music"] = one_training(record, "longer-music", 2)
    (many,) = (r.extra for r in found["longer-fourfold"])
    ce = [c["ce"] for c in many["curve"]]
    return [
        f"cross-entropy on validation clips {first} after {after} updates of stage 2, {last} at its end",
        f"the music that it makes for videos changes by {told['longer-music']}",
        f"at a third of its rate (`longer-slow`) it ends at {slow:.2f} ({told['longer-slow']})",
        f"with twice the videos (`longer-twice`): {told['longer-twice']}",
        f"{ {4: 'four'}[many['set']['clips'] // cfg.corpus.train] } times the videos",
        f"changes by {told['longer-fourfold']}",
        f"FAD {value(record, 'longer-fourfold', FAD):.1f}, the lowest of all rows",
        f"In its stage 2 the cross-entropy rises from {ce[0]:.2f} to {max(ce):.2f} and falls to {ce[-1]:.2f}",
        f"on that decoder the contrast changes {one_training(record, 'longer-contrastive')}",
    ]


def test_a_longer_stage_1b(told, swept):
    r = swept["table5"]
    for sentence in longer_rows(r):
        assert sentence in told
    assert {side(r.extra["differences"][n], metric=m) for n in longer_music() for m in (FAD, ALIGN)} == {verdict.FEW}
    assert "One training each, two of `longer-music`, so no verdict" in told
    assert value(r, "longer-fourfold", FAD) == min(value(r, n, FAD) for n, seeds in r.extra["seeds"].items() if seeds)


def longer_motion(record: Record) -> list[str]:
    """The sentences about the row with a longer stage 1a."""
    found = sweep.recorded(table5.TARGET, table5.CONDITIONS, config.load("mini"))
    ends = [np.mean([r.extra["curve"][-1]["ce"] for r in found[n] if r.extra["seed"] in (1, 2, 3)])
            for n in ("longer-motion", "row-times")]  # fmt: skip
    return [
        f"changes {changed(record.extra['differences']['longer-motion'])}",
        f"cross-entropy on validation clips ends at {ends[0]:.3f} and {ends[1]:.3f}",
        f"{ratio(record, 'longer-motion')} of the codec's tagger accuracy ({ratio(record, 'row-times')} without)",
    ]


def ratio(record: Record, condition: str) -> str:
    """The tagger's accuracy as a share of the codec's."""
    top = records.read(records.committed("table3", "mini", 0)).row("Real music, through the codec", TEST, TAGGER).value
    return f"{value(record, condition, TAGGER) / top:.0%}"


def test_a_longer_stage_1a(told, swept):
    for sentence in longer_motion(swept["table5"]):
        assert sentence in told


def test_data_size(told, swept):
    names = [f"share-{n}" for n in (10, 25, 50, 100)]
    fad, align = ([value(swept[f], c, m) for c in names] for f, m in (("fig6", FAD), ("fig7", ALIGN)))
    fads, aligns = [f"{x:.1f}" for x in fad], [share(x) for x in align]
    assert f"FAD is {', '.join(fads[:3])} and {fads[3]}, MV Align {', '.join(aligns[:3])} and {aligns[3]}." in told
    by_fad, by_align = (swept[f].extra["differences"] for f in ("fig6", "fig7"))
    ten, quarter, half = ((gap(by_fad[c], metric=FAD, digits=1), gap(by_align[c])) for c in names[:3])
    assert f"worse than all (FAD {ten[0]} and {quarter[0]}; MV Align {ten[1]} and {quarter[1]})" in told
    assert f"a half is not shown to be (FAD {half[0]}, MV Align {half[1]})" in told
    said = [(side(by_fad[c], metric=FAD), side(by_align[c])) for c in names[:3]]
    assert said == [("worse", "worse")] * 2 + [(verdict.UNCLEAR, verdict.UNCLEAR)]
    runs = swept["fig6"].extra["curves"]["share-10"]
    first, last = (np.mean([run[at]["ce"] for run in runs]) for at in (0, -1))
    assert f"{first:.2f} after {runs[0][0]['step']} updates, {last:.2f} after 1,500" in told


def test_other_corpora(told, swept):
    record = swept["corpora"]
    gains = record.extra["differences"]
    assert {len(v) for v in record.extra["seeds"].values()} <= {3, 4, 5}
    changes = [gap(gains[f"{n}-{corpora.WEIGHTED}"]) for n in corpora.ORDER]
    assert f"What weights change in MV Align is {changes[0]} where the picture shows every beat" in told
    assert f"{changes[1]} on the own corpus, {changes[2]} where it shows six beats of ten" in told
    assert {side(gains[f"{n}-{corpora.WEIGHTED}"]) for n in corpora.ORDER} == {"worse"}
    asked = [g for g in record.extra["apart"] if g["between"] == "clean less loose"]
    assert f"not answered yes: {gap(asked)} at 9.6 fps, {gap(asked, metric=DENSE)} at 24 fps" in told
    assert (side(asked), side(asked, metric=DENSE)) == (verdict.UNCLEAR, "worse")
    taken = {g["of"]: g for g in record.extra["taken"] if (g["metric"], g["dataset"]) == (ALIGN, TEST)}
    clean, own, loose = (f"{taken[n]['share']:.0%}" for n in corpora.ORDER)
    less = [f"{100 * taken['clean less loose'][k]:+.0f}" for k in ("share", "lo", "hi")]
    assert f"weights take {clean}, {own} and {loose} (clean less loose {less[0]} points [{less[1]}, {less[2]}];" in told
    bare = [share(value(record, f"{n}-{corpora.BARE}", ALIGN)) for n in corpora.ORDER]
    assert f"Without weights MV Align is {bare[0]}, {bare[1]} and {bare[2]} on the same test clips" in told


def test_following(told):
    found = follow.recorded(config.load("mini"))
    said = {a["question"]: a for a in follow.over_trainings(found)}

    def at(question: str, digits: int) -> tuple[str, str]:
        a = said[question]
        ends = [f"{a[k]:.{digits}f}" for k in ("value", "lo", "hi")]
        ends = [x.replace("0.", ".", 1) if x.lstrip("-").startswith("0.") else x for x in ends]
        return f"{ends[0]} [{ends[1]}, {ends[2]}]", a["answer"]

    words = {3: "three", 7: "Seven", 9: "nine"}
    yes = sum(a["answer"] == "yes" for a in said.values())
    assert (
        f"{words[len(found)]} trainings of the committed recipe). {words[yes]} of {words[len(said)]} questions" in told
    )
    for question, digits, text, answer in (
        (
            "its own video rather than another of its genre?",
            1,
            "than under another of its genre, by {0} nats {1}",
            "yes",
        ),
        ("X_v at the right time (two to four rows off)?", 1, "than under its own some rows off, by {0} {1}", "yes"),
        ("the motion (MV Align lost without it)?", 3, "MV Align falls by {0} {1}", "yes"),
        ("half the speed, by its onsets?", 2, "the onsets follow {0} {1} of the slow-down", "yes"),
        ("half the speed, by its tempo?", 2, "the tempo at half the speed ({0} {1} of the slow-down;", "not seen"),
        ("the genre of the picture after a cut?", 1, "the genre after a cut ({0} nats {1})", "not seen"),
    ):
        numbers, got = at(question, digits)
        assert got == answer, question
        assert text.format(*numbers.split(" ", 1)) in told, (question, numbers)
    t = follow_tests
    ceiling = found[0].row(f"{t.REAL}, {t.at_speed(0.5)}", f"test: {t.SLOW}", f"{t.FOLLOWED}, tempo").value
    assert f"real music slowed as much gives {share(round(ceiling, 2)).rstrip('0')}" in told
    (row,) = [r.row(f"{t.ITSELF}, {t.at_speed(0.5)}", f"test: {t.SLOW}", f"{t.FOLLOWED}, tempo") for r in found[:1]]
    heard = [share(round(x, 2)).rstrip("0") for x in (row.value, *row.ci95)]
    assert f"the committed model's own music, slowed as much, {heard[0]} [{heard[1]}, {heard[2]}]" in told


def cleaned(record: Record) -> list[str]:
    """The sentences about data cleaning."""
    sets, gains = record.extra["sets"], record.extra["differences"]
    random, number = between(record, "similarity", "dirty-same"), gains["dirty-same"]
    fad, align = ([value(record, c, m) for c in ("similarity", "dirty-same", "dirty")] for m in (FAD, ALIGN))
    same = sets["Unfiltered, as few clips"]["clips"]
    assert same == sets["Frame similarity < 0.7"]["clips"]
    return [
        f"Frame similarity leaves {same} of {sets['Unfiltered']['clips']:,} dirty clips",
        f"With them FAD is {fad[0]:.1f}, with as many drawn at random (`dirty-same`) {fad[1]:.1f}, with all "
        f"{fad[2]:.1f}; MV Align {share(align[0])}, {share(align[1])} and {share(align[2])}",
        f"Against all, the filter changes {changed(gains['similarity'])}",
        f"Against as many drawn at random, it changes {changed(random)}",
        f"The smaller number alone (`dirty-same` against `dirty`) changes {changed(number)}",
    ]


def test_cleaning(told, swept):
    r = swept["cleaning"]
    for sentence in cleaned(r):
        assert sentence in told
    assert {min(run, key=lambda x: x["loss"])["step"] for runs in r.extra["curves"].values() for run in runs} == {150}
    assert "all rows are past the lowest of their validation loss after 150 updates" in told


def test_the_control_tells_the_machine_from_the_seed():
    """The same run on two machines (`results/mini/SWEEPS.md`)."""
    name = "table5-contrastive"
    there = records.read(paths.ROOT / "results" / "mini" / "control" / f"{name}-seed3-cpu.json")
    here = records.read(records.committed(name, "mini", 3))
    assert there.key == here.key
    assert there.extra["stage1"] == here.extra["stage1"]
    assert [("NVIDIA" in r.provenance["hardware"]) for r in (there, here)] == [False, True]
    curves = zip(there.extra["curve"], here.extra["curve"], strict=True)
    assert max(abs(a[k] - b[k]) for a, b in curves for k in ("loss", "L_g", "L_c", "ce")) <= 2e-6
    found = records.compare(there, here)
    assert (found.equal + found.inside, found.outside) == (14, 0)
    told = " ".join(paths.target("mini", "SWEEPS.md").read_text(encoding="utf-8").split())
    align, fad = ([r.row(r.rows[0].system, TEST, m).value for r in (there, here)] for m in (ALIGN, FAD))
    pair = " and ".join(f"{x:.4f}".removeprefix("0") for x in align)
    assert f"MV Align {pair}, FAD {fad[0]:.1f} and {fad[1]:.1f}, and all 14 numbers within" in told
