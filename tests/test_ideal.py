"""Perfect generators: what the picture tells of the genre, and another piece at the same beats."""

import dataclasses

import numpy as np
import pytest

from vmas import codec, config, paths, records
from vmas.corpus import GENRES, posterior, sample_spec
from vmas.corpus.genres import TABLE
from vmas.corpus.spec import music_again
from vmas.errors import DataError
from vmas.experiments import genres, ideal, table3, table5
from vmas.records import Record, Row
from vmas.report import palette, table

MINI = config.load("mini")
CFG = MINI.corpus
PURE = dataclasses.replace(CFG, genre_mix=0.0)
SPECS = [sample_spec("train", i, CFG, MINI.clip.seconds) for i in range(600)]
TRUE = np.array([GENRES.index(s.genre) for s in SPECS])


@pytest.fixture(scope="module")
def told() -> np.ndarray:
    return np.array([posterior.genre_posterior(s, CFG) for s in SPECS])


# ---------------------------------------------------------------- P(genre | picture)


def test_the_posterior_is_calibrated(told):
    """For a true posterior p, the mean of p(true genre) is that of Σp², and the likeliest is right as often as told."""
    assert told.sum(1) == pytest.approx(np.ones(len(told)))
    right = told[np.arange(len(told)), TRUE]
    assert right.mean() == pytest.approx((told**2).sum(1).mean(), abs=0.02)
    assert (told.argmax(1) == TRUE).mean() == pytest.approx(told.max(1).mean(), abs=0.02)
    for low, high in ((0.02, 0.2), (0.2, 0.8), (0.8, 0.98)):  # and so it is for every genre by itself
        at = (told > low) & (told < high)
        hits = at & (np.arange(10) == TRUE[:, None])
        assert at.sum() > 60
        assert hits.sum() / at.sum() == pytest.approx(told[at].mean(), abs=0.1)


def test_nobody_beats_the_posterior(told):
    held_out = SPECS[300:]
    said = genres.forest(SPECS[:300], held_out, genres.picture_attributes)
    forest = (said == np.array([s.genre for s in held_out])).mean()
    assert (told[300:].argmax(1) == TRUE[300:]).mean() >= forest


def test_without_overlap_texture_tells_all():
    spec = sample_spec("test", 3, PURE, MINI.clip.seconds)
    assert posterior.genre_posterior(spec, PURE)[GENRES.index(spec.genre)] == pytest.approx(1)


def test_each_sight_counts_by_itself():
    """With the texture of one genre, the tempo of another and colours of a third, all three have a share."""
    spec = SPECS[0]
    rock, pop = TABLE["rock"], TABLE["pop"]
    mixed = dataclasses.replace(
        spec, texture=rock.texture, figure=rock.figure, tempo_bpm=float(np.mean(pop.tempo)), palette=SPECS[1].palette
    )
    parts = [
        (1 - CFG.genre_mix) * seen(mixed, TABLE[g])
        + CFG.genre_mix * np.mean([seen(mixed, TABLE[n]) for n in posterior.NEIGHBOURS[g]])
        for g in GENRES
        for seen in (posterior._tempo, posterior._texture, posterior._palette)
    ]
    expected = np.reshape(parts, (10, 3)).prod(1)
    assert posterior.genre_posterior(mixed, CFG) == pytest.approx(expected / expected.sum())


def test_a_cut_off_draw_keeps_its_probability():
    ends = (0.1, 1.0)
    inside = np.arange(0.1 + posterior.STEP, 1.0, posterior.STEP)
    total = sum(np.exp(posterior._cut(x, 0.9, 0.12, ends)) for x in (*inside, *ends)) * posterior.STEP
    assert total == pytest.approx(1, abs=1e-3)


def test_pictures_that_it_does_not_explain_are_refused():
    for spec in (
        sample_spec("shifted", 0, CFG, 5.0),
        sample_spec("test", 0, dataclasses.replace(CFG, mismatched_share=1.0), 5.0),
        sample_spec("test", 0, dataclasses.replace(CFG, near_static_share=1.0), 5.0),
    ):
        with pytest.raises(DataError, match=spec.id):
            posterior.genre_posterior(spec, CFG)


