"""Fingerprints of picture and sound: re-uploads are found at any offset, other videos are not, and no split leaks."""

import dataclasses
import math
import time
from functools import lru_cache

import cv2
import numpy as np
import pytest
from dataset_files import PROFILE

from vmas import config, media
from vmas.corpus import sample_spec
from vmas.corpus.scene import render_frames
from vmas.corpus.sound import render_audio
from vmas.dataset import dedupe, fingerprints, frames, splits, stages
from vmas.dataset.dedupe import Known
from vmas.dataset.fingerprints import Prints, same_picture, same_sound
from vmas.dataset.manifest import Video

CORPUS = dataclasses.replace(config.load("mini").corpus, size=64, fps=12.0)
FPS, RATE, LONG, EXCERPT = 12, 32000, 14.0, 10.0
OFFSETS = (0.5, 1.0, 2.0, 4.0)  # s
CLIPS = 5


def excerpt(path, i: int, offset: float, crf: int = 23, seconds: float = EXCERPT):
    """`seconds` of clip i from `offset` on, written as a file."""
    pictures, wav = clip(i)
    at, n = round(offset * FPS), round(seconds * FPS)
    part = wav[:, round(offset * RATE) :][:, : round(seconds * RATE)]
    return media.write_clip(path, pictures[at : at + n], FPS, part, RATE, crf=crf)


@lru_cache
def clip(i: int) -> tuple[np.ndarray, np.ndarray]:
    spec = sample_spec("test", i, CORPUS, LONG)
    return render_frames(spec), render_audio(spec, RATE)[None]


def prints(path) -> Prints:
    """As the builder has them."""
    tools = stages.Tools(stages.Options(PROFILE, threshold=math.inf))
    return Prints.unpack(stages.screen(Video("x", str(path), "x"), tools))


@pytest.fixture(scope="module")
def excerpts(tmp_path_factory):
    """offset → prints of each clip's excerpt there; the shifted ones are encoded harder."""
    folder = tmp_path_factory.mktemp("excerpts")
    return {
        at: [prints(excerpt(folder / f"{i}-{at}.mp4", i, at, crf=30 if at else 23)) for i in range(CLIPS)]
        for at in (0.0, *OFFSETS, 0.87)
    }


@pytest.mark.parametrize("offset", [*OFFSETS, 0.87])
def test_the_same_content_is_found_at_any_offset_and_other_content_is_not(excerpts, offset):
    for i, a in enumerate(excerpts[0.0]):
        for j, b in enumerate(excerpts[offset]):
            assert same_sound(a, b) == same_sound(b, a) == (i == j), (i, j)
            assert same_picture(a, b) == same_picture(b, a) == (i == j), (i, j)


def test_no_offset_leaks_into_another_split(excerpts):
    rows = [
        Known(f"{i}-{at}", f"{i}-{at}", "", p, quality=float(at == 0.0))
        for at, some in excerpts.items()
        for i, p in enumerate(some)
    ]
    content = [r.id.split("-")[0] for r in rows]
    duplicates, group = dedupe.compare(rows)
    assert {rows[j].id for j in duplicates} == {r.id for r in rows if not r.id.endswith("-0.0")}
    for groups in (group, list(range(len(rows)))):  # with what the index found, and where it had found nothing
        chosen = splits.select(rows, groups, 1, 1)
        held = {c for c, s in zip(content, chosen, strict=True) if s in ("val", "test")}
        assert len(held) == 2
        assert not held & {c for c, s in zip(content, chosen, strict=True) if s == "train"}
    leaky = ["val", *["train"] * (len(rows) - 1)]
    relatives = {i for i in range(1, len(rows)) if content[i] == content[0]}
    assert {x.other for x in splits.leaks(rows, leaky) if x.by == "sound"} == relatives
    assert {x.other for x in splits.leaks(rows, leaky) if x.by == "picture"} == relatives


