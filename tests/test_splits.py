"""Held-out videos: a score that prefers music that fits, and no relative in another split, however hidden."""

import dataclasses
import time

import numpy as np
import pytest

from vmas.corpus import sample_spec
from vmas.dataset import dedupe, splits
from vmas.dataset.dedupe import Before, Known
from vmas.dataset.fingerprints import Prints, same_picture, same_sound

RNG = np.random.default_rng(0)
N_PICTURES, N_WORDS = 20, 80


def prints(pictures: int = N_PICTURES, words: int = N_WORDS) -> Prints:
    """Of a video of five seconds that looks and sounds like no other."""
    hashes, sound = RNG.integers(1, 2**63, pictures, np.uint64), RNG.integers(1, 2**32, words, np.uint32)
    return Prints(250 * np.arange(pictures, dtype=np.uint32), hashes, sound)


def known(name: str, **changes) -> Known:
    plain = Known(name, f"video of {name}", f"track of {name}", prints(), float(RNG.random()))
    return dataclasses.replace(plain, **changes)


def flip(x: np.ndarray, bits) -> np.ndarray:
    """`x` with these bits of every element the other way round."""
    return x ^ np.bitwise_or.reduce([x.dtype.type(1 << int(b)) for b in bits])


def sounds_like(a: Known, bits) -> Prints:
    return dataclasses.replace(prints(), words=flip(a.prints.words, bits))


def looks_like(a: Known, bits) -> Prints:
    return dataclasses.replace(prints(), hashes=flip(a.prints.hashes, bits))


def test_a_relative_without_one_equal_part_is_found_for_held_out_videos():
    a = known("a", quality=2.0)
    b = known("b", where=sounds_like(a, [9]))
    c = known("c", where=looks_like(a, [3, 40]))  # one bit in each half
    rows = [a, b, c, *(known(f"v{i}") for i in range(20))]
    duplicates, group = dedupe.compare(rows)
    assert not duplicates
    assert len(set(group)) == len(rows)  # nothing is joined
    plain = dedupe.hold_out(rows, group, 1, 1)
    assert plain[0] in ("val", "test")
    assert {(x.held, x.other, x.by) for x in splits.leaks(rows, plain)} >= {(0, 1, "sound"), (0, 2, "picture")}
    chosen = splits.select(rows, group, 1, 1)
    assert chosen[0] in ("val", "test")
    assert chosen[1] == chosen[2] == ""
    assert splits.leaks(rows, chosen) == []
    assert sorted(chosen).count("train") == len(rows) - 4


def test_two_held_out_relatives_never_stay_in_two_splits():
    a = known("a", quality=9.0)
    b = known("b", quality=8.0, where=sounds_like(a, [9]))
    rows = [a, b, *(known(f"v{i}") for i in range(6))]
    _, group = dedupe.compare(rows)
    assert {x.by for x in splits.leaks(rows, dedupe.hold_out(rows, group, 1, 1))} == {"sound"}
    chosen = splits.select(rows, group, 1, 1)
    assert (chosen[1], sorted(s for s in chosen if s in ("val", "test"))) == ("", ["test", "val"])
    assert splits.leaks(rows, chosen) == []


def test_what_was_held_out_stays_so_and_what_was_in_train_is_never_held_out():
    rows = [known(f"v{i}", quality=float(9 - i)) for i in range(9)]
    group = list(range(9))
    was = {"v5": "val", "v7": "test", **{f"v{i}": "train" for i in (0, 1, 2, 6)}}

    one = Before(was, 1, 1)

    def held(val: int, test: int, group=group, before=one, rows=rows) -> dict[str, str]:
        found = splits.select(rows, group, val, test, before)
        assert splits.leaks(rows, found) == []
        return {k.id: s for k, s in zip(rows, found, strict=True) if s != "train"}

    assert held(1, 1) == {"v5": "val", "v7": "test"}
    assert held(1, 1, before=None) == {"v0": "val", "v1": "test"}
    assert held(1, 1, before=Before(was, 2, 3)) == {"v5": "val", "v7": "test"}
    assert held(2, 1) == {"v5": "val", "v0": "val", "v7": "test"}  # a number that is raised takes from train
    assert held(2, 2, before=Before(was, 2, 2)) == {"v5": "val", "v3": "val", "v7": "test", "v4": "test"}
    assert held(0, 1) == {"v7": "test"}
    assert held(4, 4, before=Before(was, 4, 4)).keys() == {"v3", "v4", "v5", "v7", "v8"}  # there are no more
    # Relatives: a new one of a held-out video goes nowhere, one from train leaves it, of two splits one wins.
    assert held(1, 1, [0, 1, 2, 7, 4, 5, 6, 7, 8]) == {"v5": "val", "v7": "test", "v3": ""}
    assert held(1, 1, [0, 1, 2, 3, 4, 5, 5, 7, 8]) == {"v5": "val", "v6": "", "v7": "test"}
    assert held(1, 1, [0, 1, 2, 3, 4, 5, 6, 5, 8]) == {"v5": "val", "v7": "", "v3": "test"}
    assert held(1, 1, [0, 1, 2, 0, 4, 5, 6, 5, 8]) == {"v5": "val", "v7": "", "v4": "test"}  # v3 is kin of train
    moved = splits.select(rows, [0, 1, 2, 3, 4, 5, 5, 7, 8], 1, 1, one)
    assert splits.moved(rows, moved, one) == "1 from train to no split (a relative of a held-out video)"
    # Found by looking up alone: the track of v7.
    alike = [dataclasses.replace(k, track=rows[7].track) if k.id == "v4" else k for k in rows]
    assert held(1, 1, rows=alike) == {"v5": "val", "v7": "test", "v4": ""}


