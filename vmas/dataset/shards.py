"""WebDataset tar shards: written whole and byte for byte repeatable, read with every name and byte checked.

A sample is a run of members that share their id: `<id>.frames.npy` (uint8 [T,H,W,3]) or `<id>.mp4`,
`<id>.tokens.npy` (int16 [K,t_a]), `<id>.flow.npy` (float32 [t_v-1], pixels a frame), `<id>.beats.npy` (P_a, bool
[t_a]), `<id>.weights.npy` (P_av, float32 [t_a]), `<id>.flac` (the music), `<id>.json` (what is known of it). Any
WebDataset reader takes the tar files. Beside each stands `<shard>.json` with its sha256 and where every member
lies, so that a sample can be read alone; `index.parquet` repeats that for the whole folder. A shard without its
JSON file is not finished.

Format: https://github.com/webdataset/webdataset (one tar file is a run of samples, keyed up to the first dot).
"""

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from vmas.config import Profile

FORMAT = 1
INDEX, SHARDS, MARK = "index.parquet", "shards.parquet", "dataset.json"
OWNER = "vmas"  # every member's user and group: tar headers must not depend on who ran the builder
ABSENT = (-1, 0, 0)
PARTS = ("offset", "size", "crc32")
BLOCK = 512
GROUP_ROWS = 8192  # of the index that are held back to be written together
KEY, JSON = "__key__", "json"
TOKENS = "tokens"  # in `dataset.json`, "models" says of which codec: the sha256 of its weights
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

    A sample is {"__key__": id, suffix: value, ...} with values as in `encode`. `stats` is read after the last sample,
    so that `samples` can fill it. Raises DataError for an id twice or a bad name, and when the disk does not take it
    (a full disk leaves nothing behind).
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


def write_index(folder, shards: Sequence[Shard]) -> Path:
    """`index.parquet`, one row per sample (shard, id, its JSON's plain values, `<suffix>:offset`, `:size`, `:crc32`),
    and `shards.parquet` with each shard's count, size, sha256 and statistics.

    `shards` come in the order of their names. They are gone through twice and none is kept, so that it may read each
    when it is asked for it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    samples, counts = pa.schema([]), pa.schema([])
    for s in shards:
        samples = pa.unify_schemas([samples, _samples(s).schema], promote_options="permissive")
        counts = pa.unify_schemas([counts, _counts(s).schema], promote_options="permissive")
    samples, counts = _ordered(samples, ("shard", "id")), _ordered(counts, ("shard", "samples", "bytes", "sha256"))
    with _aside(folder / INDEX) as index, _aside(folder / SHARDS) as known:
        with pq.ParquetWriter(index, samples) as a, pq.ParquetWriter(known, counts) as b:
            waiting: list[pa.Table] = []
            for s in shards:
                b.write_table(_fitted(_counts(s), counts))
                waiting.append(_fitted(_samples(s), samples))
                if sum(map(len, waiting)) >= GROUP_ROWS:
                    a.write_table(pa.concat_tables(waiting).combine_chunks())
                    waiting = []
            if waiting:
                a.write_table(pa.concat_tables(waiting).combine_chunks())
    return folder / INDEX


def _samples(s: Shard) -> "pa.Table":
    """The rows of one shard in the index."""
    import pyarrow as pa

    known = s.rows or [{}] * len(s)
    names = sorted({k for row in known for k in row} - {"shard", "id"})
    columns: dict[str, Any] = {"shard": pa.array([s.name] * len(s), pa.string()), "id": pa.array(s.ids, pa.string())}
    columns |= {k: pa.array([row.get(k) for row in known]) for k in names}
    for suffix, members in sorted(s.members.items()):
        columns |= {f"{suffix}:{part}": pa.array([m[i] for m in members], pa.int64()) for i, part in enumerate(PARTS)}
    return pa.table(columns)


def _counts(s: Shard) -> "pa.Table":
    import pyarrow as pa

    return pa.Table.from_pylist([{"shard": s.name, "samples": len(s), "bytes": s.bytes, "sha256": s.sha256, **s.stats}])


def _ordered(schema: "pa.Schema", first: Sequence[str]) -> "pa.Schema":
    """The columns `first`, then the others by name, those of members and counts ("<name>:<part>") last."""
    import pyarrow as pa

    parts = {p: i for i, p in enumerate(PARTS)}

    def place(name: str) -> tuple:
        left, _, right = name.rpartition(":")
        return (1, left, parts.get(right, 0), right) if left else (0, name)

    return pa.schema([schema.field(k) for k in (*first, *sorted(set(schema.names) - set(first), key=place))])


def _fitted(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """`table` with the columns of `schema`: a member that a shard has not is ABSENT, a count of its statistics 0."""
    import pyarrow as pa

    def column(field):
        if field.name in table.column_names:
            return table[field.name].cast(field.type)
        absent = ABSENT[0] if field.name.endswith(":offset") else 0 if ":" in field.name else None
        return pa.array([absent] * len(table), field.type)

    return pa.table([column(f) for f in schema], schema=schema)


def _tables(shards: Iterable[Shard]) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """What `write_index` would write."""
    import pyarrow as pa

    def joined(tables: list, first: Sequence[str]) -> "pd.DataFrame":
        schema = pa.unify_schemas([t.schema for t in tables], promote_options="permissive")
        schema = _ordered(schema, first)
        return pa.concat_tables([_fitted(t, schema) for t in tables]).to_pandas()

    shards = sorted(shards, key=lambda s: s.name)
    counts = joined([_counts(s) for s in shards], ("shard", "samples", "bytes", "sha256"))
    return joined([_samples(s) for s in shards], ("shard", "id")), counts


def read_index(folder, columns: Sequence[str] | None = None) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """(samples, shards) of a folder as `write_index` has them; without an index the tar files are read through.

    `columns` are those of the samples that are read (default: all), as far as they are there. Raises DataError when
    there are no shards, or when the index cannot be read or names a file outside the folder.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not (folder / INDEX).is_file():
        samples, shards = _tables(_read_through(folder))
        return samples if columns is None else samples[[c for c in samples if c in columns]], shards
    try:
        with pq.ParquetFile(folder / INDEX) as index:
            names = index.schema_arrow.names
            samples = index.read(names if columns is None else [c for c in names if c in columns]).to_pandas()
    except (OSError, ValueError) as e:
        raise DataError(f"{folder / INDEX}: not a readable index; delete it to have it made anew") from e
    return samples, read_counts(folder)


