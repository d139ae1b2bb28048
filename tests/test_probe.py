"""What a linear probe reads off X_v: its scores, the comparison of encoders, and the committed record."""

import dataclasses
import shutil

import numpy as np
import pytest

from vmas import codec, config, corpus, paths, records
from vmas.corpus import GENRES
from vmas.errors import DataError
from vmas.experiments import probe
from vmas.experiments.probe import ACCURACY, LONGER, LOSS, PICTURE, STAGE_1A, UNTRAINED
from vmas.metrics import verdict
from vmas.records import Record
from vmas.report import palette, table

SMOKE = config.load("smoke")
TINY = dataclasses.replace(
    SMOKE,
    corpus=dataclasses.replace(SMOKE.corpus, train=80, val=8, test=8, shifted=0),
    encoder=dataclasses.replace(SMOKE.encoder, motion_steps=2, motion_batch=4),
)


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    genres = np.arange(400) % 10
    told = np.eye(10)[genres] + rng.normal(0, 0.2, (400, 10))
    found = probe.judged(probe.fitted(told[:300], genres[:300]).predict_proba(told[300:]), genres[300:])
    assert found[ACCURACY].mean() > 0.9
    assert found[LOSS].mean() < 0.5
    noise = rng.normal(size=(400, 10))
    found = probe.judged(probe.fitted(noise[:300], genres[:300]).predict_proba(noise[300:]), genres[300:])
    assert found[ACCURACY].mean() < 0.25
    assert found[LOSS].mean() < 2.6, "what tells nothing is not made much of (ln 10 = 2.3)"


def test_scores_of_a_clip():
    found = probe.judged(np.array([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [1.0, 0.0, 0.0]]), np.array([0, 2, 1]))
    assert found[ACCURACY].tolist() == [1, 0, 0]
    assert found[LOSS] == pytest.approx([np.log(2), np.log(10), 12 * np.log(10)])


def test_rows_have_the_chance_of_the_answers_dealt_out():
    scores = {ACCURACY: np.array([[1.0, 1, 0, 0], [1, 0, 0, 0]]), LOSS: np.ones((2, 4))}
    said, true = np.array([[0, 0, 0, 0], [0, 0, 1, 1]]), np.array([0, 0, 1, 2])
    right, loss = probe.rows(STAGE_1A, "d", scores, said, true, SMOKE)
    assert (right.metric, right.value, right.n, right.seeds) == (ACCURACY, 0.375, 4, 2)
    assert right.chance == pytest.approx((4 * 2 + 2 * 2 + 2 * 1) / 32)
    assert right.ci95[0] <= 0.375 <= right.ci95[1]
    assert (loss.value, loss.ci95, loss.chance, loss.direction) == (1.0, (1.0, 1.0), None, "down")
    assert table.unit(LOSS) == "nats"


def test_encoders_are_compared_clip_by_clip_and_seed_by_seed():
    rng = np.random.default_rng(0)
    base = {ACCURACY: rng.integers(0, 2, (3, 60)).astype(float), LOSS: rng.uniform(0, 2, (3, 60))}
    a = {s: {ACCURACY: base[ACCURACY], LOSS: base[LOSS] - 0.1} for s in probe.SPLITS}
    found = probe.differences(a, dict.fromkeys(probe.SPLITS, base), SMOKE)
    assert [(d["dataset"], d["metric"]) for d in found] == [
        (d, m) for d in probe.SPLITS.values() for m in (ACCURACY, LOSS)
    ]
    assert [d["verdict"] for d in found] == [verdict.UNCLEAR, verdict.BETTER] * 2
    assert (
        found[1]["difference"] == pytest.approx(-0.1) == pytest.approx(found[1]["lo"]) == pytest.approx(found[1]["hi"])
    )


def test_there_is_no_such_corpus_at_paper_scale():
    with pytest.raises(DataError, match="procedural corpus"):
        probe.compute(config.load("paper"))


@pytest.mark.slow
def test_every_encoder_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "SEEDS", (1, 2))
    root = paths.checkpoints(TINY.name)

    def parts(profile, seed, progress, say, splits):
        corpus.make(paths.corpus(profile.name), profile, splits=splits, workers=1, progress=False)
        codec.save_codec(root / "codec", codec.build_codec(profile.codec))
        return root

    monkeypatch.setattr(probe.pipeline, "parts", parts)
    record = probe.compute(TINY, device="cpu", progress=False)
    assert [r.system for r in record.rows if r.metric == ACCURACY][::2] == list(probe.SYSTEMS)
    assert {r.n for r in record.rows} == {8}
    assert {r.seeds for r in record.rows if r.system == LONGER} == {2}
    losses = {r.system: r.value for r in record.rows if r.metric == LOSS and r.dataset == probe.SPLITS["test"]}
    assert losses[STAGE_1A] != losses[UNTRAINED] != losses[LONGER] != losses[STAGE_1A]
    shutil.rmtree(tmp_path)


# ---------------------------------------------------------------- the committed record


@pytest.fixture(scope="module")
def committed() -> Record:
    return records.read(records.committed(probe.TARGET, "mini", 0))


def told_of(record: Record) -> list[str]:
    """What the findings say, from the record."""
    test, val = probe.SPLITS["test"], probe.SPLITS["val"]

    def share(system: str, dataset: str = test) -> str:
        return f"{record.row(system, dataset, ACCURACY).value:.0%}"

    def nats(system: str) -> str:
        return f"{record.row(system, test, LOSS).value:.2f}".lstrip("0")

    def points(dataset: str) -> str:
        (d,) = [d for d in record.extra["differences"] if (d["dataset"], d["metric"]) == (dataset, ACCURACY)]
        ends = [f"{100 * d[k]:+.1f}" for k in ("difference", "lo", "hi")]
        return f"{ends[0]} points [{ends[1]}, {ends[2]}], {d['verdict']}"

    return [
        f"names the genre of {share(LONGER)} of the test clips, after the recipe's {share(STAGE_1A)} ({points(test)}), "
        f"and of {share(LONGER, val)} of the validation clips, which were asked about, after {share(STAGE_1A, val)} "
        f"({points(val)}).",
        f"Log loss on test clips is {nats(LONGER)} and {nats(STAGE_1A)} nats. An untrained encoder's X_v names "
        f"{share(UNTRAINED)} of the test clips' genres, the picture {share(PICTURE)}",
    ]


def test_the_record_holds_and_nothing_beats_the_picture(committed):
    assert committed.key == probe.key(config.load("mini")), "vmas reproduce probe --save-record"
    for dataset in probe.SPLITS.values():
        losses = [committed.row(s, dataset, LOSS).value for s in (PICTURE, STAGE_1A, UNTRAINED)]
        assert losses == sorted(losses)
        assert losses[-1] < np.log(len(GENRES))


def test_every_system_has_a_colour_of_its_own(committed):
    assert len({palette.colour(s) for s in probe.SYSTEMS}) == len(probe.SYSTEMS)
    labels = [t.get_text() for t in table.figure(committed).axes[0].get_yticklabels()]
    assert labels == list(probe.SYSTEMS)


def test_the_findings_tell_it(committed):
    told = " ".join(paths.target("mini", "FINDINGS.md").read_text(encoding="utf-8").split())
    for sentence in told_of(committed):
        assert sentence in told