def test_of_two_duplicates_the_one_that_a_split_held_stays():
    rows = [known(n) for n in "abcd"]
    plain = {1: 0, 2: 0, 3: 0}
    assert splits.originals(rows, plain, Before()) == plain
    assert splits.originals(rows, plain, Before({"a": "train", "c": "train"})) == plain
    assert splits.originals(rows, plain, Before({"c": "train"})) == {0: 2, 1: 2, 3: 2}
    assert splits.originals(rows, plain, Before({"a": "train", "d": "test"})) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("kind", ["video", "track"])
def test_names_leak_too(kind):
    a = known("a")
    b = known("b", **{kind: getattr(a, kind)})
    assert splits.leaks([a, b], ["val", "train"]) == [splits.Leak(0, 1, kind)]
    assert splits.leaks([a, b], ["train", "test"]) == [splits.Leak(1, 0, kind)]
    assert splits.leaks([a, b], ["val", "val"]) == splits.leaks([a, b], ["val", ""]) == []
    nameless = [dataclasses.replace(x, **{kind: ""}) for x in (a, b)]
    assert splits.leaks(nameless, ["val", "train"]) == []


def test_empty_fingerprints_are_nobodys_relatives():
    empty = Prints(np.arange(4, dtype=np.uint32), np.zeros(4, np.uint64), np.zeros(50, np.uint32))
    rows = [known(n, where=empty) for n in "ab"] + [known(n, where=Prints()) for n in "cd"]
    assert splits.leaks(rows, ["val", "train", "test", "train"]) == []
    assert splits.leaks([], []) == []
    assert dedupe.compare(rows) == ({}, [0, 1, 2, 3])


def test_what_is_looked_up_is_what_comparing_all_pairs_finds():
    rows = [known(f"v{i}", video="", track="") for i in range(40)]
    for i in range(10, 30):  # from nothing in common to nearly all, at some offset
        mine, n = rows[i].prints, 4 * (i - 10)
        words = np.concatenate([mine.words[: N_WORDS - n], rows[0].prints.words[:n]])
        hashes = np.concatenate([mine.hashes[: N_PICTURES - n // 4], rows[0].prints.hashes[: n // 4]])
        rows[i] = dataclasses.replace(rows[i], where=Prints(mine.times, hashes, flip(words, [i])))
    found = {(x.other, x.by) for x in splits.leaks(rows, ["test", *["train"] * 39])}
    want = {(i, "picture") for i in range(1, 40) if same_picture(rows[0].prints, rows[i].prints)}
    want |= {(i, "sound") for i in range(1, 40) if same_sound(rows[0].prints, rows[i].prints)}
    assert found == want
    assert {(29, "picture"), (29, "sound")} < want
    assert 10 < len(want) < 30


def test_an_index_finds_pairs_with_enough_in_common_however_large_the_bucket(monkeypatch):
    keys = [np.array(k, np.uint64) for k in ([1, 2, 9], [1, 2], [1, 3], [], [9, 3, 1])]
    index = dedupe.Index(keys)
    assert index.pairs().tolist() == [[0, 1], [0, 4], [2, 4]]
    assert index.near(np.array([1 + 16, 9], np.uint64)).tolist() == [0, 4]  # 17 is one bit from 1
    assert dedupe.Index([]).pairs().tolist() == dedupe.Index([]).near(np.zeros(0, np.uint64)).tolist() == []
    rng = np.random.default_rng(0)
    many = [np.unique(rng.integers(0, 40, 8).astype(np.uint64)) << np.uint64(27) for _ in range(60)]
    whole = dedupe.Index(many).pairs().tolist()
    owners = [(i, j) for i in range(60) for j in range(i + 1, 60)]
    assert whole == [[i, j] for i, j in owners if len(np.intersect1d(many[i], many[j])) >= dedupe.HITS]
    monkeypatch.setattr(dedupe, "CHUNK", 7)  # in parts
    assert dedupe.Index(many).pairs().tolist() == whole
    top = np.array([2**33 - 1, 2**33 - 2], np.uint64)
    assert dedupe.Index([top, top]).near(top).tolist() == [0, 1]
    monkeypatch.setattr(dedupe, "CROWD", 1)
    crowd = dedupe.Index([np.array([5, 6], np.uint64)] * 50)
    assert crowd.pairs().tolist() == [[i, i + 1] for i in range(49)]
    assert len(crowd.near(np.array([5, 6], np.uint64))) == 50


def test_held_out_videos_against_many_are_quick():
    rows = [known(f"v{i}") for i in range(20_000)]
    start = time.process_time()
    assert splits.leaks(rows, ["val"] * 5 + ["train"] * 19_995) == []
    assert time.process_time() - start < 5


def test_correspondence_prefers_the_clips_own_music(monkeypatch):
    from vmas import config

    cfg, fps, s = config.load("mini").corpus, 9.6, 5.0

    def score(index: int, heard: int) -> float:
        seen = sample_spec("val", index, cfg, s)
        flow = np.zeros(round(s * fps) - 1)
        for t in seen.video_events_s:
            i = round(t * fps) - 1
            if 0 <= i < len(flow):
                flow[i] = 2.0
        return splits.correspondence(flow, np.array(sample_spec("val", heard, cfg, s).beats_s), fps, s)

    own = np.array([score(i, i) for i in range(40)])
    other = np.array([score(i, (i + 7) % 40) for i in range(40)])
    assert own.mean() > 0.2
    assert abs(other.mean()) < 0.08
    assert (own[:, None] > other[None]).mean() > 0.9
    assert splits.correspondence(np.zeros(47), np.array([1.0]), fps, s) == 0
    assert splits.correspondence(np.ones(47), np.zeros(0), fps, s) == 0
