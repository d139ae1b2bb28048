"""Held-out videos: a score that prefers music that fits, and no relative in another split, however hidden."""

import dataclasses
import time

import numpy as np
import pytest

from vmas.corpus import sample_spec
from vmas.dataset import dedupe, splits
from vmas.dataset.dedupe import Known

RNG = np.random.default_rng(0)


def fingerprint(n: int | None = None):
    draw = RNG.integers(1, 2**63, n or 1, dtype=np.uint64).tolist()
    return tuple(draw) if n else draw[0]


def known(name: str, **changes) -> Known:
    plain = Known(name, f"video of {name}", f"track of {name}", fingerprint(8), fingerprint(), float(RNG.random()))
    return dataclasses.replace(plain, **changes)


def flip(x: int, bits) -> int:
    for b in bits:
        x ^= 1 << int(b)
    return x


SPREAD = (3, 19, 35, 51)  # one bit in each 16-bit piece: dedupe's candidates miss such a pair


def test_a_relative_that_differs_in_every_piece_is_found_only_in_full():
    a = known("a", quality=2.0)
    b = known("b", sound=flip(a.sound, SPREAD))
    c = known("c", pictures=tuple(flip(p, SPREAD) for p in a.pictures))
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
    b = known("b", quality=8.0, sound=flip(a.sound, SPREAD))
    rows = [a, b, *(known(f"v{i}") for i in range(6))]
    _, group = dedupe.compare(rows)
    assert {x.by for x in splits.leaks(rows, dedupe.hold_out(rows, group, 1, 1))} == {"sound"}
    chosen = splits.select(rows, group, 1, 1)
    assert (chosen[1], sorted(s for s in chosen if s in ("val", "test"))) == ("", ["test", "val"])
    assert splits.leaks(rows, chosen) == []


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
    rows = [known(n, pictures=(0,) * 8, sound=0) for n in "ab"] + [known(n, pictures=()) for n in "cd"]
    assert splits.leaks(rows, ["val", "train", "test", "train"]) == []
    assert splits.leaks([], []) == []


def test_the_exhaustive_comparison_is_that_of_dedupe():
    rows = [known(f"v{i}", video="", track="") for i in range(30)]
    for i in range(10, 20):  # from no change to chance
        p = tuple(flip(x, RNG.choice(64, i - 10, replace=False)) for x in rows[0].pictures)
        p = (0, 0, *p[2:]) if i % 3 else p
        rows[i] = dataclasses.replace(
            rows[i], pictures=p, sound=flip(rows[0].sound, RNG.choice(64, i - 10, replace=False))
        )
    found = {(x.other, x.by) for x in splits.leaks(rows, ["test", *["train"] * 29])}
    want = {(i, "picture") for i in range(1, 30) if dedupe.same_picture(rows[0].pictures, rows[i].pictures)}
    want |= {(i, "sound") for i in range(1, 30) if dedupe.same_sound(rows[0].sound, rows[i].sound)}
    assert found == want
    assert len(want) > 10


def test_a_held_out_video_against_many_is_quick():
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
