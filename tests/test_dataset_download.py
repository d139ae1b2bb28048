"""Downloading: what would be asked of yt-dlp, for which rows, how slowly; and what happens when it is not there."""

import importlib.util
import itertools
import subprocess
import sys

import pandas as pd
import pytest

from vmas import cli
from vmas.dataset import download as loader
from vmas.dataset.download import Limits, address, command, download, note, wanted
from vmas.dataset.manifest import Video, read_manifest
from vmas.errors import DataError, UsageError

ROWS = [
    {"id": "one", "url": "https://example.org/one.webm", "path": "", "licence": "CC-BY-4.0"},
    {"id": "dQw4w9WgXcQ", "url": "", "path": "", "licence": ""},
    {"id": "local", "url": "https://example.org/local", "path": "local.mp4", "licence": "CC0"},
    {"id": "nothing", "url": "file:///etc/passwd", "path": "", "licence": ""},
]


@pytest.fixture
def videos(tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "videos.csv", index=False)
    return read_manifest(tmp_path / "videos.csv", tmp_path / "media")


class Downloader:
    """Stands for the program: notes its command line and leaves a file, or fails."""

    def __init__(self, failing=()):
        self.lines, self.failing = [], failing

    def __call__(self, line, folder):
        self.lines.append(line)
        name = line[line.index("--output") + 1].removesuffix(".%(ext)s")
        if name in self.failing:
            return subprocess.CompletedProcess(line, 1, "", "WARNING: x\nERROR: Video unavailable\n\n")
        (folder / f"{name}.webm").write_bytes(b"video")
        return subprocess.CompletedProcess(line, 0, "", "")


def test_rows_with_an_address_and_no_file_are_wanted(videos):
    assert [v.id for v in wanted(videos)] == ["one", "dQw4w9WgXcQ"]
    assert address(videos[1]) == "https://www.youtube.com/watch?v=dQw4w9WgXcQ"
    assert address(videos[3]) == ""  # no file of this machine


def test_command_line(videos):
    line = command(videos[0], Limits("500K", 2, 9))
    assert line[:3] == [sys.executable, "-m", "yt_dlp"]
    assert line[-2:] == ["--", "https://example.org/one.webm"]  # an address is never read as an option
    given = {a: b for a, b in itertools.pairwise(line) if a.startswith("--")}
    assert (given["--limit-rate"], given["--sleep-requests"], given["--output"]) == ("500K", "2", "one.%(ext)s")
    assert {"--no-playlist", "--ignore-config"} <= given.keys()


def test_each_is_asked_for_once_with_pauses_between(videos, tmp_path):
    run, waited = Downloader(), []
    folder = tmp_path / "media"
    assert download(videos, folder, Limits(pause_s=7), run, waited.append) == {"fetched": 2}
    assert waited == [7]
    assert download(videos, folder, run=run, pause=waited.append) == {"here": 2}
    assert len(run.lines) == 2
    again = read_manifest(tmp_path / "videos.csv", folder)  # the builder finds them
    assert [v.path.endswith(f"media/{v.id}.webm") for v in again[:2]] == [True, True]


def test_a_failure_is_noted_and_the_rest_goes_on(videos, tmp_path):
    done = download(videos, tmp_path / "media", run=Downloader({"one"}), pause=lambda s: None)
    assert done == {"failed": 1, "fetched": 1}
    log = pd.read_csv(tmp_path / "media" / "downloads.csv", keep_default_na=False)
    assert log.to_dict("records")[0] == {
        "id": "one",
        "url": "https://example.org/one.webm",
        "licence": "CC-BY-4.0",
        "outcome": "failed",
        "problem": "ERROR: Video unavailable",
    }


def test_the_log_keeps_every_row_from_run_to_run(videos, tmp_path, monkeypatch, capsys):
    """As the command line has it, which finds what was fetched before in the folder."""
    folder = tmp_path / "media"
    line = ["dataset", "download", "--manifest", str(tmp_path / "videos.csv"), "--to", str(folder), "--pause", "0"]

    def run(*failing: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(loader, "_run", Downloader({*failing}))
        assert cli.main(line) == (1 if failing else 0)
        log = pd.read_csv(folder / "downloads.csv", keep_default_na=False)
        assert log["licence"].tolist() == ["CC-BY-4.0", ""]
        return list(zip(log["id"], log["outcome"], strict=True))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert run("dQw4w9WgXcQ") == [("one", "fetched"), ("dQw4w9WgXcQ", "failed")]
    assert run() == [("one", "fetched"), ("dQw4w9WgXcQ", "fetched")]
    assert run() == [("one", "fetched"), ("dQw4w9WgXcQ", "fetched")]
    assert "2 here" in capsys.readouterr().out
    pd.DataFrame([{"id": "two", "url": "https://example.org/two"}]).to_csv(tmp_path / "videos.csv")
    monkeypatch.setattr(loader, "_run", Downloader())
    assert cli.main(line) == 0  # another list: what the first asked for is still in the folder
    assert pd.read_csv(folder / "downloads.csv")["id"].tolist() == ["one", "dQw4w9WgXcQ", "two"]
    (folder / "downloads.csv").write_text("id,note\none,mine\n")
    assert cli.main(line) == 1
    assert "downloads.csv: is no log of downloads: it has other columns; move it elsewhere" in capsys.readouterr().err
    assert (folder / "downloads.csv").read_text() == "id,note\none,mine\n"


def test_a_site_that_refuses_is_left_alone(tmp_path):
    many = [Video(f"v{i}", "", f"v{i}", url=f"https://example.org/{i}") for i in range(30)]
    run = Downloader({v.id for v in many})
    with pytest.raises(DataError, match="10 videos failed one after the other, the last with: ERROR: Video"):
        download(many, tmp_path, run=run, pause=lambda s: None)
    assert len(run.lines) == 10
    assert len(pd.read_csv(tmp_path / "downloads.csv")) == 10


def test_licence_note_counts(videos):
    text = note(videos)
    assert text.startswith("2 videos to have (1 x CC-BY-4.0, 1 x no licence said). The videos stay their owners'")


def test_missing_extra_is_one_line(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vmas\[download\]'"):
        download(videos, tmp_path / "media")
    assert not (tmp_path / "media").exists()


@pytest.mark.parametrize("limits", [{"rate": "fast"}, {"rate": "0"}, {"pause_s": -1}])
def test_limits_are_checked(limits):
    with pytest.raises(UsageError, match="bytes a second"):
        Limits(**limits)


def test_dry_run_prints_the_commands(videos, tmp_path, capsys):
    line = ["dataset", "download", "--manifest", str(tmp_path / "videos.csv"), "--to", str(tmp_path / "media")]
    assert cli.main([*line, "--dry-run", "--limit-rate", "1M"]) == 0
    said = capsys.readouterr()
    assert said.out.count("yt_dlp") == 2
    assert "--limit-rate 1M" in said.out
    assert "stay their owners'" in said.err
    assert not (tmp_path / "media").exists()
