"""How far the genres of the mini corpus overlap (`vmas.experiments.genres`)."""

from dataclasses import asdict, fields

import numpy as np
import pytest

from vmas import config, features, paths, records
from vmas.corpus import GENRES
from vmas.errors import DataError
from vmas.experiments import genres
from vmas.records import Record
from vmas.report import palette, table

MINI = config.load("mini")
SMOKE = config.load("smoke")


def specs(split: str, n: int, profile=MINI):
    return genres.specs(profile, split, range(n))


@pytest.fixture(scope="module")
def committed() -> Record:
    return records.read(records.committed("genres", "mini", 0))


@pytest.mark.parametrize("attributes", [genres.music_attributes, genres.picture_attributes])
def test_attributes_are_numbers_and_do_not_know_the_genre(attributes):
    spec = specs("train", 1)[0]
    names = {f.name for f in fields(spec)}
    assert {"genre", "scene_genre", "caption"} <= names
    hidden = type(spec)(**{**asdict(spec), "genre": "?", "scene_genre": "?", "caption": "?", "notes": spec.notes})
    assert attributes(hidden) == attributes(spec)
    assert len({len(attributes(s)) for s in specs("train", 50)}) == 1
    assert np.isfinite([attributes(s) for s in specs("train", 50)]).all()


def test_music_and_picture_are_told_by_their_own_attributes():
    a, b = specs("train", 2)
    mixed = type(a)(**{**asdict(a), "palette": b.palette, "texture": b.texture, "figure": b.figure, "notes": a.notes})
    assert genres.music_attributes(mixed) == genres.music_attributes(a)
    assert genres.picture_attributes(mixed)[1:] == genres.picture_attributes(b)[1:]


@pytest.mark.slow
def test_a_forest_is_far_above_chance_and_not_always_right():
    held_out = specs("val", 200)
    true = np.array([s.genre for s in held_out])
    for attributes in (genres.music_attributes, genres.picture_attributes):
        said = genres.forest(specs("train", 800), held_out, attributes)
        assert 0.7 < (said == true).mean() < 0.99
        assert (said == genres.forest(specs("train", 800), held_out, attributes)).all(), (
            "the same seed, the same forest"
        )


def test_without_overlap_the_attributes_tell_the_genre():
    import dataclasses

    pure = dataclasses.replace(MINI, corpus=dataclasses.replace(MINI.corpus, genre_mix=0.0))
    held_out = specs("val", 150, pure)
    said = genres.forest(specs("train", 600, pure), held_out, genres.music_attributes)
    assert (said == np.array([s.genre for s in held_out])).mean() > 0.97


def test_chance_is_that_of_the_same_answers_in_random_order():
    true = np.array(["pop"] * 6 + ["rock"] * 4)
    said = {s: np.array(["pop"] * 10) for s in genres.SYSTEMS} | {genres.STRONG: true.copy()}
    by_system = {r.system: r for r in genres.rows(said, true, "here", SMOKE)}
    assert (by_system[genres.COMMITTED].value, by_system[genres.COMMITTED].chance) == (0.6, pytest.approx(0.6))
    assert (by_system[genres.STRONG].value, by_system[genres.STRONG].chance) == (1.0, pytest.approx(0.52))
    assert {r.n for r in by_system.values()} == {10}


def test_further_music_is_heard_besides():
    few = config.changed(
        SMOKE, {"corpus": {"music": 5}, "clip": {"seconds": 1.0}, "eval": {"tagger_steps": 1, "tagger_width": 2}}
    )
    ((some, waves),) = features.render_music(few, progress=False)
    assert (some, waves.shape) == (range(5), (5, few.clip.num_samples))
    assert (np.abs(waves).max(1) > 0.01).all()
    assert genres.strong_tagger(few, waves[:3], np.arange(3), progress=False)[1] == 3 + 5


def test_the_strong_tagger_learns_what_it_hears():
    """Ten tones, one a genre: what it is for is measured by the record."""
    small = config.changed(SMOKE, {"corpus": {"music": 0}, "eval": {"tagger_steps": 24, "tagger_width": 4}})
    rate, rng = small.clip.sample_rate, np.random.default_rng(3)
    labels = np.arange(40) % len(GENRES)
    t = np.arange(rate) / rate
    waves = 0.3 * np.sin(2 * np.pi * (150 * 1.45**labels)[:, None] * t) + 0.002 * rng.standard_normal((40, rate))
    tagger, heard = genres.strong_tagger(small, waves.astype(np.float32), labels, progress=False)
    assert heard == 40
    assert (tagger.logits(waves.astype(np.float32)).argmax(1).numpy() == labels).mean() > 0.8


def test_there_is_no_such_corpus_at_paper_scale():
    with pytest.raises(DataError, match="procedural corpus"):
        genres.compute(config.load("paper"))


def test_the_key_knows_the_corpus(monkeypatch):
    other = config.changed(MINI, {"corpus": {"genre_mix": 0.3}})
    assert genres.key(MINI) != genres.key(other)
    monkeypatch.setattr(genres, "LONGER", 7)
    assert genres.key(MINI) != genres.key(other)


def test_the_record_holds_and_the_genres_overlap(committed):
    """A strong tagger is right far more often than the judge, and no listener about all clips."""
    assert committed.key == genres.key(MINI), "vmas reproduce genres --save-record"
    for split in ("val", "test"):
        rows = {s: committed.row(s, genres.SPLITS[split], genres.METRIC) for s in genres.SYSTEMS}
        assert rows[genres.STRONG].ci95[0] > rows[genres.COMMITTED].ci95[1]
        assert all(0.75 < r.value and r.ci95[1] < 1 for r in rows.values()), split


def test_every_listener_has_a_colour_of_its_own(committed):
    assert len({palette.colour(s) for s in genres.SYSTEMS}) == len(genres.SYSTEMS)
    labels = [t.get_text() for t in table.figure(committed).axes[0].get_yticklabels()]
    assert labels == list(genres.SYSTEMS)


def test_the_readme_tells_the_two_taggers(committed):
    told = " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    weak, strong = (committed.row(s, genres.SPLITS["test"], genres.METRIC) for s in (genres.COMMITTED, genres.STRONG))
    ends = f"[{strong.ci95[0]:.0%}, {strong.ci95[1]:.0%}]"
    assert f"the genre in {weak.value:.0%}, a strong one that was trained for this question alone in" in told
    assert f"alone in {strong.value:.0%} {ends}" in told
