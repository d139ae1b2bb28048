"""The procedural corpus: deterministic clip by clip, every knob acts, files and manifest agree."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from vmas import config, corpus, media
from vmas.corpus import card, make, sample_spec
from vmas.corpus.genres import NEIGHBOURS, PROGRAM_NAMES, SHIFTED_PROGRAM, TABLE
from vmas.corpus.scene import render_frames
from vmas.corpus.sound import render_audio
from vmas.corpus.spec import BASS, CHORDS, DRAWS, KIT, MELODY, OFF_BEAT_VELOCITY, VOICE, parse_id
from vmas.errors import DataError, UsageError
from vmas.flow import flow_magnitude

SECONDS = 2.0
RATE = 16000


def profile(**knobs) -> config.Profile:
    """Smoke profile with 2 s clips of 64 pixels and the given corpus knobs."""
    small = {"train": 3, "val": 2, "test": 0, "shifted": 1, "size": 64, **knobs}
    return config.load("smoke", {"corpus": small, "clip": {"seconds": SECONDS, "sample_rate": RATE}})


def specs(n: int = 60, split: str = "train", **knobs) -> list[corpus.ClipSpec]:
    cfg = profile(**knobs).corpus
    return [sample_spec(split, i, cfg, SECONDS) for i in range(n)]


def tree(folder) -> dict[str, str]:
    """Hash of each clip below `folder`."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.mp4"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    make(out, profile(), workers=1, progress=False)
    return out


# --- one clip ---------------------------------------------------------------


def test_clip_is_a_function_of_its_id():
    cfg = profile().corpus
    first = corpus.render_clip("val-00001", cfg, SECONDS, RATE)
    corpus.render_clip("train-00002", cfg, SECONDS, RATE)  # whatever is played in between
    again = corpus.render_clip("val-00001", cfg, SECONDS, RATE)
    assert first[0] == again[0] == sample_spec("val", 1, cfg, SECONDS)
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[2], again[2])


def test_shapes_and_levels():
    spec, frames, audio = corpus.render_clip("train-00000", profile().corpus, SECONDS, RATE)
    assert frames.shape == (round(SECONDS * spec.fps), 64, 64, 3)
    assert frames.dtype == np.uint8
    assert audio.shape == (round(SECONDS * RATE),)
    assert audio.dtype == np.float32
    assert 0.02 < np.sqrt(np.mean(audio**2)) < 0.2
    assert np.abs(audio).max() <= 0.9501


def test_splits_and_seeds_never_share_a_clip():
    drawn = [s for split in corpus.SPLITS for s in specs(30, split)] + specs(30, seed=2)
    assert len({(s.beats_s, s.tempo_bpm) for s in drawn}) == len(drawn)


@pytest.mark.parametrize(
    "name", ["", "test", "test-", "test-17", "best-00017", "test-0001x", "test--0001", "test-²0000"]
)
def test_unknown_ids(name):
    with pytest.raises(UsageError, match="clip id"):
        parse_id(name)


def test_unknown_split_and_index():
    cfg = profile().corpus
    with pytest.raises(UsageError, match="did you mean val"):
        sample_spec("vall", 0, cfg, SECONDS)
    with pytest.raises(UsageError, match="negative"):
        sample_spec("val", -1, cfg, SECONDS)


# --- ground truth -----------------------------------------------------------


def test_spec_agrees_with_itself():
    for s in specs(40):
        assert s.genre in corpus.GENRES
        assert len(s.shown) == len(s.beats_s)
        assert all(0 <= t < SECONDS for t in s.beats_s + s.onsets_s)
        assert len(s.video_events_s) == sum(s.shown) + len(s.spurious_s)
        assert np.all(np.diff(s.video_events_s) >= 0)
        # Each beat is a note of the music.
        assert all(min(abs(b - o) for o in s.onsets_s) < 1e-3 for b in s.beats_s)
        assert np.allclose(np.diff(s.beats_s), 60 / s.tempo_bpm, atol=1e-5)
        assert {n[0] for n in s.notes} <= {MELODY, CHORDS, BASS, KIT, VOICE}
        assert all(0 <= n[1] < 128 and 0 < n[4] < 128 and n[3] > n[2] for n in s.notes)
        for word in (s.genre, s.key, s.mode, f"{s.tempo_bpm:.0f} BPM", *(PROGRAM_NAMES[p] for p in s.programs)):
            assert word in s.caption


def test_tables_are_complete():
    assert tuple(TABLE) == corpus.GENRES
    assert set(NEIGHBOURS) == set(corpus.GENRES)
    assert all(g not in n and set(n) <= set(TABLE) for g, n in NEIGHBOURS.items())
    assert all(len(p) == 16 for g in TABLE.values() for p in (g.kick, g.snare, g.hat))
    heard = {p for g in TABLE.values() for p in g.lead + g.chords + g.bass}
    assert heard <= set(SHIFTED_PROGRAM)
    assert not heard & set(SHIFTED_PROGRAM.values())


