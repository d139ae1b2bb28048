"""WebDataset tar shards: written whole and byte for byte repeatable, read with every name and byte checked.

A sample is a run of members that share their id: `<id>.frames.npy` (uint8 [T,H,W,3]) or `<id>.mp4`,
`<id>.tokens.npy` (int16 [K,t_a]), `<id>.flow.npy` (float32 [t_v-1], pixels a frame), `<id>.beats.npy` (P_a, bool
[t_a]), `<id>.weights.npy` (P_av, float32 [t_a]), `<id>.flac` (the music), `<id>.json` (what is known of it). Any
WebDataset reader takes the tar files. Beside each stands `<shard>.json` with its sha256 and where every member
lies, so that a sample can be read alone; `index.parquet` repeats that for the whole folder. A shard without its
JSON file is not finished.

Format: https://github.com/webdataset/webdataset (one tar file is a run of samples, keyed up to the first dot).
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from vmas.config import Profile

FORMAT = 1
INDEX, SHARDS, MARK = "index.parquet", "shards.parquet", "dataset.json"
OWNER = "vmas"  # every member's user and group: tar headers must not depend on who ran the builder
ABSENT = (-1, 0, 0)
PARTS = ("offset", "size", "crc32")
BLOCK = 512
KEY, JSON = "__key__", "json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_SUFFIX = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


@dataclass(frozen=True)
class Shard:
    """What is known of one tar file.

    `members[suffix][i]` is (offset, size, crc32) of sample i in bytes of the file, offset -1 where the sample
    has no such member. `rows[i]` holds the plain values of the sample's JSON, `stats` what the writer counted.
    """

    name: str
    bytes: int
    sha256: str
    ids: list[str]
    members: dict[str, list[tuple[int, int, int]]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def shard_name(i: int) -> str:
    """`shard-000017.tar`."""
    return f"shard-{i:06d}.tar"


def check_id(name: str) -> str:
    """`name`, when it can be a sample's id: letters, digits, - and _, at most 80. Raises DataError."""
    # WebDataset cuts the id at the first dot and passes over names that begin and end with two underscores.
    if not _ID.fullmatch(name) or name.startswith("__"):
        raise DataError(f"{name!r} cannot be a sample's id: use letters, digits, '-' and '_', at most 80")
    return name


def check_member(name: str, source="") -> str:
    """`name`, unless it could leave the folder it is unpacked into. Raises DataError naming `source`."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name) or "\0" in name or not path.parts:
        raise DataError(f"{source}: member {name!r} is refused: its name is absolute or leads out of the folder")
    return name


def encode(value) -> bytes:
    """Bytes of a member: an array as .npy, a dict as JSON with sorted keys, bytes and text as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(value), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def write_shard(path, samples: Iterable[dict[str, Any]], stats: dict[str, Any] | None = None) -> Shard:
    """Write one shard and its JSON file; equal samples give equal bytes, and the files appear whole or not at all.

    A sample is {"__key__": id, suffix: value, ...} with values as in `encode`. Raises DataError for an id twice or
    a bad name, and when the disk does not take it (a full disk leaves nothing behind).
    """
    from webdataset import TarWriter

    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    seen: set[str] = set()
    rows = []
    try:
        path.with_suffix(".json").unlink(missing_ok=True)  # the old mark must not vouch for the new bytes
        with open(aside, "wb") as out:
            with TarWriter(out, user=OWNER, group=OWNER, mode=0o444, compress=False, encoder=False, mtime=0) as tar:
                for sample in samples:
                    name = check_id(sample[KEY])
                    if name in seen:
                        raise DataError(f"{path}: sample {name} comes twice")
                    seen.add(name)
                    for suffix in sample.keys() - {KEY}:
                        if not _SUFFIX.fullmatch(suffix):
                            raise DataError(f"{path}: {name}.{suffix} is no member's name")
                    rows.append(_plain(sample.get(JSON, {})))
                    tar.write({KEY: name, **{k: encode(v) for k, v in sample.items() if k != KEY}})
            out.flush()
            os.fsync(out.fileno())
        shard = index_shard(aside, path.name)
        shard = Shard(shard.name, shard.bytes, shard.sha256, shard.ids, shard.members, rows, stats or {})
        os.replace(aside, path)
        write_text(path.with_suffix(".json"), json.dumps(_as_dict(shard), sort_keys=True) + "\n")
    except OSError as e:
        raise DataError(f"{path}: cannot be written: {e.strerror or e}") from e
    finally:
        aside.unlink(missing_ok=True)
    return shard


