"""Batches from shards: exactly once an epoch, the same on any split into processes and workers, from any step."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import vmas.dataset
from vmas import config
from vmas.dataset import shards
from vmas.dataset.features import write_features
from vmas.dataset.stream import ROWS as STREAM_ROWS
from vmas.dataset.stream import Ahead, ShardSource, epoch_order, load_npy
from vmas.errors import DataError, UsageError
from vmas.features import SplitFeatures
from vmas.training.data import ROWS, Source
from vmas.training.tasks import vmas_data

PROFILE = config.load("smoke")
N = 47


def split(n=N, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (n, PROFILE.clip.num_frames, 8, 8, 3), np.uint8)
    tokens = rng.integers(0, 64, (n, 4, PROFILE.num_tokens), np.int16)
    flow = rng.random((n, PROFILE.clip.num_frames - 1)).astype(np.float32)
    beats = rng.random((n, PROFILE.num_tokens)) < 0.1
    ids = [f"train-{i:05d}" for i in range(n)]
    table = pd.DataFrame({"id": ids, "genre": "rock", "index": np.arange(n)})
    none = np.zeros((n, 0), np.float32)
    return SplitFeatures(ids, np.zeros(n, int), table, frames, flow, none, none, beats, none, tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_features(split(), tmp_path_factory.mktemp("features") / "train", PROFILE, shard_size=6)


def source(folder, **kw) -> ShardSource:
    return vmas.dataset.open(folder, **({"fields": ["codes"], "group": 3} | kw))


def rows(loader) -> list[list[int]]:
    return [b[ROWS].tolist() for b in loader]


def test_content_equals_the_arrays_in_memory(folder):
    here, there = vmas_data(split(), PROFILE), vmas.dataset.open(folder)
    assert len(there) == len(here) == N
    a, b = here.__getitems__([46, 0, 13]), there.__getitems__([46, 0, 13])
    assert a.keys() == b.keys() == {"frames", "codes", "weights", ROWS}
    for k in a:
        assert a[k].dtype == b[k].dtype
        assert torch.equal(a[k], b[k]), k
    assert torch.equal(there.first(4)["frames"], here.first(4)["frames"])
    assert STREAM_ROWS == ROWS


def test_weights_follow_the_options_asked_for(folder):
    other = dataclasses.replace(PROFILE.align, delta=9, alpha=0.2)
    here = vmas_data(split(), dataclasses.replace(PROFILE, align=other)).first(5)
    assert torch.equal(vmas.dataset.open(folder, align=other).first(5)["weights"], here["weights"])
    assert not torch.equal(vmas.dataset.open(folder).first(5)["weights"], here["weights"])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_clip_exactly_once_an_epoch_over_all_processes(folder, world):
    data: Source = source(folder)
    batch, epochs = 12 // world, 12  # N clips are no whole number of batches: 12 epochs are
    parts = [rows(data.loader(batch, 5, 0, N, rank, world)) for rank in range(world)]
    seen = [r for step in range(N) for part in parts for r in part[step]]
    for epoch in range(epochs):
        assert sorted(seen[epoch * N : (epoch + 1) * N]) == list(range(N)), epoch


def test_union_over_processes_depends_on_the_global_batch_alone(folder):
    data = source(folder)
    one = rows(data.loader(12, 7, 0, 9))
    for world in (2, 3):
        parts = [rows(data.loader(12 // world, 7, 0, 9, rank, world)) for rank in range(world)]
        assert [[r for p in parts for r in p[i]] for i in range(9)] == one


def test_continuation_equals_the_uninterrupted_run(folder):
    data = source(folder)
    whole = rows(data.loader(8, 3, 0, 23))
    for cut in (1, 5, 6, 17):
        assert rows(data.loader(8, 3, 0, cut)) + rows(data.loader(8, 3, cut, 23)) == whole


def test_epochs_and_seeds_differ_and_repeat(folder):
    data = source(folder)
    per_epoch = N // 8
    first, second = rows(data.loader(8, 3, 0, per_epoch)), rows(data.loader(8, 3, per_epoch, 2 * per_epoch))
    assert first != second
    assert first == rows(source(folder).loader(8, 3, 0, per_epoch))
    assert first != rows(data.loader(8, 4, 0, per_epoch))


def test_workers_change_nothing(folder):
    data = source(folder, fields=["codes", "weights"])
    here, there = list(data.loader(8, 1, 2, 9)), list(data.loader(8, 1, 2, 9, workers=2))
    assert len(here) == len(there) == 7
    for a, b in zip(here, there, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_order_is_one_permutation_that_keeps_to_groups_of_shards():
    shard_of = np.repeat(np.arange(10), 5)
    order = epoch_order(shard_of, 0, 0, group=2)
    assert sorted(order) == list(range(50))
    groups = shard_of[order].reshape(5, 10)
    assert all(len(set(g)) == 2 for g in groups)  # two shards at a time ...
    assert all(sorted(g) != g.tolist() for g in groups)  # ... mixed with each other
    assert order[:10].tolist() != sorted(order[:10].tolist())
    # golden: a change of the order would silently break the resumption of running trainings
    assert epoch_order(np.repeat(np.arange(4), 3), 1, 2, group=2).tolist() == GOLDEN


GOLDEN = [3, 10, 4, 9, 11, 5, 8, 2, 0, 1, 7, 6]


def test_only_the_columns_that_are_needed_are_read(folder, tmp_path):
    """What a source does not need of the index may even be damaged: titles and addresses of millions of clips."""
    shutil.copytree(folder, tmp_path / "train")
    index = tmp_path / "train" / "index.parquet"
    group = pq.ParquetFile(index).metadata.row_group(0)
    parts = {c.path_in_schema: c for c in (group.column(i) for i in range(group.num_columns))}
    with open(index, "r+b") as f:
        for name in ("genre", "frames.npy:offset"):
            f.seek(parts[name].dictionary_page_offset or parts[name].data_page_offset)
            f.write(b"\xff" * parts[name].total_compressed_size)
    with pytest.raises(DataError, match="not a readable index"):
        shards.read_index(tmp_path / "train")
    there, here = (source(x, fields=["codes"]) for x in (tmp_path / "train", folder))
    assert torch.equal(there.first(3)["codes"], here.first(3)["codes"])


def test_subset_of_rows(folder):
    chosen = np.array([40, 2, 3, 17, 30, 31])
    data = source(folder, rows=chosen)
    assert data.first(2)[ROWS].tolist() == [40, 2]
    assert sorted(r for b in rows(data.loader(2, 0, 0, 3)) for r in b) == sorted(chosen.tolist())
    with pytest.raises(DataError, match="0 … 46"):
        source(folder, rows=[47])


def copy(folder, to):
    to.mkdir()
    for p in folder.iterdir():
        (to / p.name).write_bytes(p.read_bytes())
    return to


def test_missing_and_shortened_shards_are_named_or_left_out(folder, tmp_path):
    bad = copy(folder, tmp_path / "bad")
    (bad / "shard-000001.tar").unlink()
    os.truncate(bad / "shard-000003.tar", 4096)
    with pytest.raises(DataError, match=r"shard-000001\.tar: is missing"):
        source(bad)
    data = source(bad, skip_bad=True)
    assert sorted(data.bad) == ["shard-000001.tar", "shard-000003.tar"]
    assert len(data) == N - 12
    got = sorted(r for b in rows(data.loader(5, 0, 0, 7)) for r in b)
    assert got == [i for i in range(N) if i // 6 not in (1, 3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_altered_member_is_noticed_when_it_is_read(folder, tmp_path, workers):
    bad = copy(folder, tmp_path / "bad")
    data = source(bad)
    offset = int(data.places["tokens.npy"][8][0]) + 200
    with open(bad / "shard-000001.tar", "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match=r"shard-000001\.tar: clip train-00008: tokens\.npy is damaged"):
        rows(data.loader(1, 0, 0, N, workers=workers))
    assert list(source(bad, skip_bad=True).bad) == ["shard-000001.tar"]


def test_read_ahead_stops_with_its_reader_and_hands_on_errors(folder):
    before = threading.active_count()
    it = iter(source(folder).loader(2, 0, 0, 1000))
    next(it)
    it.close()
    assert threading.active_count() == before

    def fail(x):
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(Ahead(fail, [[1]]))
    assert threading.active_count() == before


def test_too_few_clips_and_wrong_questions(folder):
    with pytest.raises(DataError, match="do not fill one batch"):
        source(folder).loader(24, 0, 0, 1, 0, 2)
    with pytest.raises(UsageError, match="did you mean codes"):
        source(folder, fields=["code"])
    with pytest.raises(UsageError, match="rank 2"):
        source(folder).loader(2, 0, 0, 1, 2, 2)


def test_fields_that_the_shards_lack(tmp_path):
    made = [shards.write_shard(tmp_path / "shard-000000.tar", [{"__key__": "a", "tokens.npy": np.zeros((4, 3), "i2")}])]
    shards.write_index(tmp_path, made)
    with pytest.raises(DataError, match=r"have no frames \(frames.npy or mp4\)"):
        vmas.dataset.open(tmp_path)
    assert source(tmp_path).first(1)["codes"].shape == (1, 4, 3)


def test_clips_of_other_lengths_are_named(tmp_path):
    odd = [{"__key__": f"a{i}", "tokens.npy": np.zeros((4, 3 + i), np.int16)} for i in range(2)]
    shards.write_index(tmp_path, [shards.write_shard(tmp_path / "shard-000000.tar", odd)])
    with pytest.raises(DataError, match="differ in the shape of their tokens"):
        source(tmp_path).first(2)


def test_writing_again_keeps_or_refuses(folder, tmp_path):
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    write_features(split(), folder, PROFILE, shard_size=6)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    with pytest.raises(DataError, match="another dataset"):
        write_features(split(seed=1), folder, PROFILE, shard_size=6)


def test_stopped_writing_is_no_dataset_and_is_finished_by_the_next(folder, tmp_path):
    half = copy(folder, tmp_path / "half")
    (half / "dataset.json").unlink()
    (half / "shard-000099.tar").write_bytes(b"left over")
    write_features(split(), half, PROFILE, shard_size=6)
    assert {p.name: p.read_bytes() for p in half.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.zeros(0, bool), np.asfortranarray(np.eye(3))])
def test_npy_in_memory(array):
    np.testing.assert_array_equal(load_npy(shards.encode(array)), array)
    with pytest.raises(ValueError):
        load_npy(b"no array")


def test_import_of_the_package_is_light():
    code = "import sys, vmas.dataset; sys.exit(bool({'torch', 'pandas', 'webdataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
