"""`vmas dataset download`: the videos of a manifest that are addresses or YouTube ids, fetched with yt-dlp.

yt-dlp is the extra `download`; nothing else needs it. It runs as its own program, one video at a time, slowly: what a
site allows, and what the owner of a video allows, is for the user to know. Files are named `<id>.<ext>`, which
`vmas dataset build --media` finds. A folder that holds a video already is not asked for it again.
"""

import csv
import importlib.util
import io
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmas.dataset import shards
from vmas.dataset.manifest import SUFFIXES, Video
from vmas.errors import DataError, UsageError

LOG = "downloads.csv"
COLUMNS = ("id", "url", "licence", "outcome", "problem")
HERE, FETCHED, BROKEN = "here", "fetched", "failed"
REFUSED = 10  # failures one after the other: the site does not want us, and going on makes it worse
# Clips are made at 224 pixels; a file that needs no joining comes first, since joining needs ffmpeg.
FORMAT = "b[height<=480][ext=mp4]/b[height<=480]/bv*[height<=480]+ba/b"
_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}")
NOTE = (
    "The videos stay their owners', whatever the licence of a list that names them. Download only what the site's"
    " terms and the owner's licence let you, keep the licence column, and do not pass the files on."
)

Run = Callable[[list[str], Path], subprocess.CompletedProcess]


@dataclass(frozen=True)
class Limits:
    """How slowly: bytes a second ("2M"), s between two requests of one video, s between two videos."""

    rate: str = "2M"
    request_s: float = 1.0
    pause_s: float = 5.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMG]?", self.rate) or min(self.request_s, self.pause_s) < 0:
            raise UsageError(f"a rate is bytes a second such as 500K or 2M, pauses are 0 s or more; got {self.rate!r}")


def address(video: Video) -> str:
    """Where the video is: its url, or that of its YouTube id; "" for another kind of row."""
    if re.match(r"https?://", video.url):
        return video.url
    return f"https://www.youtube.com/watch?v={video.video}" if _YOUTUBE.fullmatch(video.video) else ""


def wanted(videos: Sequence[Video]) -> list[Video]:
    """Rows without a file that have an address; rows that cut the same file apart are one each."""
    return [v for v in videos if not v.path and address(v)]


def _named(videos: Sequence[Video], folder: Path) -> list[Video]:
    """Rows with an address whose file is or will be in `folder`."""
    return [v for v in videos if address(v) and (not v.path or Path(v.path).parent == folder.absolute())]


def command(video: Video, limits: Limits) -> list[str]:
    """yt-dlp for one video, to be run in the folder that takes the file."""
    return [
        *(sys.executable, "-m", "yt_dlp", "--ignore-config", "--quiet", "--no-progress", "--no-playlist"),
        *("--no-overwrites", "--continue", "--retries", "3", "--socket-timeout", "30"),
        *("--match-filters", "!is_live", "--max-filesize", "2G"),
        *("--limit-rate", limits.rate, "--sleep-requests", f"{limits.request_s:g}"),
        *("--format", FORMAT, "--merge-output-format", "mp4", "--output", f"{video.id}.%(ext)s"),
        *("--", address(video)),
    ]


def download(
    videos: Sequence[Video],
    folder,
    limits: Limits | None = None,
    run: Run | None = None,
    pause: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda _: None,
) -> Counter[str]:
    """Fetch what `folder` lacks; counts by "here", "fetched" and "failed". `downloads.csv` in the folder says it of
    every row that was ever asked for, with its address and licence: a row once fetched stays as it is.

    `run(command, folder)` starts a program. Raises UsageError when the extra is missing, DataError when the site
    refuses ten videos one after the other, or the folder or its log cannot be read or written.
    """
    if run is None:
        run = _run
        if importlib.util.find_spec("yt_dlp") is None:
            raise UsageError("downloading needs yt-dlp: pip install 'vmas[download]'")
    folder, limits = Path(folder), limits or Limits()
    say(note(videos))
    log, counts, in_a_row, asked = _read_log(folder / LOG), Counter[str](), 0, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for video in _named(videos, folder):
            problem, outcome = "", HERE
            if not _file(video, folder):
                if asked:
                    pause(limits.pause_s)
                asked, done = True, run(command(video, limits), folder)
                outcome = FETCHED if done.returncode == 0 and _file(video, folder) else BROKEN
                problem = "" if outcome == FETCHED else _last_line(done.stderr) or "no file came of it"
                in_a_row = 0 if outcome == FETCHED else in_a_row + 1
            counts[outcome] += 1
            if outcome != HERE or log.get(video.id, {}).get("outcome") != FETCHED:
                row = (video.id, address(video), video.licence, outcome, problem)
                log[video.id] = dict(zip(COLUMNS, row, strict=True))
            if in_a_row >= REFUSED:
                raise DataError(
                    f"{REFUSED} videos failed one after the other, the last with: {problem}; try again later"
                )
    except OSError as e:
        raise DataError(f"{e.filename or folder}: cannot be written: {e.strerror or e}") from e
    finally:
        if counts:
            shards.write_text(folder / LOG, _csv(log.values()))
    return counts


def note(videos: Sequence[Video]) -> str:
    """What the user must know first: how many, under which licences, and whose they are."""
    licences = Counter(v.licence or "no licence said" for v in wanted(videos))
    said = ", ".join(f"{n} x {name}" for name, n in sorted(licences.items())) or "none"
    return f"{sum(licences.values())} videos to have ({said}). {NOTE}"


def _run(line: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _file(video: Video, folder: Path) -> bool:
    return any((folder / f"{video.id}{s}").is_file() for s in SUFFIXES)


def _last_line(text: str | None) -> str:
    lines: Iterator[str] = (line.strip() for line in reversed((text or "").splitlines()))
    return next((line[:300] for line in lines if line), "")


def _read_log(path: Path) -> dict[str, dict[str, str]]:
    """id → row of the log, {} where there is none. Raises DataError."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            table = csv.DictReader(f)
            rows = list(table)
        if table.fieldnames != [*COLUMNS] or any(None in {*row, *row.values()} for row in rows):
            raise ValueError("it has other columns")
        return {row["id"]: row for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"{path}: is no log of downloads: {e}; move it elsewhere") from e


def _csv(rows: Iterable[dict[str, str]]) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()
