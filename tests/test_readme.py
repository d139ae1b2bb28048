"""The numbers that the README tells of the experiments are those of the records."""

import re

import numpy as np
import pytest

from vmas import config, paths
from vmas.experiments import assemble, corpora, follow, follow_tests, placement, registry, runner, sweep, table5, table6
from vmas.records import Record
from vmas.report import sweeps

TEST = "corpus, test (stands for DISCO-MV)"
SHIFTED = "corpus, shifted style (stands for MusicCaps)"
ALIGN = "MV Align (2025, 9.6 fps)"


@pytest.fixture(scope="module")
def told() -> str:
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("**What the ablation says so far.**")
    return re.sub(r"\s+", " ", text[start : text.index("stands in `results/mini/PROTOCOL.md`.", start)])


@pytest.fixture(scope="module")
def swept() -> dict[str, Record]:
    return {
        name: runner.sweep_record(registry.get(name), "mini")
        for name in ("table5", "table6", "cleaning", "fig6", "fig7")
    }


def share(x: float) -> str:
    return f"{x:.3f}".removeprefix("0")


def value(record: Record, condition: str, metric: str) -> float:
    labels = dict(
        zip(record.extra["curves"], dict.fromkeys(r.system for r in record.rows if r.value is not None), strict=True)
    )
    return float(record.row(labels[condition], TEST, metric).value or 0)


def difference(record: Record, condition: str, metric: str) -> str:
    found = record.extra["differences"][condition]
    g = next(g for g in found if (g["dataset"], g["metric"]) == (TEST, metric))
    return f"(difference {g['difference']:+.1f} [{g['lo']:+.1f}, {g['hi']:+.1f}] over"


THREE = (*table5.PAPER, "shipped", "dirty", "similarity", "share-10", "share-100")


def test_numbers_of_trainings(told, swept):
    n = {c: len(seeds) for r in swept.values() for c, seeds in r.extra["seeds"].items()}
    assert (
        "three of each of Table 5's three rows, of its `shipped`, of both cleaning rows and of 10% and all of the data,"
        " one or two of all others" in told
    )
    assert {n[c] for c in THREE} == {3}
    assert {v for c, v in n.items() if c not in THREE} == {1, 2}


def test_contrast(told, swept):
    r = swept["table5"]
    fad, align, kl = ([value(r, c, m) for c in ("contrastive", "baseline")] for m in ("FAD (codec)", ALIGN, "KL"))
    assert f"{fad[0]:.1f} against the baseline's {fad[1]:.1f} {difference(r, 'contrastive', 'FAD (codec)')}" in told
    assert f"{share(align[0])} against {share(align[1])}, and KL {kl[0]:.2f} against {kl[1]:.2f}" in told


def test_beat_weights(told, swept):
    r = swept["table5"]
    assert f"FAD {value(r, 'beats', 'FAD (codec)'):.0f}, MV Align {share(value(r, 'beats', ALIGN))}" in told
    chance = next(x for x in r.rows if (x.system, x.dataset, x.metric) == ("+ beat weighting (literal)", TEST, ALIGN))
    assert f"at a chance of {share(chance.chance or 0)}" in told
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
    cfg, name = config.load("mini"), "lead-.25"
    found = sweep.recorded(table5.TARGET, table5.CONDITIONS, cfg)
    gaps = {}
    for other in ("alpha-.25", "contrastive", "baseline"):
        for g in assemble.differences(found[name], found[other], cfg):
            if g["metric"] == ALIGN:
                ends = [f"{g[k]:+.3f}".replace("0.", ".", 1) for k in ("difference", "lo", "hi")]
                gaps[other, g["dataset"]] = f"{ends[0]} [{ends[1]}, {ends[2]}]"
    a, b = (gaps["alpha-.25", d] for d in (TEST, SHIFTED))
    assert f", by {a} over clips (shifted style {b})" in told
    a, b = (gaps["contrastive", d] for d in (TEST, SHIFTED))
    assert f"Against the contrast of the same seed that is {a} (shifted style {b})" in told
    a, b = (gaps["baseline", d] for d in (TEST, SHIFTED))
    assert f"against the baseline {a} (shifted style {b})" in told
    (one,), seed = found[name], found[name][0].extra["seed"]
    (base,) = (r for r in found["baseline"] if r.extra["seed"] == seed)
    fad = [r.row(r.rows[0].system, TEST, "FAD (codec)").value for r in (one, base)]
    assert f"its FAD is {fad[0]:.1f}, the baseline's of that seed {fad[1]:.1f}" in told
    assert f"raises MV Align to {share(value(swept['table5'], name, ALIGN))}" in told
    assert "exploratory, one training each, so it cannot tell" in told


def test_encoders(told, swept):
    r = swept["table6"]
    label = {c.name: c.label for c in table6.CONDITIONS}
    parts, distances = [], []
    for name, head in (("ours", "with every frame MV Align is"), ("clip", "CLIP-style"), ("hiera", "Hiera-style")):
        row = r.row(label[name], TEST, ALIGN)
        parts.append(f"{head} {share(row.value or 0)} (chance {share(row.chance or 0)})")
        distances.append(f"{value(r, name, 'FAD (codec)'):.1f}")
    assert f"{parts[0]}, with 16 of 48 {parts[1]} and {parts[2]}; FAD is {', '.join(distances)}" in told