# ---------------------------------------------------------------- another piece


def test_another_piece_keeps_beats_and_picture_and_nothing_else():
    spec = SPECS[0]
    again = music_again(spec, "metal", PURE, np.random.default_rng(1))
    music = {"genre", "key", "mode", "chords", "onsets_s", "programs", "kit", "notes", "vocal", "caption"}
    for f in dataclasses.fields(spec):
        assert f.name in music or getattr(again, f.name) == getattr(spec, f.name), f.name
    metal = TABLE["metal"]
    assert (again.genre, again.mode) == ("metal", metal.mode)
    assert all(p in of for p, of in zip(again.programs, (metal.lead, metal.chords, metal.bass), strict=True))
    bass = [n[2] for n in again.notes if n[0] == 2]
    assert bass == pytest.approx(spec.beats_s), "a bass note on every beat"
    assert "metal" in again.caption
    assert f"{spec.tempo_bpm:.0f} BPM" in again.caption


def test_another_piece_is_drawn_as_a_clip_is():
    found = [music_again(SPECS[i], "blues", CFG, np.random.default_rng(i)) for i in range(300)]
    own = [s for s in SPECS if s.genre == "blues"]
    leads = [np.mean([s.programs[0] in TABLE["blues"].lead for s in some]) for some in (found, own)]
    assert leads[0] == pytest.approx(leads[1], abs=0.12)
    assert len({s.notes for s in found}) == 300
    assert found[0] == music_again(SPECS[0], "blues", CFG, np.random.default_rng(0))


# ---------------------------------------------------------------- the target's parts


def test_draws_have_their_chances():
    rng = np.random.default_rng(0)
    chances = np.tile([0.5, 0.0, 0.3, 0.2], (20000, 1))
    got = np.bincount(ideal.drawn(chances, rng), minlength=4) / 20000
    assert got == pytest.approx(chances[0], abs=0.02)
    assert (ideal.drawn(np.eye(4)[[2, 0, 3]], rng) == [2, 0, 3]).all()


def test_genres_that_were_drawn_are_counted_over_draws():
    true = np.array([0, 0, 1, 1])
    (row,) = ideal.genre_rows({ideal.SEEN: [true, np.array([0, 0, 0, 0])]}, true, MINI)
    assert (row.value, row.n, row.seeds) == (0.75, 4, 2)
    assert row.chance == pytest.approx(0.5)
    assert row.ci95[0] < 0.75 < row.ci95[1]


def test_shares_of_the_perfect_rows():
    def rows(values, *datasets):
        return tuple(
            Row(s, d, ideal.TAGGER, "up", v, status="scaled_down") for s, v in values.items() for d in datasets
        )

    top = Record(ideal.TARGET, "mini", "x", "k", rows(dict.fromkeys(ideal.SYSTEMS, 0.8), ideal.SPLIT), {}, {})
    found = rows({"A": 0.4, "B": 0.6}, *table3.DATASETS.values())
    assert len(found) == 4
    got = ideal.reached(top, Record("t", "mini", "x", "k", found, {}, {}))
    assert {name: list(shares) for name, shares in got.items()} == {name: list(ideal.SYSTEMS[:-1]) for name in "AB"}
    assert list(got["A"].values()) == pytest.approx([0.5] * 5)
    assert list(got["B"].values()) == pytest.approx([0.75] * 5)


def test_it_hears_the_corpus_as_its_files_have_it(tmp_path):
    """A test clip's own music, rendered here, is what the features of its file hold, before and after the codec."""
    from vmas import corpus
    from vmas.experiments import references
    from vmas.features import clip_features

    spec = sample_spec("test", 5, CFG, MINI.clip.seconds)
    corpus.make(tmp_path, MINI, ids=[spec.id], workers=1, progress=False)
    (file,) = tmp_path.rglob("*.mp4")
    kept = clip_features(file, MINI, dense=False)["waveforms"]
    ours = ideal.sound(spec, MINI)
    assert np.abs(ours * 32767 - kept).max() <= 1
    coder = codec.load_codec(paths.checkpoints("mini") / "codec")
    once = ideal.through_codec([spec], coder, MINI)
    import torch

    with torch.inference_mode():
        tokens = coder.encode(torch.from_numpy(kept[None, None] / np.float32(32767)))[..., : MINI.num_tokens].numpy()
    assert (once == references.through_codec(coder, tokens, MINI.clip.num_samples)).all()


