"""Which videos a manifest names: files, tables of identifiers, ids of any names, errors that name the row."""

from pathlib import Path

import pandas as pd
import pytest

from vmas.dataset import shards
from vmas.dataset.manifest import read_manifest
from vmas.errors import DataError, UsageError


def manifest(tmp_path, rows, name="m.csv"):
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / name, index=False) if name.endswith("csv") else table.to_parquet(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_manifest_of_files_and_of_disco_10m(tmp_path, name):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "dQw4w9WgXcQ.webm").write_bytes(b"x")
    rows = [
        {"video_url_youtube": "https://www.youtube.com/watch?v=dQw4w9WgXcQ", "track_id_spotify": "t", "path": None},
        {"video_url_youtube": None, "track_id_spotify": None, "path": "a.b/my song.mp4"},
    ]
    a, b = read_manifest(manifest(tmp_path, rows, name), tmp_path / "media")
    assert (a.id, a.video, a.track, Path(a.path).name) == ("dQw4w9WgXcQ", "dQw4w9WgXcQ", "t", "dQw4w9WgXcQ.webm")
    assert (b.id, Path(b.path)) == ("my_song", tmp_path / "a.b" / "my song.mp4")


def test_file_names_of_any_letters_and_folders_are_told_apart(tmp_path):
    paths = [
        "a/live.mp4",
        "b/live.mp4",
        "c/plain-1.mp4",
        "my song.mp4",
        "夜に駆ける.mp4",
        "千本桜の歌.mp4",
        "x" * 90 + ".mp4",
    ]
    rows = [{"path": p, "start": ""} for p in paths] + [{"path": "gig.mp4", "start": s} for s in ("0", "300")]

    def ids(rows, folder=tmp_path):
        return [v.id for v in read_manifest(manifest(folder, rows))]

    found = ids(rows)
    assert len(set(found)) == len(rows)
    assert (found[2], found[3], found[6]) == ("plain-1", "my_song", "x" * 64)  # what is clear keeps its name
    assert [i.rpartition("-")[0] for i in (*found[:2], *found[4:6], *found[7:])] == [
        *("live", "live", "v_____", "v_____", "gig", "gig")
    ]
    assert all(shards.check_id(f"{i}-00003500") for i in found)
    (tmp_path / "elsewhere").mkdir()
    assert ids(rows[::-1], tmp_path / "elsewhere") == found[::-1]  # whatever the order and the machine's folders
    assert ids([rows[4]]) == [found[4]]  # and the other rows, for a name that lost letters
    assert ids([rows[0]]) == ["live"]
    mixed = [{"id": "live", "path": "x.mp4"}, {"id": "", "path": "a/live.mp4"}, {"id": "a.b"}, {"id": "a b"}]
    mixed = [{"path": "y.mp4", **row} for row in mixed]
    assert ids(mixed)[0] == "live"  # a given id stays
    assert len(set(ids(mixed))) == 4


def test_manifest_errors_name_the_row(tmp_path):
    with pytest.raises(DataError, match=r"m\.csv: an id or video comes more than once: a in rows 1, 3; keep one row"):
        read_manifest(manifest(tmp_path, [{"id": i, "path": i} for i in "aba"]))
    again = [{"url": f"https://youtu.be/{i:011}", "track": t} for i in range(5) for t in "xy"]
    with pytest.raises(DataError, match=r"0+ in rows 1, 2; 0+1 in .*; and 2 more; .* a column id, with start"):
        read_manifest(manifest(tmp_path, again))
    with pytest.raises(
        DataError, match=r"row 1 has an id alone.*vmas dataset download --manifest .*m\.csv.* --media DIR"
    ):
        read_manifest(manifest(tmp_path, [{"id": "dQw4w9WgXcQ"}]))
    with pytest.raises(DataError, match="row 2 has none of id, path and url"):
        read_manifest(manifest(tmp_path, [{"id": "", "path": "x"}, {"id": "", "path": ""}]))
    with pytest.raises(DataError, match="row 1: start must be seconds, 0 or more, got '-1'"):
        read_manifest(manifest(tmp_path, [{"id": "a", "path": "x", "start": "-1"}]))
    with pytest.raises(DataError, match="none of the columns id, path and url; columns found: name"):
        read_manifest(manifest(tmp_path, [{"name": "a"}]))
    with pytest.raises(DataError, match="no such file"):
        read_manifest(tmp_path / "other.csv")
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        read_manifest(tmp_path / "m.xlsx")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="not a readable manifest"):
        read_manifest(tmp_path / "bad.parquet")
