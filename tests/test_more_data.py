"""Further clips for stage 2: other draws of the same generator, behind the profile's own."""

import dataclasses

import numpy as np
import pytest
from dataset_files import tiny_world

from vmas import config, corpus, paths
from vmas.corpus import sample_spec
from vmas.errors import DataError, UsageError
from vmas.experiments import more_data, sweep, table5
from vmas.training.data import ROWS, ClipDataset, Joined


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with tiny_world(tmp_path_factory.mktemp("more")) as found:
        yield found


def test_they_are_other_clips_of_the_same_knobs():
    mini = config.load("mini")
    (other,) = more_data.profiles(mini, "twice")
    own, theirs = (dataclasses.asdict(p.corpus) for p in (mini, other))
    assert {k for k in own if own[k] != theirs[k]} == {"seed", "val", "test", "shifted"}
    assert other.name not in config.PROFILES
    clips = [[sample_spec("train", i, p.corpus, p.clip.seconds) for i in range(20)] for p in (mini, other)]
    assert not {tuple(s.beats_s) for s in clips[0]} & {tuple(s.beats_s) for s in clips[1]}
    assert more_data.composition(mini, "twice", 0) == {"clips": 2 * mini.corpus.train}
    assert more_data.profiles(mini, "fourfold")[0] == other, "a larger set begins with the smaller one's clips"
    assert more_data.composition(mini, "fourfold", 0) == {"clips": 4 * mini.corpus.train}


def test_a_run_with_further_clips_is_another_one():
    mini = config.load("mini")
    rows = {c.name: c for c in table5.CONDITIONS}
    once, twice = (sweep.Run("table5", rows[n], rows[n].of(mini), 1) for n in ("longer-music", "longer-twice"))
    assert once.profile == twice.profile, "the clips are all that differs"
    assert once.key() != twice.key()
    with pytest.raises(UsageError, match="did you mean twice"):
        more_data.get("twise")


def test_arrays_end_to_end_are_read_as_one():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 9, (n, 2, 3)).astype(np.int16) for n in (3, 1, 4)]
    whole, joined = np.concatenate(parts), Joined([Joined(parts[:2]), parts[2]])
    assert (joined.shape, joined.dtype, len(joined)) == (whole.shape, whole.dtype, 8)
    for rows in (slice(0, 8), slice(2, 5), slice(5, 99), np.array([7, 0, 3, 3]), np.array([], int)):
        assert np.array_equal(joined[rows], whole[rows])
        assert joined[rows].dtype == np.int16
    with pytest.raises(IndexError):
        joined[np.array([8])]
    order = [6, 1, 2]
    (a, b) = (ClipDataset({"x": x}, np.array([7, 6, 5, 4, 3, 2, 0])).__getitems__(order) for x in (whole, joined))
    assert all((a[k] == b[k]).all() for k in a)
    with pytest.raises(DataError, match="2 kinds"):
        Joined([parts[0], parts[1].astype(np.int32)])


@pytest.mark.slow
def test_stage_2_sees_both_and_all_else_is_the_profiles_own(world):
    from vmas.training.sources import CorpusData
    from vmas.training.stages import the_codec

    p, _ = world
    corpus.make(paths.corpus(p.name), p, ("train", "val"), 1, progress=False)
    codec = the_codec(p)
    own, found = CorpusData(p, codec, False), more_data.load(p, "twice", 0, codec, 1, False)
    n = own.clips("train")
    assert (found.clips("train"), found.clips("val")) == (2 * n, own.clips("val"))
    few, many = own.vmas("train"), found.vmas("train")
    assert len(many) == 2 * n
    a, b = few.first(n), many.first(2 * n)
    for k in a.keys() - {ROWS}:
        assert (a[k] == b[k][:n]).all(), k
    assert not (b["frames"][:n] == b["frames"][n:]).all()
    assert not (own.splits["train"].waveforms == found.further[0].waveforms).all(axis=1).any()
    assert list(found.vmas("train", np.array([0, n])).first(2)[ROWS]) == [0, n]
    x, y = (d.vmas("val").first(4) for d in (own, found))
    assert all((x[k] == y[k]).all() for k in x if k != ROWS)
    assert found.keys == ("", more_data.key(p, "twice", 0))