def test_shifted_split_is_another_style():
    usual, shifted = specs(80), specs(80, "shifted")
    for field in ("texture", "figure", "kit"):
        assert {getattr(s, field) for s in shifted} - {getattr(s, field) for s in usual}
    assert not {p for s in usual for p in s.programs} & {p for s in shifted for p in s.programs}
    assert not {s.figure for s in usual} & {s.figure for s in shifted}
    colours = [np.mean([c[1] for s in group for c in s.palette]) for group in (usual, shifted)]
    assert colours[1] < 0.8 * colours[0]


# --- every knob acts --------------------------------------------------------


def test_beat_share():
    assert not any(any(s.shown) for s in specs(20, beat_share=0.0))
    assert all(all(s.shown) for s in specs(20, beat_share=1.0))
    assert 0.4 < np.mean([x for s in specs(150, beat_share=0.5) for x in s.shown]) < 0.6


def test_jitter():
    def far(jitter: float) -> float:
        """Mean distance of an event from the nearest beat, less the 10 ms that the picture leads by."""
        rows = specs(60, jitter_s=jitter, spurious_per_s=0.0)
        return float(
            np.mean([min(abs(e - b + 0.01) for b in s.beats_s) for s in rows if s.beats_s for e in s.video_events_s])
        )

    assert far(0.0) < 1e-6
    assert 0.03 < far(0.05) < 0.05  # a normal's mean absolute value is 0.8 σ


def test_spurious_events():
    assert not any(s.spurious_s for s in specs(20, spurious_per_s=0.0))
    assert 0.8 < np.mean([len(s.spurious_s) for s in specs(200, spurious_per_s=1.0)]) / SECONDS < 1.2


def test_silent_notes_come_off_the_beat():
    def off_beat(share: float) -> float:
        rows = specs(100, silent_note_share=share)
        return float(np.mean([sum(n[0] == MELODY and n[4] == OFF_BEAT_VELOCITY for n in s.notes) for s in rows]))

    assert off_beat(0.0) == 0
    assert off_beat(1.0) > off_beat(0.3) > 0.2


def test_shares_of_clips():
    knobs = {"static_share": "static", "near_static_share": "near_static", "vocal_share": "vocal"}
    knobs |= {"mismatched_share": "mismatched", "cut_share": "cuts"}
    for knob, flag in knobs.items():
        assert not any(getattr(s, flag) for s in specs(20, **{knob: 0.0}))
        assert all(getattr(s, flag) for s in specs(20, **{knob: 1.0}))
        assert 0.2 < np.mean([getattr(s, flag) for s in specs(150, **{knob: 0.3})]) < 0.4, knob


def test_genre_mix_borrows_from_neighbours():
    def own(mix: float) -> float:
        return float(np.mean([s.programs[0] in TABLE[s.genre].lead for s in specs(200, genre_mix=mix)]))

    assert own(0.0) == 1.0
    assert own(1.0) < 0.4  # neighbours share some instruments
    assert own(1.0) < own(0.35) < 0.9
    for s in specs(50, genre_mix=0.0):
        low, high = TABLE[s.genre].tempo
        assert low <= s.tempo_bpm <= high
        assert s.texture == TABLE[s.genre].texture


def test_mismatched_music_belongs_to_nobody():
    plain, mixed = specs(20), specs(20, mismatched_share=1.0)
    for a, b in zip(plain, mixed, strict=True):
        assert (a.palette, a.texture, a.video_events_s) == (b.palette, b.texture, b.video_events_s)
        assert a.scene_genre == b.scene_genre
        assert a.notes != b.notes
        assert b.sound_of != b.id
        assert not any(b.shown)
        assert b.genre in b.caption


def test_duplicates_repeat_picture_and_sound():
    cfg = profile(duplicate_share=0.5).corpus
    rows = {s.id: s for s in specs(30, duplicate_share=0.5)}
    twins = [s for s in rows.values() if s.duplicate_of]
    assert 5 < len(twins) < 25
    assert all(rows[s.duplicate_of].duplicate_of is None for s in twins)
    one, two = twins[0].id, twins[0].duplicate_of
    a, b = (corpus.render_clip(name, cfg, SECONDS, RATE) for name in (one, two))
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(a[2], b[2])