def test_an_intro_and_a_trim_are_found(tmp_path, excerpts):
    seen, heard = clip(0)[0][: round(EXCERPT * FPS)], clip(0)[1][:, : round(EXCERPT * RATE)]
    card = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    cards, hum = np.repeat(card, 40, 0), 0.1 * np.sin(np.arange(40 * RATE // FPS) / 20)[None].astype(np.float32)
    intro = media.write_clip(tmp_path / "i.mp4", np.concatenate([cards, seen]), FPS, np.hstack([hum, heard]), RATE)
    trim = media.write_clip(tmp_path / "t.mp4", seen[70:], FPS, heard[:, 70 * RATE // FPS :], RATE)
    for path in (intro, trim):
        assert same_sound(prints(path), excerpts[0.0][0])
        assert same_picture(prints(path), excerpts[0.0][0])
    # a card that many videos begin with makes them no relatives
    other = media.write_clip(tmp_path / "o.mp4", np.concatenate([cards, clip(1)[0]]), FPS, heard, RATE)
    assert not same_picture(prints(intro), prints(other))


def cropped(path, i: int, share: float):
    """Clip i without `share` of its side at every edge, at the size it had."""
    n, m = round(EXCERPT * FPS), round(share * CORPUS.size)
    seen = np.stack([cv2.resize(f[m:-m, m:-m], (CORPUS.size,) * 2) for f in clip(i)[0][:n]])
    return media.write_clip(path, seen, FPS, clip(i)[1][:, : round(EXCERPT * RATE)], RATE, crf=28)


@pytest.mark.parametrize("share", [0.02, 0.03, 0.05, 0.06, 0.08, 0.1, 0.12])
def test_a_crop_is_found(tmp_path, excerpts, share):
    for i in range(CLIPS):
        a = prints(cropped(tmp_path / f"{i}.mp4", i, share))
        for j, b in enumerate(excerpts[0.0]):
            assert same_picture(a, b) == same_picture(b, a) == (i == j), (i, j)
            assert same_sound(a, b) == (i == j)
    whole = dataclasses.replace(a, inner=a.inner[:0])  # as an earlier record has it
    assert len(whole.views()) == 1


def test_a_long_video_is_found_by_its_keyframes(tmp_path):
    """Shots of some seconds, of which only keyframes are decoded: the copy begins seven seconds later."""
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 256, (30, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    lengths = rng.integers(20, 60, 30)
    seen = np.repeat(shots, lengths, 0)
    assert len(seen) / FPS > frames.LONG_S + 10
    paths = [media.write_clip(tmp_path / f"{n}.mp4", seen[n:], FPS, crf=23 + n // 8) for n in (0, 7 * FPS)]
    a, b = (Prints(s.times, s.hashes) for s in (frames.watch(p, 64) for p in paths))
    assert max(len(a.hashes), len(b.hashes)) <= frames.MOST
    assert same_picture(a, b)
    other = Prints(a.times, rng.permutation(a.hashes))
    assert not same_picture(a, other)  # the same pictures in another order


def test_frames_are_those_of_a_plain_look_and_decoded_once(tmp_path, monkeypatch):
    path = excerpt(tmp_path / "a.mp4", 0, 0.0, seconds=5.0)
    seen = frames.watch(path, 64)
    np.testing.assert_array_equal(seen.frames, frames.sample_frames(path, 64))
    assert (len(seen.frames), len(seen.hashes)) == (5, 5 * fingerprints.PICTURES_S)
    assert seen.times.tolist() == [250 * i for i in range(20)]
    assert [fingerprints.picture_hash(f) for f in seen.frames] == seen.hashes[::4].tolist()
    large = frames.watch(path, 224)
    assert large.frames.shape[1] == 224
    np.testing.assert_array_equal(large.hashes, seen.hashes)  # whatever the embedder sees
    calls = []
    for name in ("_shown", "_keyframes"):
        plain = getattr(frames, name)
        monkeypatch.setattr(frames, name, lambda *a, plain=plain: calls.append(a) or plain(*a))
    video = Video("a", str(path), "a")
    for skip in ((), ("similarity",), ("duplicates",)):
        calls.clear()
        known = stages.screen(video, stages.Tools(stages.Options(PROFILE, threshold=math.inf, skip=skip)))
        assert len(calls) == 1
        assert ("pictures" in known) == ("sound" in known) == ("duplicates" not in skip)
        assert ("similarity" in known) == ("similarity" not in skip)


def test_records_are_small_and_keep_every_bit(excerpts):
    a = excerpts[0.0][0]
    b = Prints.unpack(a.pack())
    for x, y in ((a.times, b.times), (a.hashes, b.hashes), (a.words, b.words), (a.inner, b.inner)):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    assert Prints.unpack({}).pack() == Prints().pack() == {"pictures": "", "inner": "", "sound": ""}
    assert len(a.words) == pytest.approx(EXCERPT * fingerprints.WORDS_S, abs=8)
    minute = fingerprints.sound_words(np.random.default_rng(0).normal(size=int(60 * fingerprints.SOUND_RATE)))
    assert minute.nbytes < 4000


def test_a_shelf_gives_back_every_bit_and_keeps_none_in_memory(excerpts, tmp_path):
    every = [excerpts[0.0][0], Prints(), Prints(words=excerpts[0.0][1].words[:7]), excerpts[0.0][1]]
    shelf = fingerprints.Shelf(tmp_path)
    for i, p in enumerate(every[:3]):
        assert shelf.put(f"v{i}", {"seconds": 1.0, **p.pack()}) == {"seconds": 1.0}
    assert shelf["v0"].pack() == every[0].pack()
    shelf.put("v3", every[3].pack())  # after it was read
    got = [shelf[f"v{i}"] for i in range(4)]
    shelf.close()
    for a, b in zip(every, got, strict=True):
        for x, y in ((a.times, b.times), (a.hashes, b.hashes), (a.words, b.words), (a.inner, b.inner)):
            np.testing.assert_array_equal(x, y)
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert not got[0].hashes.flags.owndata
    assert list(tmp_path.iterdir()) == []


def test_silence_and_pictures_without_structure_match_nothing():
    assert fingerprints.picture_hash(np.zeros((64, 64, 3), np.uint8)) == 0
    quiet = fingerprints.sound_words(np.zeros(5 * fingerprints.SOUND_RATE, np.float32))
    assert len(quiet) > 60
    assert not quiet.any()
    assert not len(fingerprints.sound_words(np.ones(1000, np.float32)))
    empty = Prints(np.arange(8, dtype=np.uint32) * 250, np.zeros(8, np.uint64), quiet)
    assert not same_picture(empty, empty)
    assert not same_sound(empty, empty)
    assert not len(empty.picture_keys())
    assert not len(empty.sound_keys())


def test_sound_distance_is_the_least_over_offsets():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 2**32, (2, 70), np.uint32)
    least = round(fingerprints.LEAST_SOUND_S * fingerprints.WORDS_S)

    def slow(x, y):
        out = []
        for at in range(-len(y), len(x)):
            pairs = [(a, y[i - at]) for i, a in enumerate(x) if 0 <= i - at < len(y) and a and y[i - at]]
            if len(pairs) >= least:
                out.append(sum(int(a ^ b).bit_count() for a, b in pairs) / 32 / len(pairs))
        return min(out)

    y[:40] = x[20:60] ^ np.uint32(0b1011)
    x[30], y[5] = 0, 0
    for a, b in ((x, y), (y, x), (x[:50], y)):
        got = fingerprints.sound_distance(Prints(words=a), Prints(words=b))
        assert got == pytest.approx(slow(a, b), abs=1e-12)
    assert fingerprints.sound_distance(Prints(words=x[:20]), Prints(words=y)) == 1


def test_a_crowd_of_videos_is_compared_in_near_linear_time():
    rng = np.random.default_rng(0)

    def seconds(n: int) -> float:
        words = rng.integers(1, 2**32, (n, 960), np.uint32)
        rows = [Known(f"v{i}", f"v{i}", "", Prints(words=w)) for i, w in enumerate(words)]
        start = time.process_time()
        assert dedupe.compare(rows) == ({}, list(range(n)))
        return time.process_time() - start

    few, many = seconds(500), seconds(4000)
    assert many < 24 * max(few, 0.05)
