"""The list of videos to build from: CSV or parquet, one row a video, under our column names or DISCO-10M's.

| column | meaning | also known as |
|---|---|---|
| id | unique name of the row | video_id, youtube_id, video_id_youtube |
| path | local file, relative to the manifest's folder | file, video |
| url | address of the video; its YouTube id is the id where there is no other | video_url, video_url_youtube |
| artist, track | who plays what; never both trained on and held out | artist_id_spotify, track_id_spotify, ... |
| start, duration | the part to use, s | start_s, duration_s, video_duration_youtube_sec |
| source, licence | where the row is from, and under which licence | dataset, license |

The names of DISCO-10M are those of its published tables (Lanzendörfer et al. 2023); other columns are left aside.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmas.config import sha256
from vmas.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "video_id", "youtube_id", "video_id_youtube"),
    "path": ("path", "file", "video"),
    "url": ("url", "video_url", "video_url_youtube"),
    "artist": ("artist", "artist_id_spotify", "primary_artist_name_spotify", "artist_name"),
    "track": ("track", "track_id_spotify", "track_name_spotify", "track_name"),
    "start": ("start", "start_s"),
    "duration": ("duration", "duration_s", "video_duration_youtube_sec"),
    "source": ("source", "dataset"),
    "licence": ("licence", "license"),
}
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".m4v")
_YOUTUBE = re.compile(r"(?:v=|youtu\.be/|/embed/|/shorts/)([A-Za-z0-9_-]{11})")
MAX_ID = 64  # a clip's id adds its start
ENDS = 1 << 16  # bytes; an mp4's tables lie at one of its ends
READERS, CHUNK = 16, 4096


@dataclass(frozen=True)
class Video:
    """One row. `path` is absolute, or "" where the video is not on this machine; `duration` s, 0 = to the end."""

    id: str
    path: str
    video: str  # which source video it is: rows that cut the same one differ in id and share this
    url: str = ""
    artist: str = ""
    track: str = ""
    start: float = 0.0
    duration: float = 0.0
    source: str = ""
    licence: str = ""


def read_manifest(path, media=None) -> list[Video]:
    """Rows of a manifest, in its order. `media` is a folder that holds `<id>.mp4` (or .mkv, .webm, ...) for rows that
    name no file.

    Raises UsageError for another kind of file, DataError for a missing or unreadable one, for rows without an id or
    with one twice, and for times that are negative or no numbers.
    """
    path = Path(path)
    table = _read(path)
    names = {ours: next((c for c in known if c in table), None) for ours, known in COLUMNS.items()}
    if not names["id"] and not names["path"] and not names["url"]:
        raise DataError(
            f"{path}: has none of the columns id, path and url; columns found: {', '.join(map(str, table.columns))}"
        )
    # pandas' nullable columns hold NA, which no comparison tells from a value
    columns = {
        ours: [None if gone else x for x, gone in zip(table[c].tolist(), table[c].isna(), strict=True)]
        if c
        else [None] * len(table)
        for ours, c in names.items()
    }
    out, seen = [], {}
    for i in range(len(table)):
        one = _video(path, i, {k: v[i] for k, v in columns.items()}, Path(media) if media else None)
        if one.id in seen:
            raise DataError(f"{path}: row {i + 1} has the id {one.id} of row {seen[one.id] + 1}")
        seen[one.id] = i
        out.append(one)
    if not out:
        raise DataError(f"{path}: the manifest has no rows")
    return out


def content_sha256(videos: Sequence[Video]) -> list[str]:
    """A hash of every row: of what the manifest says, and of the file by name, size and its first and last `ENDS`
    bytes, so that a moved folder keeps its results and a file that was replaced does not."""
    out: list[str] = []
    with ThreadPoolExecutor(READERS) as pool:  # a network's files take their time to open
        for start in range(0, len(videos), CHUNK):
            out += pool.map(_content, videos[start : start + CHUNK])
    return out


def _content(v: Video) -> str:
    size, ends = -1, ""
    # A file that cannot be read is the probe's to report.
    with contextlib.suppress(OSError), open(v.path or os.devnull, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        digest = hashlib.sha256(f.read(ENDS))
        f.seek(max(0, size - ENDS))
        digest.update(f.read(ENDS))
        ends = digest.hexdigest()
    known = asdict(v) | {"path": Path(v.path).name}  # `video` still holds the path as the manifest has it
    return sha256([*known.values(), size, ends])


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{path}: a manifest is a .csv or .parquet file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable manifest: {' '.join(str(e).split())[:200]}") from e


def _video(manifest: Path, i: int, row: dict, media: Path | None) -> Video:
    def text(key: str) -> str:
        value = row[key]
        return "" if value is None else str(value).strip()

    def seconds(key: str) -> float:
        try:
            value = float(text(key) or 0)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise DataError(f"{manifest}: row {i + 1}: {key} must be seconds, 0 or more, got {row[key]!r}")
        return value

    name, path, url = text("id"), text("path"), text("url")
    found = _YOUTUBE.search(url)
    name = name or (found[1] if found else "") or Path(path).stem or (hashlib.sha1(url.encode()).hexdigest()[:16])
    if not (name and (path or url or media)):
        raise DataError(f"{manifest}: row {i + 1} has no id, or neither path nor url")
    # WebDataset cuts an id at its first dot; ids differing only in such characters would be refused as doubles.
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_ID]
    name = f"v{name}" if name.startswith("__") else name
    file = (manifest.parent / path).absolute() if path else None
    if file is None and media is not None:
        file = next((f for s in SUFFIXES if (f := (media / f"{name}{s}").absolute()).is_file()), None)
    video = found[1] if found else url or path or name
    rest = {k: text(k) for k in ("artist", "track", "source", "licence")}
    return Video(name, str(file or ""), video, url=url, start=seconds("start"), duration=seconds("duration"), **rest)