def test_static_pictures_do_not_move():
    still = specs(1, static_share=1.0)[0]
    frames = render_frames(still)
    assert (frames == frames[0]).all()
    assert still.video_events_s == ()
    nearly = specs(1, near_static_share=1.0, cut_share=1.0)[0]
    frames = render_frames(nearly)
    assert (frames != frames[0]).any()
    assert flow_magnitude(frames, cache=False).max() < 0.1


@pytest.mark.parametrize("cut_share", [0.0, 1.0])
def test_picture_moves_when_the_spec_says_so(cut_share):
    """Flow above MV Align's threshold near the events, and below it away from them."""
    near_s = 0.15
    for s in specs(3, cut_share=cut_share, spurious_per_s=0.0, beat_share=1.0, jitter_s=0.0):
        flow = flow_magnitude(render_frames(s), size=64, cache=False)
        times = (np.arange(len(flow)) + 0.5) / s.fps
        near = np.abs(times[:, None] - np.array(s.video_events_s)).min(axis=1) < near_s
        assert flow[~near].max() < 0.1
        for e in s.video_events_s:
            if near_s < e < SECONDS - near_s:
                peak = times[np.argmax(np.where(np.abs(times - e) < near_s, flow, 0))]
                assert flow[np.abs(times - e) < near_s].max() > 0.1
                assert abs(peak - e) <= 1.1 / s.fps


def test_the_vocal_stem_is_part_of_the_mix():
    sung = specs(1, vocal_share=1.0)[0]
    mix, voice = render_audio(sung, RATE), render_audio(sung, RATE, only_voice=True)
    assert any(n[0] == VOICE for n in sung.notes)
    assert np.sqrt(np.mean(voice**2)) > 0.2 * np.sqrt(np.mean(mix**2))
    plain = specs(1)[0]
    assert not np.any(render_audio(plain, RATE, only_voice=True))


# --- files and manifest -----------------------------------------------------

COLUMNS = {
    "id", "split", "index", "seed", "genre", "tempo_bpm", "key", "mode", "chords", "beats_s", "onsets_s", "shown",
    "video_events_s", "spurious_s", "programs", "kit", "scene", "scene_genre", "texture", "figure", "cuts", "static",
    "near_static", "vocal", "mismatched", "sound_of", "duplicate_of", "caption", "path",
}  # fmt: skip


def test_manifest_lists_every_clip(made):
    table = corpus.load_manifest(made)
    assert set(table.columns) == COLUMNS
    assert list(table["split"]) == ["train"] * 3 + ["val"] * 2 + ["shifted"]
    assert list(table["index"]) == [0, 1, 2, 0, 1, 0]
    cfg = profile().corpus
    for row in table.itertuples():
        spec = sample_spec(row.split, row.index, cfg, SECONDS)
        assert (row.id, row.genre, row.caption) == (spec.id, spec.genre, spec.caption)
        np.testing.assert_array_equal(row.beats_s, spec.beats_s)
        np.testing.assert_array_equal(row.shown, spec.shown)
        info = media.probe(made / row.path)
        assert (info.fps, info.width, info.height, info.frames) == (24, 64, 64, round(SECONDS * 24))
        assert info.sample_rate == RATE


def test_file_holds_what_was_rendered(made):
    _, frames, audio = corpus.render_clip("val-00000", profile().corpus, SECONDS, RATE)
    got = media.read_frames(made / "val/val-00000.mp4", 24, None).astype(float)
    assert np.abs(got - frames).mean() < 6  # levels, after H.264 4:2:0
    wav = media.read_audio(made / "val/val-00000.mp4", RATE)[0][: len(audio)]
    assert np.corrcoef(wav, audio[: len(wav)])[0, 1] > 0.95


def test_one_clip_alone_equals_the_batch(made, tmp_path):
    make(tmp_path, profile(), ids=["train-00002", "shifted-00000"], workers=1, progress=False)
    alone, batch = tree(tmp_path), tree(made)
    assert set(alone) == {"train-00002.mp4", "shifted-00000.mp4"}
    assert all(batch[name] == digest for name, digest in alone.items())
    assert list(corpus.load_manifest(tmp_path)["id"]) == ["train-00002", "shifted-00000"]


