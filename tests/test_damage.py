"""Damage to music, and that FAD and KL hear it: with the committed codec, tagger and clips of the generator."""

import numpy as np
import pytest
import torch

from vmas import config, paths, records
from vmas.codec import load_codec, onset_f
from vmas.corpus import GENRES
from vmas.corpus.sound import render_audio
from vmas.corpus.spec import sample_spec
from vmas.embedders.tagger import load_tagger
from vmas.errors import DataError
from vmas.experiments import damage
from vmas.metrics.fad import fad_from_embeddings
from vmas.metrics.kl import kl
from vmas.records import Record, Row

RATE, N = 32000, 40
MINI = config.load("mini")


@pytest.fixture(scope="module")
def music():
    specs = [sample_spec("val", i, MINI.corpus, MINI.clip.seconds) for i in range(N)]
    waves = np.stack([render_audio(s, RATE) for s in specs]).astype(np.float32)
    return waves, np.array([GENRES.index(s.genre) for s in specs])


def test_noise_and_mixing_have_the_level_they_say(music):
    x, genres = music
    rng = np.random.default_rng(0)
    for level in (0.0, 20.0):
        added = damage.noise(x, level, rng) - x
        np.testing.assert_allclose(20 * np.log10(damage.rms(x) / damage.rms(added)), level, atol=0.1)
    added = damage.mixing(x, -10.0, rng) - x
    np.testing.assert_allclose(20 * np.log10(damage.rms(added) / damage.rms(x)), -10, atol=0.1)
    assert all(np.corrcoef(a, b)[0, 1] < 0.9 for a, b in zip(added, x, strict=True)), "another clip's music"
    assert np.abs(damage.spoil("mixing", x, 0.0, genres, RATE)).max() <= 1


def test_low_pass_keeps_what_is_below_and_takes_what_is_above():
    t = np.arange(RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * t) for f in (500.0, 4000.0)]).astype(np.float32)
    kept = damage.rms(damage.low_pass(tones, 2.0, RATE)) / damage.rms(tones)
    assert kept[0] > 0.99
    assert kept[1] < 0.02  # its ends ring


def test_shuffling_keeps_every_piece(music):
    x, _ = music
    got = damage.shuffled(x, 0.5, RATE, np.random.default_rng(0))
    assert not np.array_equal(got, x)
    for a, b in zip(got, x, strict=True):
        pieces = [{p.tobytes() for p in w[: len(w) // 16000 * 16000].reshape(-1, 16000)} for w in (a, b)]
        assert pieces[0] == pieces[1]


def test_one_genre_replaces_the_share_it_says(music):
    x, genres = music
    got = damage.one_genre(x, 0.5, genres, np.random.default_rng(0))
    changed = [i for i in range(N) if not np.array_equal(got[i], x[i])]
    first = [w.tobytes() for w in x[genres == genres.min()]]
    assert N / 2 - 2 * len(first) <= len(changed) <= N / 2
    assert all(got[i].tobytes() in first for i in changed)


def test_few_bits_a_second_take_more_than_many_and_nothing_is_moved_in_time(music):
    x = music[0][:3]
    many, few = (damage.aac(x, level, RATE) for level in (128.0, 32.0))
    assert many.shape == few.shape == x.shape
    gone = [damage.rms(y - x) / damage.rms(x) for y in (many, few)]
    assert (gone[0] < gone[1]).all()
    assert (gone[0] < 0.1).all(), "the coder's delay is made up for"


def test_onsets_are_found_again_or_not(music):
    x = music[0][:6]
    own = damage.onset_times(x, MINI)
    same = damage.onset_row("a", own, own, MINI)
    assert (same.value, same.ci95, same.n, same.direction) == (1.0, (1.0, 1.0), 6, "up")
    assert same.metric == damage.ONSET_F
    moved = [t + 0.06 for t in own]
    assert damage.onset_row("a", own, moved, MINI).value < 0.7
    codec = load_codec(paths.checkpoints("mini") / "codec")
    back = codec.decode(codec.encode(torch.from_numpy(x)[:, None]))[:, 0, : x.shape[1]].numpy()
    got = damage.onset_row("a", own, damage.onset_times(back, MINI), MINI)
    assert got.value == pytest.approx(
        np.mean([onset_f(a, b, RATE, MINI.codec.hop) for a, b in zip(x, back, strict=True)])
    )


def test_damage_is_deterministic_and_needs_company(music):
    x, genres = music
    for kind, (_, levels) in damage.KINDS.items():
        a, b = (damage.spoil(kind, x[:4], levels[0], genres[:4], RATE, seed=3) for _ in range(2))
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="at least 2"):
        damage.spoil("noise", x[:1], 0.0, genres[:1], RATE)


CODED = pytest.param("AAC", marks=pytest.mark.slow)  # every piece goes through the encoder at every rate


@pytest.mark.parametrize("kind", [CODED if k == "AAC" else k for k in damage.KINDS])
def test_fad_and_kl_rise_with_damage(music, kind):
    """Few clips: the least level may drown in chance, so the levels from the second on must rise."""
    x, genres = music
    tagger = load_tagger(paths.checkpoints("mini") / "tagger")

    def heard(waves):
        with torch.inference_mode():
            e = tagger.embed(torch.from_numpy(waves))
            return e.numpy().astype(float), tagger.classify(e).numpy().astype(float)

    whole, logits = heard(x)
    fads, kls = [], []
    for level in damage.KINDS[kind][1][1:]:
        e, said = heard(damage.spoil(kind, x, level, genres, RATE))
        fads.append(fad_from_embeddings(e, whole))
        kls.append(kl(said, logits).mean())
    assert fads == sorted(fads)
    assert kls == sorted(kls)
    assert fads[0] > 0
    assert kls[0] > 0


def test_fad_and_kl_of_the_record_rise_at_every_level():
    record = records.read(records.committed("damage", "mini", 0))
    for kind, (_, levels) in damage.KINDS.items():
        for metric in ("FAD (real)", "KL"):
            line = [record.row(s, damage.SPLIT, metric).value for s in
                    (damage.WHOLE, *(damage.name(kind, x) for x in levels))]  # fmt: skip
            assert line == sorted(line), (kind, metric, line)


def test_verdicts_are_computed_from_the_record():
    unit = damage.KINDS["noise"][1]
    values = {"KL": [0.0, 0.1, 0.2, 0.3, 0.4], "MV Align": [0.6, 0.6, 0.61, 0.6, 0.59]}
    rows = [
        Row(
            system, damage.SPLIT, metric, "down" if metric == "KL" else "up", v, (v - 0.02, v + 0.02), 9, status="smoke"
        )
        for metric, line in values.items()
        for v, system in zip(line, [damage.WHOLE, *(damage.name("noise", x) for x in unit)], strict=True)
    ]
    record = Record("damage", "smoke", "t", "k", tuple(rows), {}, {"kinds": {"noise": ["dB", list(unit)]}})
    said = {v["metric"]: v["seen"] for v in damage.verdicts(record, ("KL", "MV Align"))}
    assert said == {"KL": "each step", "MV Align": "not seen"}
