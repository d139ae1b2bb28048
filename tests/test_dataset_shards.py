"""Shards: bytes, index, refused names, damage; and that plain WebDataset reads them."""

import io
import json
import os
import tarfile

import numpy as np
import pandas as pd
import pytest

from vmas.dataset import shards
from vmas.errors import DataError


def sample(i, **more):
    return {
        "__key__": f"clip-{i:03d}",
        "tokens.npy": np.full((4, 10), i, np.int16),
        "json": {"id": f"clip-{i:03d}", "score": i / 4, "list": [1, 2]},
        **more,
    }


def make(folder, counts=(3, 2)):
    made, at = [], 0
    for k, n in enumerate(counts):
        made.append(shards.write_shard(folder / shards.shard_name(k), (sample(i) for i in range(at, at + n))))
        at += n
    shards.write_index(folder, made)
    return made


def tar_with(path, *names, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_what_is_written_is_read_in_order(tmp_path):
    make(tmp_path)
    got = list(shards.read_shards(tmp_path))
    assert [s["__key__"] for s in got] == [f"clip-{i:03d}" for i in range(5)]
    assert [np.load(io.BytesIO(s["tokens.npy"]))[0, 0] for s in got] == [0, 1, 2, 3, 4]
    assert json.loads(got[2]["json"]) == {"id": "clip-002", "score": 0.5, "list": [1, 2]}


def test_plain_webdataset_reads_and_decodes_them(tmp_path):
    import webdataset as wds

    make(tmp_path)
    data = wds.WebDataset([str(p) for p in sorted(tmp_path.glob("*.tar"))], shardshuffle=False).decode()
    got = list(data)
    assert [s["__key__"] for s in got] == [f"clip-{i:03d}" for i in range(5)]
    np.testing.assert_array_equal(got[4]["tokens.npy"], sample(4)["tokens.npy"])
    assert got[4]["json"]["score"] == 1.0


def test_equal_samples_give_equal_bytes(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    make(tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 12345.0)
    make(tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert len(names) == 6
    for n in names:
        assert (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes(), n
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "vmas", 0o444)}


def test_index_says_where_every_member_lies(tmp_path):
    make(tmp_path)
    samples, known = shards.read_index(tmp_path)
    assert samples["id"].tolist() == [f"clip-{i:03d}" for i in range(5)]
    assert samples["score"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert known["samples"].tolist() == [3, 2]
    row = samples.iloc[4]
    data = (tmp_path / row["shard"]).read_bytes()
    offset, size = row["tokens.npy:offset"], row["tokens.npy:size"]
    np.testing.assert_array_equal(np.load(io.BytesIO(data[offset : offset + size])), sample(4)["tokens.npy"])
    assert known["bytes"].tolist() == [p.stat().st_size for p in sorted(tmp_path.glob("*.tar"))]


def test_folder_without_index_is_read_through(tmp_path):
    make(tmp_path)
    with_index = shards.read_index(tmp_path)
    for p in [tmp_path / "index.parquet", *tmp_path.glob("*.json")]:
        p.unlink()
    samples, known = shards.read_index(tmp_path)
    pd.testing.assert_frame_equal(samples, with_index[0][samples.columns])
    assert known["sha256"].tolist() == with_index[1]["sha256"].tolist()
    assert shards.read_counts(tmp_path)["sha256"].tolist() == known["sha256"].tolist()


@pytest.mark.parametrize("index", [True, False])
def test_some_columns_of_the_index(tmp_path, index):
    make(tmp_path)
    every, known = shards.read_index(tmp_path)
    if not index:
        (tmp_path / "index.parquet").unlink()
    some, counts = shards.read_index(tmp_path, ["score", "id", "nowhere"])
    pd.testing.assert_frame_equal(some, every[["id", "score"]])
    assert counts["sha256"].tolist() == known["sha256"].tolist()


def test_missing_members_have_offset_minus_one(tmp_path):
    odd = [sample(0), sample(1, **{"a.b": b"xy"}), sample(2)]
    shard = shards.write_shard(tmp_path / "shard-000000.tar", odd)
    assert [m[0] >= 0 for m in shard.members["a.b"]] == [False, True, False]
    assert shards.index_shard(tmp_path / "shard-000000.tar").members == shard.members
    assert shards.read_mark(tmp_path / "shard-000000.tar") == shard


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "..\\x.json", "C:\\x.json"])
def test_members_that_lead_out_are_refused(tmp_path, name):
    path = tar_with(tmp_path / "evil.tar", "a.json", name)
    for verify in (True, False):
        with pytest.raises(DataError, match=r"evil\.tar: member .* is refused"):
            list(shards.read_shard(path, verify=verify))
    with pytest.raises(DataError, match="refused"):
        shards.read_index(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar"]


def test_links_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a plain file"):
        shards.index_shard(tar_with(tmp_path / "l.tar", "a.json", kind=tarfile.SYMTYPE))


@pytest.mark.parametrize("name", ["a.b", "../a", "", "__a__", "ä", "a" * 81, "a/b", "a b"])
def test_bad_ids_are_not_written(tmp_path, name):
    with pytest.raises(DataError, match="cannot be a sample's id"):
        shards.write_shard(tmp_path / "s.tar", [{"__key__": name, "txt": b"x"}])
    assert list(tmp_path.iterdir()) == []


def test_same_id_twice_is_not_written(tmp_path):
    with pytest.raises(DataError, match="twice"):
        shards.write_shard(tmp_path / "s.tar", [sample(1), sample(1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "header", "data", "empty"])
@pytest.mark.parametrize("marked", [True, False])
def test_damaged_shard_is_named_or_skipped(tmp_path, damage, marked):
    made = make(tmp_path)
    path = tmp_path / "shard-000000.tar"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "header":
        flip(path, made[0].members["tokens.npy"][1][0] - shards.BLOCK + 2)
    elif damage == "data":
        flip(path, made[0].members["tokens.npy"][1][0])
    else:
        path.write_bytes(b"")
    if not marked:
        path.with_suffix(".json").unlink()
    if not marked and damage == "data":  # nothing is left that could know
        assert len(list(shards.read_shards(tmp_path))) == 5
        return
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        list(shards.read_shards(tmp_path))
    bad: dict[str, str] = {}
    got = list(shards.read_shards(tmp_path, skip_bad=True, bad=bad))
    assert [s["__key__"] for s in got] == ["clip-003", "clip-004"]
    assert list(bad) == ["shard-000000.tar"]


def test_failing_writer_leaves_nothing(tmp_path):
    def samples():
        yield sample(0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        shards.write_shard(tmp_path / "s.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    aside = tmp_path / f".s.tar.{os.getpid()}"
    aside.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"s\.tar: cannot be written: No space left"):
        shards.write_shard(tmp_path / "s.tar", [sample(i) for i in range(40)])
    assert list(tmp_path.iterdir()) == []


def test_folder_without_shards(tmp_path):
    with pytest.raises(DataError, match="no shards"):
        shards.read_index(tmp_path)
    with pytest.raises(DataError, match="no shards"):
        list(shards.read_shards(tmp_path))


def test_index_that_names_a_file_outside_is_refused(tmp_path):
    make(tmp_path)
    known = pd.read_parquet(tmp_path / "shards.parquet")
    known.loc[0, "shard"] = "../other.tar"
    known.to_parquet(tmp_path / "shards.parquet")
    with pytest.raises(DataError, match="refused"):
        shards.read_index(tmp_path)