def test_strangers_share_no_beat():
    found = ideal.strangers(MINI, 40, 0)
    assert not {s.beats_s for s in found} & {s.beats_s for s in ideal.strangers(MINI, 40, 1)}
    assert not {s.beats_s for s in found} & {sample_spec("test", i, CFG, 5.0).beats_s for i in range(40)}
    assert {s.split for s in found} == {"test"}


def test_there_is_no_such_corpus_at_paper_scale():
    with pytest.raises(DataError, match="procedural corpus"):
        ideal.compute(config.load("paper"))


# ---------------------------------------------------------------- the committed record


@pytest.fixture(scope="module")
def committed() -> Record:
    return records.read(records.committed(ideal.TARGET, "mini", 0))


def told_of(record: Record) -> list[str]:
    """What the findings say, from the record."""

    def value(system: str, metric: str, digits: int = 2) -> str:
        return f"{record.row(system, ideal.SPLIT, metric).value:.{digits}f}".lstrip("0")

    fad, right = "FAD (codec)", ideal.TAGGER
    picture, probe = record.extra["picture"]["likeliest is right"], record.extra["probe"]["test"]["right"]
    return [
        f"told the genre it has FAD {value(ideal.TOLD, fad, 1)} and the tagger is right in {value(ideal.TOLD, right)}",
        f"with a genre drawn by what the picture tells, {value(ideal.SEEN, fad, 1)} and {value(ideal.SEEN, right)}",
        f"by what a linear probe reads off X_v, {value(ideal.READ, fad, 1)} and {value(ideal.READ, right)}",
        f"its first choice {value(ideal.LIKELIEST, fad, 1)} and {value(ideal.LIKELIEST, right)}",
        f"for no video at all, {value(ideal.BLIND, fad, 1)} and {value(ideal.BLIND, right)}",
        f"The picture names the genre in {picture:.0%} of the clips, the probe in {probe:.0%}",
    ]


def best_of(record: Record, trained: Record) -> str:
    """How the row with the tagger's highest accuracy stands to a perfect generator that sees no more than X_v."""
    shares = ideal.reached(record, trained)
    best = max(shares, key=lambda system: shares[system][ideal.READ])
    label = next(c.name for c in table5.CONDITIONS if c.label == best)
    own, drawn, first = (f"{shares[best][s]:.0%}" for s in (ideal.CODED, ideal.READ, ideal.LIKELIEST))
    has = f"{own} of the codec's accuracy, {drawn} of the draw's by X_v and {first} of its first choice's"
    return f"`{label}` has {has}"


def test_the_record_holds_and_less_is_told_from_row_to_row(committed):
    assert committed.key == ideal.key(MINI), "vmas reproduce ideal --save-record"
    for metric in (ideal.TAGGER, ideal.GENRE):
        order = (ideal.TOLD, ideal.SEEN, ideal.READ)
        values = [committed.row(s, ideal.SPLIT, metric) for s in order]
        assert values[0].value >= values[1].value > values[2].ci95[1], metric
    blind = committed.row(ideal.BLIND, ideal.SPLIT, ideal.TAGGER)
    assert blind.ci95[0] < blind.chance < blind.ci95[1]


def test_every_generator_has_a_colour_of_its_own(committed):
    assert len({palette.colour(s) for s in ideal.SYSTEMS}) == len(ideal.SYSTEMS)
    labels = [t.get_text() for t in table.figure(committed).axes[0].get_yticklabels()]
    assert labels == list(ideal.SYSTEMS)


def test_the_findings_tell_them(committed, swept):
    told = " ".join(paths.target("mini", "FINDINGS.md").read_text(encoding="utf-8").split())
    for sentence in (*told_of(committed), best_of(committed, swept["table5"])):
        assert sentence in told
