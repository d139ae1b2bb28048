"""Builds that are brought up to date: what is kept, what is made again, and that held-out videos stay held out."""

import dataclasses
import errno
import shutil
from pathlib import Path

import pandas as pd
import pytest
from dataset_files import FAST, content, make, options, video

from vmas.dataset import shards, stages, tasks
from vmas.dataset.build import build
from vmas.dataset.manifest import Video, content_sha256, read_manifest
from vmas.dataset.tasks import Make
from vmas.errors import DataError


@pytest.fixture(scope="module")
def plain(root, videos, tmp_path_factory):
    return make(videos, tmp_path_factory.mktemp("plain") / "out", root, test=1)


def test_a_file_replaced_by_one_of_equal_size_is_another_row(plain, root, videos, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(root, folder)
    rows = read_manifest(folder / "videos.csv")
    assert content_sha256(rows) == content_sha256(videos)  # a moved folder keeps its results
    assert content_sha256(rows, progress=True) == content_sha256(rows)
    shutil.copytree(plain.out, out)
    data = (folder / "v0.mp4").read_bytes()
    (folder / "v0.mp4").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = [v.id for v, a, b in zip(rows, content_sha256(rows), content_sha256(videos), strict=True) if a != b]
    assert changed == ["v0"]
    with pytest.raises(DataError, match="another manifest"):
        make(rows, out, root, test=1)


def test_more_rows_are_screened_alone_and_the_bytes_are_those_of_a_new_build(root, videos, tmp_path, monkeypatch):
    for i in range(2):
        video(tmp_path / f"more{i}.mp4", 300 + i)
    more = [*videos, *(Video(f"more{i}", str(tmp_path / f"more{i}.mp4"), f"more{i}") for i in range(2))]
    out = tmp_path / "out"
    make(videos, out, root)
    before = (out / "train" / "shard-000000.tar").stat().st_mtime_ns
    seen, look = [], stages.look
    steps = (lambda v, s, t: seen.append(v.id) or look(v, s, t), *stages.SCREEN_STEPS[1:])
    monkeypatch.setattr(tasks.Screen, "steps", steps)
    with pytest.raises(DataError, match="give --update"):
        make(more, out, root)
    assert make(more, out, root, update=True).kept["train"] == 18
    assert seen == ["more0", "more1"]
    assert (out / "train" / "shard-000000.tar").stat().st_mtime_ns == before
    assert content(out) == content(make(more, tmp_path / "new", root).out)
    # And back, with other clips: nothing of what was more stays, nothing is screened.
    seen.clear()
    make(videos, out, root, update=True, clips_per_video=1, test=1)
    assert seen == []
    assert content(out) == content(make(videos, tmp_path / "back", root, clips_per_video=1, test=1).out)
    make(videos, out, root, update=True, clips_per_video=1, test=0)
    assert not (out / "test").exists()


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The videos that are decoded to be screened."""
    seen, look = [], stages.look
    steps = (lambda v, s, t: seen.append(v.id) or look(v, s, t), *stages.SCREEN_STEPS[1:])
    monkeypatch.setattr(tasks.Screen, "steps", steps)
    return seen


def times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "train").glob("*.tar")}


def test_another_threshold_decodes_nothing_and_makes_the_shards_of_other_clips_alone(
    plain, root, videos, tmp_path, looked
):
    out, new = tmp_path / "out", tmp_path / "new"
    index = pd.concat([shards.read_index(plain.out / s)[0] for s in ("train", "test")])
    scores = dict(zip(index["video"], index["similarity"], strict=True))
    *first, a, b, c, d, e = sorted(videos, key=lambda v: scores.get(v.id, 0))
    videos, strict = [*first, a, d, e, b, c], scores[d.id]
    done = make(videos, out, root)
    before, hours, seconds = times(out), done.video_hours, done.seconds["similarity"]
    looked.clear()
    less = make(videos, out, root, update=True, threshold=strict)
    assert looked == []
    assert {r.id for r in less.ledger if r.stage == "similarity"} == {d.id, e.id, "still"}
    assert less.video_hours == pytest.approx(hours)
    assert less.seconds["similarity"] == pytest.approx(seconds)  # the same videos were looked at
    stay = {s for s, t in times(out).items() if before[s] == t}
    assert 0 < len(stay) < len(times(out))
    fresh = make(videos, new, root, threshold=strict)
    assert content(out) == content(new)
    assert less.ledger == fresh.ledger
    looked.clear()
    make(videos, out, root, update=True)
    assert looked == []
    make(videos, new, root, update=True)  # nothing but the score is known of those that were too similar
    assert set(looked) == {d.id, e.id}
    assert content(out) == content(new)
    kept = times(out)
    make(videos, out, root, update=True, test=1)
    assert any(times(out)[s] == t for s, t in kept.items() if s in times(out))


def test_seconds_and_hours_are_of_the_same_videos(root, videos, tmp_path):
    out = tmp_path / "out"
    every = make(videos, out, root)
    some = make([v for v in videos if v.id in ("v2", "v5", "still")], out, root, update=True)
    assert some.video_hours == pytest.approx(every.video_hours * 3 / 10, rel=0.02)
    for stage in ("probe", "similarity", "duplicates"):
        assert some.rates[stage] == pytest.approx(every.rates[stage], rel=1e-3)


def splits_of(out: Path) -> dict[str, str]:
    folders = [out / s for s in ("train", "val", "test") if (out / s).is_dir()]
    return {v: f.name for f in folders for v in shards.read_index(f)[0]["video"]}


def test_an_update_keeps_what_is_held_out(root, videos, tmp_path):
    out, said, skip = tmp_path / "out", [], FAST

    def update(rows, **numbers) -> dict[str, str]:
        said.clear()
        o = options(root, skip=skip, **numbers)
        done = build(rows, out, o, workers=1, progress=False, say=said.append, update=True)
        ledger.update({r.id: r.stage for r in done.ledger})
        said[:] = [line for line in said if "warning" in line]
        return splits_of(out)

    ledger: dict[str, str] = {}
    videos = [v for v in videos if v.id != "silent"]  # passes, and has no clip
    first = update(videos, val=1, test=1)
    assert (sorted(first.values()), said) == ([*["test"], *["train"] * 5, "val"], [])
    new = content(out)
    assert update(videos) == first
    assert (content(out), said) == (new, [])  # the same build, also without the numbers
    (out / ".build" / "plan.json").write_text('{"format": 2}')  # of a version that did not keep the numbers there
    assert (update(videos), said) == (first, [])
    test, val = ({s: v for v, s in first.items()}[s] for s in ("test", "val"))
    by_id = {v.id: v for v in videos}
    more = [Video(f"more{i}", str(video(tmp_path / f"more{i}.mp4", 300 + i)), f"more{i}") for i in range(3)]
    same_track = dataclasses.replace(more[0], artist="A", track=by_id[test].track)
    copy = dataclasses.replace(by_id[val], id="first", video="first", artist="", track="")
    rows = [copy, same_track, more[1], *videos]
    assert update(rows) == first | {"more1": "train"}
    assert (ledger["first"], ledger["more0"], said) == ("duplicates", "splits", [])
    grown = content(out)
    make(rows, out, root, val=1, test=1)
    assert content(out) == grown
    rows = [v for v in rows if v.id not in (test, "more0")]
    assert update(rows) == {v: s for v, s in first.items() if v != test} | {"more1": "train"}
    assert said == ["warning: 0 of 1 test videos: too few that were not in train before"]
    kept = update([*rows, more[2]])
    assert (kept["more2"], kept[val], kept["more1"], said) == ("test", "val", "train", [])
    back = update([*rows, more[2], by_id[test]])  # two that were held out, for one place
    assert sorted((back[test], back["more2"])) == ["test", "train"]
    assert said == ["warning: videos change their split: 1 from test to train"]
    two = update([*rows, more[2], by_id[test]], val=2)
    assert (two[val], list(two.values()).count("val"), list(two.values()).count("test")) == ("val", 2, 1)
    assert "train to val" in said[0]
    none = update(rows, val=0, test=0)
    assert set(none.values()) == {"train"}
    assert content(out) == content(make(rows, tmp_path / "new", root, val=0, test=0).out)


def test_an_update_that_was_stopped_goes_on_and_is_not_whole_meanwhile(plain, root, videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(videos, out, root)
    monkeypatch.setattr(Make, "__call__", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full", "x")))
    with pytest.raises(DataError, match="x: cannot be written: full"):
        make(videos, out, root, update=True, test=1)
    assert not list(out.rglob("dataset.json"))
    monkeypatch.undo()
    make(videos, out, root, test=1)
    assert content(out) == content(plain.out)