def test_resumes_and_keeps_what_is_there(made, tmp_path):
    make(tmp_path, profile(), splits=["val"], workers=1, progress=False)
    first, second = (tmp_path / f"val/val-0000{i}.mp4" for i in range(2))
    kept, before = first.stat().st_mtime_ns, tree(tmp_path)
    second.unlink()
    make(tmp_path, profile(), splits=["val"], workers=1, progress=False)
    assert first.stat().st_mtime_ns == kept
    assert tree(tmp_path) == before
    # Single clips of another split join the manifest; those that it listed stay.
    make(tmp_path, profile(), ids=["train-00001", "val-00000"], workers=1, progress=False)
    assert list(corpus.load_manifest(tmp_path)["id"]) == ["train-00001", "val-00000", "val-00001"]
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_another_config_makes_the_folder_anew(tmp_path):
    one, two = profile(), profile(seed=9)
    make(tmp_path, one, splits=["val"], workers=1, progress=False)
    old = tree(tmp_path)
    make(tmp_path, two, splits=["shifted"], workers=1, progress=False)
    assert json.loads((tmp_path / "corpus.json").read_text())["data_sha256"] == corpus.data_sha256(two)
    assert set(corpus.load_manifest(tmp_path)["split"]) == {"shifted"}
    make(tmp_path, two, splits=["val"], workers=1, progress=False)
    assert not set(old.values()) & set(tree(tmp_path).values())


def test_data_sha256_is_of_what_is_heard_and_seen():
    p = profile()
    assert corpus.data_sha256(p) == corpus.data_sha256(profile())
    assert corpus.data_sha256(profile(train=50)) == corpus.data_sha256(p)  # how many clips changes none of them
    for field in dataclasses.fields(p.corpus):
        if field.name not in DRAWS:
            other = dataclasses.replace(p.corpus, **{field.name: getattr(p.corpus, field.name) + 1})
            assert corpus.data_sha256(dataclasses.replace(p, corpus=other)) != corpus.data_sha256(p), field.name


@pytest.mark.slow
def test_processes_make_the_same_files(made, tmp_path):
    make(tmp_path, profile(), workers=2, progress=False)
    assert tree(tmp_path) == tree(made)


# --- broken input -----------------------------------------------------------


def test_unknown_split_or_id_stops_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="unknown split 'valid'"):
        make(tmp_path / "a", profile(), splits=["valid"], progress=False)
    with pytest.raises(UsageError, match="no clip id"):
        make(tmp_path / "a", profile(), ids=["val-00000", "clip7"], progress=False)
    assert not (tmp_path / "a").exists()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*cannot be written.*choose another folder"):
        make(tmp_path / "file", profile(), splits=["val"], progress=False)


def test_clips_that_fail_are_listed_and_left_out(tmp_path):
    """A folder in the place of a clip cannot be replaced by it."""
    many = profile(val=25, size=16)
    (tmp_path / "val" / "val-00003.mp4").mkdir(parents=True)
    make(tmp_path, many, splits=["val"], workers=1, progress=False)
    assert "val-00003" not in set(corpus.load_manifest(tmp_path)["id"])
    assert len(corpus.load_manifest(tmp_path)) == 24
    assert list(json.loads((tmp_path / "failures.json").read_text())) == ["val-00003"]


def test_too_many_failures_stop_the_run(tmp_path):
    for i in range(2):
        (tmp_path / "val" / f"val-0000{i}.mp4").mkdir(parents=True)
    with pytest.raises(DataError, match="2 clips could not be made, the first: val-00000"):
        make(tmp_path, profile(), splits=["val"], workers=1, progress=False)


def test_missing_and_damaged_manifest(tmp_path):
    with pytest.raises(DataError, match="no corpus here"):
        corpus.load_manifest(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a readable manifest"):
        corpus.load_manifest(tmp_path)


def test_no_clips_asked_for(tmp_path):
    with pytest.raises(DataError, match="no clip was made"):
        make(tmp_path, profile(), splits=["test"], progress=False)


# --- card -------------------------------------------------------------------


@pytest.mark.slow
def test_card_measures_the_files(made):
    table = corpus.load_manifest(made)
    got = card.data_card(table, made, clips=4, rates=(24.0,), sample_rate=RATE)
    assert got["clips"] == len(table)
    assert got["measured_clips"] == 4
    assert sum(got["genres"].values()) == len(table)
    assert sum(got["tempo_histogram"].values()) == len(table)
    aligned = got["mv_align"]["MV Align (2025, 24 fps)"]
    assert 0 <= aligned["chance"] <= 1
    assert 0 < aligned["truth"] <= 1
    assert -30 < got["loudness_lufs"]["mean"] < -10
    assert got["peak"]["max"] < 1.15  # 0.95 before AAC
    json.dumps(got)
    with pytest.raises(DataError, match="at least 2"):
        card.data_card(table[:1], made)


def test_sheet_and_strip(made):
    table = corpus.load_manifest(made)
    sheet = card.contact_sheet(table, made, n=6, columns=3)
    assert sheet.size == (3 * 64 + 2 * 4, 2 * (64 + card.LABEL) + 4)
    assert np.asarray(sheet)[:64, :64].std() > 1
    assert card.strip(next(table.itertuples()), made, 4).width == 4 * 64 + 3 * 4
    with pytest.raises(DataError, match="at least one clip"):
        card.contact_sheet(table[:0], made)
