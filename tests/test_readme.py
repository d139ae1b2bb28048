"""The short version of the findings in the README, cell by cell from the records."""

import pytest
from test_findings import ALIGN, FAD, SHIFTED, TEST, between, gap, share, side, value

from vmas import config, paths, records
from vmas.experiments import corpora, follow, ideal, table5
from vmas.metrics import verdict
from vmas.records import Record

SHARES = ("share-10", "share-50")
CONTRAST, WEIGHTS, FRAMES, VIDEOS, CLEANING = (
    "Does the contrast help (eq. 2)?",
    "Do beat weights help (eq. 3, 4)?",
    "Do dense frames help (table 6)?",
    "Do more videos help (figures 6, 7)?",
    "Does cleaning help (section 6.2)?",
)


@pytest.fixture(scope="module")
def told() -> str:
    return (paths.ROOT / "README.md").read_text(encoding="utf-8")


def compared(swept: dict[str, Record]) -> dict[str, list[tuple[str, list]]]:
    """The questions of the README's table, each with what is compared and the differences."""
    gains, clean = swept["table5"].extra["differences"], swept["cleaning"]
    strict, own, loose = (swept["corpora"].extra["differences"][f"{n}-{corpora.WEIGHTED}"] for n in corpora.ORDER)
    fewer = swept["table6"].extra["differences"]
    tenth, half = ([*swept["fig6"].extra["differences"][n], *swept["fig7"].extra["differences"][n]] for n in SHARES)
    return {
        CONTRAST: [
            ("contrast, against the baseline", gains["contrastive"]),
            ("the same where stage 2 trains the encoder, too", gains["trained-.1"]),
        ],
        WEIGHTS: [
            ("read literally, against the baseline", gains["beats"]),
            ("put where the video helps the music, α = .25, against the baseline", gains["lead-.25"]),
            ("over Σw, against none, where the picture shows every beat", strict),
            ("... nine of ten", own),
            ("... six of ten", loose),
        ],
        FRAMES: [
            ("CLIP-style at 16 of 48 frames, against every frame", fewer["clip"]),
            ("Hiera-style at 16", fewer["hiera"]),
            ("our own encoder at 16", fewer["ours-16"]),
        ],
        VIDEOS: [("a tenth of them, against all", tenth), ("a half", half)],
        CLEANING: [
            ("what the filter leaves, against all dirty videos", between(clean, "similarity", "dirty")),
            (
                "... against as many dirty videos, drawn at random",
                between(swept["cleaning"], "similarity", "dirty-same"),
            ),
        ],
    }


def summary(swept: dict[str, Record]) -> list[str]:
    """The rows of the README's table: question, comparison, and what it changes in FAD and MV Align."""
    return [
        f"| {'' if i else question} | {what} | {gap(g, metric=FAD, digits=1)}, {side(g, metric=FAD)} "
        f"| {gap(g)}, {side(g)} |"
        for question, rows in compared(swept).items()
        for i, (what, g) in enumerate(rows)
    ]


def quality(record: Record) -> str:
    """How good the music is, in a sentence."""
    perfect = records.read(records.committed(ideal.TARGET, "mini", 0))
    best = min((n for n, seeds in record.extra["seeds"].items() if seeds), key=lambda n: value(record, n, FAD))
    trainings = {1: "one training", 2: "two trainings"}.get(n := len(record.extra["seeds"][best]), f"{n} trainings")
    heard = value(record, best, ideal.TAGGER) / perfect.row(ideal.CODED, ideal.SPLIT, ideal.TAGGER).value
    least = perfect.row(ideal.READ, ideal.SPLIT, FAD).value
    return (
        f"the lowest FAD of all rows is {value(record, best, FAD):.1f} (`{best}`, {trainings}), where a perfect "
        f"generator that sees X_v has {least:.1f}, and the tagger's accuracy is {heard:.0%} of what it is through the "
        "codec"
    )


def test_the_table_is_that_of_the_records(told, swept):
    head = "| question | compared | FAD | MV Align, 9.6 fps |"
    assert told[told.index(head) :].split("\n\n", 1)[0].splitlines()[2:] == summary(swept)
    assert ALIGN == "MV Align (2025, 9.6 fps)"


def test_what_the_table_comes_to(told, swept):
    """The words under the table, by the verdicts in it."""
    said = {q: [(side(g, metric=FAD), side(g)) for _, g in rows] for q, rows in compared(swept).items()}
    told = " ".join(told.split())
    assert "So no reading of the two alignment terms that was tried is shown to help over the baseline" in told
    terms = [c.name for c in table5.CONDITIONS if "aseline" not in c.label]
    every = swept["table5"].extra
    against = [every["differences"][n] for n in terms if every["against"][n] == "baseline"]
    assert len(against) > 12
    assert "better" not in {side(g, metric=m) for g in against for m in (FAD, ALIGN)}
    assert {pair for q in (CONTRAST, WEIGHTS) for pair in said[q]} <= {
        (a, b) for a in ("worse", verdict.UNCLEAR) for b in ("worse", verdict.UNCLEAR)
    }
    assert "while dense frames do, and more videos up to a half of them" in told
    assert set(said[FRAMES]) == {("worse", "worse")}, "fewer are worse"
    assert said[VIDEOS] == [("worse", "worse"), (verdict.UNCLEAR, verdict.UNCLEAR)]


def test_the_committed_model_is_that_of_table_3(told):
    record, told = records.read(records.committed("table3", "mini", 0)), " ".join(told.split())

    def at(metric: str, system: str = "VMAs (ours)", dataset: str = TEST):
        return record.row(system, dataset, metric)

    own, coded, other = at(ALIGN), at(ALIGN, ideal.CODED), at(ALIGN, dataset=SHIFTED)
    assert f"MV Align is {share(own.value)} [{share(own.ci95[0])}, {share(own.ci95[1])}] at 9.6 fps" in told
    assert f"shuffled videos scores {share(own.chance)} and real music through the codec {share(coded.value)}" in told
    assert f"in the shifted style {share(other.value)} against {share(other.chance)}" in told
    assert f"KL of {at('KL').value:.2f} lies below chance ({at('KL').chance:.2f})" in told
    heard, top = at(ideal.TAGGER), at(ideal.TAGGER, ideal.CODED)
    assert f"{heard.value:.0%} of the clips (chance {heard.chance:.0%}, through the codec {top.value:.0%})" in told
    assert f"FAD {at(FAD).value:.1f}, where the codec's music of other videos has 0" in told


def test_the_sentences_are_those_of_the_records(told, swept):
    told = " ".join(told.split())
    assert quality(swept["table5"]) in told
    rows = [g for _, g in compared(swept)[CLEANING]]
    by_kl = [f"{gap(g, metric='KL', digits=2)}, {side(g, metric='KL')}" for g in rows]
    assert f"Cleaning changes KL by {by_kl[0]}, on half as many videos; against as many, by {by_kl[1]}." in told
    said = [a["answer"] for a in follow.over_trainings(follow.recorded(config.load("mini")))]
    assert f"{said.count('yes')} of {len(said)} questions about changed videos are answered yes" in told