def _plain(meta: dict) -> dict:
    return {k: v for k, v in meta.items() if isinstance(v, (str, int, float, bool)) or v is None}


def _as_dict(shard: Shard) -> dict:
    return {"format": FORMAT, **shard.__dict__, "samples": len(shard)}


def index_shard(path, name: str | None = None) -> Shard:
    """Read a whole tar file: its sha256, its ids and where each member lies.

    Raises DataError naming the file when it is truncated or damaged, or when a member's name is refused.
    """
    path = Path(path)
    ids: dict[str, int] = {}
    members: dict[str, list[tuple[int, int, int]]] = {}
    try:
        with open(path, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
            for info in tar:
                check_member(info.name, path)
                if not info.isreg():
                    raise DataError(f"{path}: member {info.name!r} is refused: it is not a plain file")
                key, _, suffix = info.name.partition(".")
                row = ids.setdefault(check_id(key), len(ids))
                if row != len(ids) - 1:
                    raise DataError(f"{path}: the members of sample {key} do not stand together")
                f.seek(info.offset_data)
                data = f.read(info.size)
                if len(data) < info.size:
                    raise DataError(f"{path}: is truncated in {info.name}")
                column = members.setdefault(suffix.lower(), [])
                column += [ABSENT] * (row - len(column))
                if len(column) > row:
                    raise DataError(f"{path}: member {info.name} comes twice")
                column.append((info.offset_data, info.size, zlib.crc32(data)))
            # tarfile takes a damaged header for the end of the archive; a real end is two blocks of zeros
            f.seek(tar.offset)
            rest = f.read()
        if len(rest) < 2 * BLOCK or rest.strip(b"\0"):
            raise DataError(f"{path}: is truncated or damaged after sample {next(reversed(ids), 'none')}")
        sha256 = _sha256(path)
    except (tarfile.TarError, EOFError) as e:
        raise DataError(f"{path}: is no readable tar file: {e}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
    for column in members.values():
        column += [ABSENT] * (len(ids) - len(column))
    return Shard(name or path.name, path.stat().st_size, sha256, list(ids), members)


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_mark(path) -> Shard | None:
    """What `<shard>.json` says of the tar file `path`; None where it is missing, damaged or of another size."""
    path = Path(path)
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["name"] != path.name or found["bytes"] != path.stat().st_size:
            return None
        members = {k: [(int(o), int(n), int(c)) for o, n, c in v] for k, v in found["members"].items()}
        return Shard(
            found["name"], found["bytes"], found["sha256"], found["ids"], members, found["rows"], found["stats"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify_shard(path, expected: str | None = None) -> str:
    """ "" when the file's sha256 is `expected` (default: what its JSON file says), else what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        return "is missing"
    if expected is None:
        mark = read_mark(path)
        if mark is None:
            return "is not finished: its JSON file is missing or does not fit"
        expected = mark.sha256
    try:
        return "" if _sha256(path) == expected else "differs from its sha256: it is damaged"
    except OSError as e:
        return f"cannot be read: {e.strerror or e}"


def check_shard(path) -> None:
    """Raise DataError naming the file unless it is whole: by its sha256, or walked through where none is known."""
    if read_mark(path) is None:
        index_shard(path)
    elif problem := verify_shard(path):
        raise DataError(f"{path}: {problem}")


def read_shard(path, verify: bool = True) -> Iterator[dict[str, Any]]:
    """The samples of one tar file in order, as WebDataset gives them: {"__key__", "__url__", suffix: bytes}.

    The file is checked before the first sample: against its sha256 where it has a JSON file, else by walking
    through it (`verify=False` leaves that out). Raises DataError for a damaged file or a refused member.
    """
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    path = Path(path)
    if verify:
        check_shard(path)

    def files(f):
        # The check comes before WebDataset's own passing over of names that it takes for metadata.
        for one in tar_file_iterator(f, skip_meta=None, rename_files=lambda n: check_member(n, path)):
            yield {**one, "__url__": str(path)}

    try:
        with open(path, "rb") as f:
            yield from group_by_keys(files(f))
    except DataError as e:
        raise DataError(str(e.args[0]).rsplit(" @ ", 1)[0]) from e  # WebDataset adds the open file to the text
    except (tarfile.TarError, EOFError, ValueError) as e:
        problem = " ".join(str(e.args[0] if e.args else e).split())  # WebDataset puts objects behind the text
        raise DataError(f"{path}: is no readable shard: {problem}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e


def read_shards(folder, skip_bad: bool = False, bad: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """The samples of every shard of a folder, by name. With `skip_bad` a damaged shard is passed over whole and
    noted in `bad` (name → problem); otherwise it raises DataError."""
    paths = sorted(Path(folder).glob("*.tar"))
    if not paths:
        raise DataError(f"{folder}: holds no shards (*.tar)")
    for path in paths:
        try:
            check_shard(path)
        except DataError as e:
            if not skip_bad:
                raise
            if bad is not None:
                bad[path.name] = str(e)
            continue
        yield from read_shard(path, verify=False)


def write_index(folder, shards: Iterable[Shard]) -> Path:
    """`index.parquet`, one row per sample (shard, id, its JSON's plain values, `<suffix>:offset`, `:size`, `:crc32`),
    and `shards.parquet` with each shard's count, size, sha256 and statistics."""
    folder = Path(folder)
    samples, counts = _tables(shards)
    write_parquet(counts, folder / SHARDS)
    write_parquet(samples, folder / INDEX)
    return folder / INDEX


def _tables(shards: Iterable[Shard]) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    import pandas as pd

    shards = sorted(shards, key=lambda s: s.name)
    rows = []
    for s in shards:
        known = s.rows or [{}] * len(s)
        rows += [{**row, "shard": s.name, "id": name} for name, row in zip(s.ids, known, strict=True)]
    first = ["shard", "id"]
    samples = pd.DataFrame(rows, columns=first + sorted({k for r in rows for k in r} - set(first)))
    columns = {}
    for suffix in sorted({k for s in shards for k in s.members}):
        places = np.array([m for s in shards for m in s.members.get(suffix, [ABSENT] * len(s))], np.int64)
        columns |= {f"{suffix}:{part}": places[:, i] for i, part in enumerate(PARTS)}
    counts = [{"shard": s.name, "samples": len(s), "bytes": s.bytes, "sha256": s.sha256, **s.stats} for s in shards]
    return pd.concat([samples, pd.DataFrame(columns)], axis=1), pd.DataFrame(counts)


def read_index(folder) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """(samples, shards) of a folder as `write_index` has them; without an index the tar files are read through.

    Raises DataError when there are no shards, or when the index cannot be read or names a file outside the folder.
    """
    import pandas as pd

    folder = Path(folder)
    if not (folder / INDEX).is_file():
        found = sorted(folder.glob("*.tar"))
        if not found:
            raise DataError(f"{folder}: holds no shards; make them with 'vmas dataset build'")
        return _tables(read_mark(p) or index_shard(p) for p in found)
    try:
        samples, shards = pd.read_parquet(folder / INDEX), pd.read_parquet(folder / SHARDS)
    except (OSError, ValueError) as e:
        raise DataError(f"{folder / INDEX}: not a readable index; delete it to have it made anew") from e
    for name in shards["shard"]:
        check_member(name, folder / INDEX)
    return samples, shards


def describe(profile: "Profile") -> dict[str, Any]:
    """What `dataset.json` says of any dataset: the rates that its arrays are on and the options of its weights."""
    import dataclasses

    return {
        "format": FORMAT,
        "profile": profile.name,
        "fps": profile.clip.fps,
        "seconds": profile.clip.seconds,
        "img_size": profile.clip.img_size,
        "sample_rate": profile.clip.sample_rate,
        "frame_rate": profile.codec.frame_rate,
        "align": dataclasses.asdict(profile.align),
    }


def read_description(folder) -> dict[str, Any]:
    """`dataset.json` of a folder, {} where it has none. Raises DataError when it is damaged."""
    path = Path(folder) / MARK
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: is damaged; restore it or build the dataset again") from e


def begin(out: Path, description: dict[str, Any]) -> bool:
    """Make the folder ready for writing; True when it already holds exactly this, finished.

    Shards that a stopped run left are removed. Raises DataError when it holds another dataset.
    """
    found = read_description(out)
    if found:
        if found == description:
            return True
        raise DataError(f"{out}: holds another dataset; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob("shard-*.tar"), *out.glob("shard-*.json"), *out.glob(".shard-*")]:
        path.unlink()
    return False


def finish(out: Path, done: Iterable[Shard], description: dict[str, Any]) -> None:
    """Write the index and, last, `dataset.json`: a folder that has it is complete."""
    write_index(out, done)
    write_text(out / MARK, json.dumps(description, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_parquet(table: "pd.DataFrame", path: Path) -> None:
    """As `write_text`, for a table."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table.to_parquet(aside, index=False)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
