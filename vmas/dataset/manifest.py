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

A row without id or YouTube address is named by its file, without the suffix. An id holds letters, digits, - and _, and
other signs become _; where letters are lost so, or files would share a name, a hash of the path (and start) as the
manifest has them follows the name.
"""

import contextlib
import hashlib
import os
import re
from collections import Counter
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
HASH = 8  # characters that tell names apart which would be the same
SHOWN = 3  # repeated ids that an error names
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
    with one twice, for ids alone without `media`, and for times that are negative or no numbers.
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

    def row(i: int) -> dict[str, str]:
        return {k: "" if v[i] is None else str(v[i]).strip() for k, v in columns.items()}

    given = [_given(path, i, row(i), media is not None) for i in range(len(table))]
    ids = _ids(given)
    _refuse_repeated(path, ids)
    folder = Path(media) if media else None
    out = [_video(path, i, row(i), given[i][0], ids[i], folder) for i in range(len(table))]
    if not out:
        raise DataError(f"{path}: the manifest has no rows")
    return out


def content_sha256(videos: Sequence[Video], progress: bool = False) -> list[str]:
    """A hash of every row: of what the manifest says, and of the file by name, size and its first and last `ENDS`
    bytes, so that a moved folder keeps its results and a file that was replaced does not. `progress` shows a bar."""
    from tqdm.auto import tqdm

    out: list[str] = []
    bar = tqdm(total=len(videos), desc="files", disable=None if progress else True)
    with bar, ThreadPoolExecutor(READERS) as pool:  # a network's files take their time to open
        for start in range(0, len(videos), CHUNK):
            for one in pool.map(_content, videos[start : start + CHUNK]):
                out.append(one)
                bar.update()
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


def _given(manifest: Path, i: int, row: dict[str, str], media: bool) -> tuple[str, str]:
    """What row i calls itself, in any letters, and what tells it from others of that name: of a file its whole path
    and the start."""
    name, path, url = row["id"], row["path"], row["url"]
    if name and not (path or url or media):
        raise DataError(
            f"{manifest}: row {i + 1} has an id alone, and no path or url: fetch the videos with 'vmas dataset download"
            f" --manifest {manifest} --to DIR', or name the folder that holds <id>.mp4 with --media DIR"
        )
    found = _YOUTUBE.search(url)
    if name := name or (found[1] if found else ""):
        return name, name
    if path:
        return Path(path).stem, f"{path} {row['start']}".strip()
    if url:
        return hashlib.sha1(url.encode()).hexdigest()[:16], url
    raise DataError(f"{manifest}: row {i + 1} has none of id, path and url")


def _ids(given: Sequence[tuple[str, str]]) -> list[str]:
    """The id of every row, of what `_given` says of it."""
    # WebDataset cuts an id at its first dot and passes over names that begin with two underscores.
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_ID] for name, _ in given]
    plain = [f"v{name}" if name.startswith("__") else name for name in plain]
    first: dict[str, str] = {}
    shared = {name for name, (_, one) in zip(plain, given, strict=True) if first.setdefault(name, one) != one}

    def told_apart(name: str, one: str) -> str:
        return f"{name[: MAX_ID - HASH - 1]}-{hashlib.sha1(one.encode()).hexdigest()[:HASH]}"

    return [
        name if whole.isascii() and (name not in shared or name == one) else told_apart(name, one)
        for name, (whole, one) in zip(plain, given, strict=True)
    ]


def _refuse_repeated(manifest: Path, ids: Sequence[str]) -> None:
    repeated = {name: [] for name, n in Counter(ids).items() if n > 1}
    if not repeated:
        return
    for i, name in enumerate(ids):
        if name in repeated:
            repeated[name].append(i + 1)
    shown = "; ".join(f"{k} in rows {', '.join(map(str, rows))}" for k, rows in [*repeated.items()][:SHOWN])
    more = f"; and {len(repeated) - SHOWN} more" if len(repeated) > SHOWN else ""
    raise DataError(
        f"{manifest}: an id or video comes more than once: {shown}{more}; keep one row of each, or name the rows apart"
        " in a column id, with start and duration for parts of one video"
    )


def _video(manifest: Path, i: int, row: dict[str, str], given: str, name: str, media: Path | None) -> Video:
    def seconds(key: str) -> float:
        try:
            value = float(row[key] or 0)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise DataError(f"{manifest}: row {i + 1}: {key} must be seconds, 0 or more, got {row[key]!r}")
        return value

    path, url = row["path"], row["url"]
    found = _YOUTUBE.search(url)
    file = (manifest.parent / path).absolute() if path else None
    if file is None and media is not None:
        file = next((f for s in SUFFIXES if (f := (media / f"{name}{s}").absolute()).is_file()), None)
    video = found[1] if found else url or path or given
    rest = {k: row[k] for k in ("artist", "track", "source", "licence")}
    return Video(name, str(file or ""), video, url=url, start=seconds("start"), duration=seconds("duration"), **rest)