def test_data_size(told, swept):
    fad, align = (
        [value(swept[f], c, m) for c in ("share-10", "share-100")]
        for f, m in (("fig6", "FAD (codec)"), ("fig7", ALIGN))
    )
    assert f"FAD is {fad[0]:.1f} and MV Align {share(align[0])}, with all {fad[1]:.1f} and {share(align[1])}" in told
    gaps, said = {}, {}
    for name, metric in (("fig6", "FAD (codec)"), ("fig7", ALIGN)):
        found = sweeps.gains(swept[name])
        for g in found[(found.condition == "share-10") & (found.metric == metric)].itertuples():
            digits = 1 if metric.startswith("FAD") else 3
            ends = [f"{x:+.{digits}f}".replace("0.", ".", 1) for x in (g.difference, g.lo, g.hi)]
            gaps[metric, g.dataset], said[metric, g.dataset] = f"{ends[0]} [{ends[1]}, {ends[2]}]", g.verdict
    assert f"(differences {gaps['FAD (codec)', TEST]} and {gaps[ALIGN, TEST]} over 3 seeds: worse;" in told
    assert {said["FAD (codec)", TEST], said[ALIGN, TEST], said[ALIGN, SHIFTED]} == {"worse"}
    assert said["FAD (codec)", SHIFTED] == "no difference shown"
    runs = swept["fig6"].extra["curves"]["share-10"]
    first, last = (np.mean([run[at]["ce"] for run in runs]) for at in (0, -1))
    assert f"{first:.2f} after {runs[0][0]['step']} updates, {last:.2f} after 1,500" in told


def test_other_corpora(told):
    record = runner.sweep_record(registry.get("corpora"), "mini")
    assert {len(v) for c, v in record.extra["seeds"].items() if c.startswith("clean")} == {1}
    assert record.extra["missing"] == ["loose-contrastive", "loose-normalised"]
    labels = {c.name: c.label for c in corpora.CONDITIONS}
    with_, without = (share(record.row(labels[f"clean-{n}"], TEST, ALIGN).value) for n in ("normalised", "contrastive"))
    assert f"MV Align is {with_} with them and {without} without" in told

    def gap(found: list, sign: int = 1) -> str:
        (g,) = [g for g in found if (g["dataset"], g["metric"]) == (TEST, ALIGN)]
        ends = sorted(share(sign * g[k]) for k in ("lo", "hi"))
        return f"{share(sign * g['difference'])} [{ends[0]}, {ends[1]}]"

    gains = record.extra["differences"]
    assert f"a loss of {gap(gains['clean-normalised'], -1)} over clips" in told

    def less(metric: str, sign: int = 1) -> str:
        (g,) = [
            g
            for g in record.extra["apart"]
            if (g["between"], g["dataset"], g["metric"]) == ("clean less own", TEST, metric)
        ]
        ends = sorted(share(sign * g[k]) for k in ("lo", "hi"))
        return f"{share(sign * g['difference'])} [{ends[0]}, {ends[1]}]"

    near, dense = less(ALIGN), less(ALIGN.replace("9.6", "24"), -1)
    assert f"smaller by {near} at 9.6 fps and larger by {dense} at 24 fps" in told
    assert f"raise MV Align by {gap(gains['clean-contrastive'])} on the same test clips" in told
    found = sweep.recorded(corpora.TARGET, corpora.CONDITIONS, config.load("mini"))
    (clean,) = found["clean-contrastive"]
    (own,) = (r for r in found["own-contrastive"] if r.extra["seed"] == clean.extra["seed"])
    onsets, fad = (
        [r.row(r.rows[0].system, TEST, m).value for r in (clean, own)] for m in ("Onsets per clip", "FAD (codec)")
    )
    assert f"with {onsets[0]:.1f} onsets a clip against {onsets[1]:.1f}" in told
    assert f"FAD {fad[0]:.1f} against {fad[1]:.1f}" in told


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
        f"{words[len(found)]} trainings of the committed recipe.) {words[yes]} of {words[len(said)]} questions" in told
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


def test_cleaning(told, swept):
    r = swept["cleaning"]
    sets = r.extra["sets"]
    assert f"leaves {sets['Frame similarity < 0.7']['clips']} of {sets['Unfiltered']['clips']:,} dirty clips" in told
    fad, align = ([value(r, c, m) for c in ("similarity", "dirty")] for m in ("FAD (codec)", ALIGN))
    seeds = len(r.extra["seeds"]["dirty"])
    gap = difference(r, "similarity", "FAD (codec)")
    assert f"FAD is {fad[0]:.1f}, with all {fad[1]:.1f} {gap} {seeds} seeds;" in told
    found = sweeps.gains(r)
    verdicts = set(found[(found.dataset == TEST) & (found.condition == "similarity")].verdict)
    assert (verdicts == {"no difference shown"}) == ("No difference is shown." in told)
    assert f"MV Align {share(align[0])} against {share(align[1])}" in told
    assert {min(run, key=lambda x: x["loss"])["step"] for runs in r.extra["curves"].values() for run in runs} == {150}