def read_counts(folder) -> "pd.DataFrame":
    """The shards of `read_index` alone: a row for each with its count, size, sha256 and statistics. Raises as that."""
    import pandas as pd

    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return _tables(_read_through(folder))[1]
    try:
        shards = pd.read_parquet(folder / SHARDS)
    except (OSError, ValueError) as e:
        raise DataError(f"{folder / SHARDS}: not readable; delete it and {INDEX} to have them made anew") from e
    for name in shards["shard"]:
        check_member(name, folder / INDEX)
    return shards


def _read_through(folder: Path) -> list[Shard]:
    found = sorted(folder.glob("*.tar"))
    if not found:
        raise DataError(f"{folder}: holds no shards; make them with 'vmas dataset build'")
    return [read_mark(p) or index_shard(p) for p in found]


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
    for path in [*out.glob("shard-*.tar"), *out.glob("shard-*.json")]:
        path.unlink()
    remove_asides(out)
    return False


def finish(out: Path, done: Sequence[Shard], description: dict[str, Any]) -> None:
    """Write the index and, last, `dataset.json`: a folder that has it is complete."""
    write_index(out, done)
    write_text(out / MARK, json.dumps(description, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that it is there whole or not at all."""
    with _aside(path) as aside, open(aside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def write_parquet(table: "pd.DataFrame", path: Path) -> None:
    """As `write_text`, for a table."""
    with _aside(path) as aside:
        table.to_parquet(aside, index=False)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


_ASIDE = re.compile(
    r"\.(shard-\d{6}\.(tar|json)|index\.parquet|shards\.parquet|rejected\.parquet|dataset\.json|dataset_card\.md"
    r"|timings\.json|plan\.json|splits\.parquet|(screen|train|val|test)-[0-9a-f]+\.json)\.\d+"
)


def remove_asides(folder: Path) -> None:
    """What a killed process was writing; files of other names stay."""
    for path in folder.glob(".*"):
        if _ASIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)
