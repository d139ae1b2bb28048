"""Training batches from shards: the same order on any number of processes and loader workers, from any step on.

The order of an epoch is drawn from (seed, epoch): the shards are permuted, taken in groups of `group`, and the
clips of a group are permuted exactly. A group is all that is read from at a time, which keeps a slow disk or its
cache at few files, and still every clip comes once an epoch. Members are read one by one at the offsets of the
index, so tokens are read without the pictures beside them, and each is checked against its crc32.
"""

import functools
import io
import os
import queue
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmas.config import AlignConfig
from vmas.dataset import shards
from vmas.errors import DataError, UsageError, nearest

ROWS = "rows"  # in every batch: which clips it holds (the name that vmas.training.data gives it)
GROUP = 16  # shards mixed with each other
OPEN_FILES = 32
AHEAD = 3  # batches prepared before they are asked for
FRAMES, VIDEO, TOKENS, FLOW, BEATS, WEIGHTS = "frames.npy", "mp4", "tokens.npy", "flow.npy", "beats.npy", "weights.npy"

# Field of a batch → the members that it can be made of, the first complete set being taken.
FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "frames": ((FRAMES,), (VIDEO,)),
    "codes": ((TOKENS,),),
    "flow": ((FLOW,),),
    "beats": ((BEATS,),),
    "weights": ((FLOW, BEATS), (WEIGHTS,)),
}


def epoch_order(shard_of: np.ndarray, seed: int, epoch: int, group: int = GROUP) -> np.ndarray:
    """int64 [n]: positions 0 … n-1, each once, in the order of one epoch. `shard_of` int [n] is each clip's shard."""
    rng = np.random.default_rng([seed, epoch])
    by_shard = np.argsort(shard_of, kind="stable")
    names, starts = np.unique(shard_of[by_shard], return_index=True)
    parts = np.split(by_shard, starts[1:])
    turn = rng.permutation(len(names))
    groups = (np.concatenate([parts[s] for s in turn[i : i + group]]) for i in range(0, len(turn), group))
    return np.concatenate([rng.permutation(g) for g in groups])


class StepOrder(torch.utils.data.Sampler):
    """Batches of positions for steps start … stop-1: this rank's slice of each global batch of batch_size · world.

    Clips are counted on through the epochs: a batch may end one and begin the next, and none is left out.
    """

    def __init__(self, shard_of, group: int, batch_size: int, seed: int, start: int, stop: int, rank=0, world=1):
        if len(shard_of) < batch_size * world:
            raise DataError(
                f"{len(shard_of)} clips do not fill one batch of {batch_size * world}: lower train.batch_size"
            )
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} is not below the number of processes, {world}")
        self.shard_of, self.group, self.batch, self.seed = shard_of, group, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        whole, mine, n = self.batch * self.world, self.rank * self.batch, len(self.shard_of)

        @functools.lru_cache(2)  # a batch may lie in two epochs
        def order(epoch: int) -> np.ndarray:
            return epoch_order(self.shard_of, self.seed, epoch, self.group)

        for step in range(self.start, self.stop):
            first = step * whole + mine
            places = (divmod(j, n) for j in range(first, first + self.batch))
            yield [int(order(epoch)[place]) for epoch, place in places]


class ShardSource(torch.utils.data.Dataset):
    """The clips of a folder of shards as batches of named arrays: `vmas.training.data.Source`.

    `fields` chooses from `FIELDS`: frames uint8 [B,T,H,W,3], codes int64 [B,K,t_a], weights float32 [B,t_a] (P_av),
    flow float32 [B,t_v-1], beats bool [B,t_a]. P_av is computed from flow and beats with the options `align`
    (default: those the dataset was written with), so that one dataset serves every choice of δ and α; without flow
    and beats the stored P_av is taken. `rows` int [n] limits the source to these rows of the index. `group` is the
    number of shards that are mixed. With `skip_bad` every shard's sha256 is checked first, damaged ones are left
    out and named in `bad` (name → problem).

    Raises DataError for a folder without shards, for a missing, shortened or damaged one (naming it), and for
    clips that lack a field.
    """

    def __init__(
        self,
        folder,
        fields: Sequence[str] = ("frames", "codes", "weights"),
        align: AlignConfig | None = None,
        rows: np.ndarray | None = None,
        group: int = GROUP,
        skip_bad: bool = False,
    ):
        self.folder, self.group, self.bad = Path(folder), group, dict[str, str]()
        for f in fields:
            if f not in FIELDS:
                raise UsageError(f"unknown field {f!r}: {nearest(f, FIELDS)}")
        if group < 1 or not fields:
            raise UsageError("a source needs at least one field and groups of at least one shard")
        members = {m for f in fields for wanted in FIELDS[f] for m in wanted}
        columns = ["shard", "id", *(f"{m}:{part}" for m in members for part in shards.PARTS)]
        samples, known = shards.read_index(folder, columns)
        self.names: list[str] = known["shard"].tolist()
        self._check_files(known, skip_bad)
        index = samples["shard"].map({n: i for i, n in enumerate(self.names)}).to_numpy(np.int64)
        good = np.array([n not in self.bad for n in self.names])[index]
        chosen = np.arange(len(index)) if rows is None else np.asarray(rows, np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(index):
            raise DataError(f"{folder}: holds rows 0 … {len(index) - 1}, asked for {chosen.min()} … {chosen.max()}")
        self.rows = chosen[good[chosen]]
        if not len(self.rows):
            raise DataError(f"{folder}: no clip is left to read")
        self.shard_of = index[self.rows]
        self.ids: list[str] = samples["id"].to_numpy()[self.rows].tolist()
        self.meta = shards.read_description(folder)
        self.made_of: dict[str, tuple[str, ...]] = {}
        self.places: dict[str, np.ndarray] = {}  # member → int64 [n,3]: offset, size, crc32
        for f in fields:
            self.made_of[f] = self._members(f, samples)
        self.align = align or self._written_align()
        self._files = _Files(self.folder, self.names)

    def _check_files(self, known, skip_bad: bool) -> None:
        """Every shard is there in its full length; with `skip_bad` also its sha256."""
        for name, size, sha256 in zip(known["shard"], known["bytes"], known["sha256"], strict=True):
            path = self.folder / name
            if skip_bad:
                problem = shards.verify_shard(path, sha256)
            elif not path.is_file():
                problem = "is missing"
            else:
                found = path.stat().st_size
                problem = "" if found == size else f"holds {found} of {size} bytes"
            if problem and not skip_bad:
                raise DataError(f"{path}: {problem}; restore it, or leave it out with skip_bad")
            if problem:
                self.bad[name] = problem

    def _members(self, f: str, samples) -> tuple[str, ...]:
        for wanted in FIELDS[f]:
            if not all(f"{m}:offset" in samples for m in wanted):
                continue
            for m in wanted:
                columns = [samples[f"{m}:{p}"].to_numpy(np.int64)[self.rows] for p in shards.PARTS]
                self.places[m] = np.stack(columns, axis=1)
                if (lacking := np.flatnonzero(self.places[m][:, 0] < 0)).size:
                    i = int(lacking[0])
                    raise DataError(f"{self.folder / self.names[self.shard_of[i]]}: clip {self.ids[i]} has no {m}")
            return wanted
        needed = " or ".join(" + ".join(w) for w in FIELDS[f])
        raise DataError(f"{self.folder}: its clips have no {f} ({needed}); build them with that stage")

    def _written_align(self) -> AlignConfig | None:
        from vmas.config import from_dict

        if self.made_of.get("weights") != (FLOW, BEATS):
            return None
        try:
            return from_dict(AlignConfig, self.meta["align"], source=str(self.folder / shards.MARK))
        except KeyError:
            raise DataError(f"{self.folder}: does not say how its weights are meant; give align") from None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices) -> dict[str, Tensor]:
        """One batch of the clips at the given positions, int16 tokens widened to int64."""
        indices = [range(len(self))[int(i)] for i in indices]
        clips = [self._clip(i) for i in indices]
        arrays = {m: self._stack(m, clips) for m in self.places}
        batch = {}
        for name, members in self.made_of.items():
            array = arrays[members[0]] if len(members) == 1 else self._weights(arrays[FLOW], arrays[BEATS])
            x = torch.from_numpy(array)
            batch[name] = x.long() if x.dtype == torch.int16 else x
        return {**batch, ROWS: torch.from_numpy(self.rows[indices])}

    def first(self, n: int) -> dict[str, Tensor]:
        return self.__getitems__(range(min(n, len(self))))

    def _clip(self, i: int) -> dict[str, np.ndarray]:
        """Member → array of the clip at position i."""
        out: dict[str, np.ndarray] = {}
        for m in self.places:
            data = self._read(i, m)
            try:
                out[m] = _decode_video(data) if m == VIDEO else load_npy(data)
            except (ValueError, OSError) as e:
                raise DataError(f"{self._where(i)}: {m} is not readable: {e}") from e
        return out

    def _stack(self, member: str, clips: list[dict[str, np.ndarray]]) -> np.ndarray:
        try:
            return np.stack([c[member] for c in clips])
        except ValueError as e:
            shapes = sorted({c[member].shape for c in clips})
            raise DataError(f"{self.folder}: clips differ in the shape of their {member}: {shapes}") from e

    def _weights(self, flow: np.ndarray, P_a: np.ndarray) -> np.ndarray:
        """P_av float32 [B,t_a] of flow [B,t_v-1] and P_a [B,t_a]."""
        from vmas.beats import BeatOptions, align

        assert self.align is not None
        rate, fps = self.meta["frame_rate"], self.meta["fps"]
        return align(flow, P_a, fps, rate, BeatOptions.from_config(self.align)).P_av

    def _read(self, i: int, member: str) -> bytes:
        offset, size, crc = (int(v) for v in self.places[member][i])
        data = self._files.read(int(self.shard_of[i]), offset, size)
        if len(data) != size or zlib.crc32(data) != crc:
            raise DataError(f"{self._where(i)}: {member} is damaged; restore the shard, or leave it out with skip_bad")
        return data

    def _where(self, i: int) -> str:
        return f"{self.folder / self.names[self.shard_of[i]]}: clip {self.ids[i]}"

    def loader(
        self, batch_size: int, seed: int, start: int, stop: int, rank=0, world=1, workers=0, pin=False
    ) -> Iterable[dict[str, Tensor]]:
        """Batches of steps start … stop-1, see `vmas.training.data.Source`. With 0 workers a thread reads ahead."""
        order = StepOrder(self.shard_of, self.group, batch_size, seed, start, stop, rank, world)
        if workers == 0:
            return Ahead(self.__getitems__, order, pin)
        return torch.utils.data.DataLoader(
            self,
            batch_sampler=order,
            collate_fn=_as_it_is,
            num_workers=workers,
            generator=torch.Generator(),  # its own: a loader that starts draws a seed from the global one
            pin_memory=pin,
        )


def _as_it_is(batch):
    return batch


class Ahead:
    """`make(x)` for every x of `order`, at most AHEAD results ahead of the reader, made by one thread."""

    def __init__(self, make: Callable[[list[int]], dict[str, Tensor]], order, pin: bool = False):
        self.make, self.order, self.pin = make, order, pin

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        made: queue.Queue[Any] = queue.Queue(AHEAD)
        stopped = threading.Event()

        def put(x) -> bool:
            while not stopped.is_set():
                try:
                    made.put(x, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for one in self.order:
                    batch = self.make(one)
                    if self.pin:
                        batch = {k: v.pin_memory() for k, v in batch.items()}
                    if not put((batch, None)):
                        return
                put((None, None))
            except BaseException as e:  # handed to the reader, who is the one to fail
                put((None, e))

        thread = threading.Thread(target=work, name="vmas-shards", daemon=True)
        thread.start()
        try:
            while True:
                batch, problem = made.get()
                if problem is not None:
                    raise problem
                if batch is None:
                    return
                yield batch
        finally:
            stopped.set()
            thread.join()


class _Files:
    """Open shards, the longest unused closed first; a process that gets a copy opens its own."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = folder, names
        self._reset()

    def _reset(self) -> None:
        self.lock, self.fds, self.pid = threading.Lock(), OrderedDict[int, int](), os.getpid()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "names": self.names}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"], state["names"])

    def read(self, shard: int, offset: int, size: int) -> bytes:
        if self.pid != os.getpid():
            self._reset()  # after a fork the lock may be held by a thread that is not here
        path = self.folder / self.names[shard]
        try:
            with self.lock:
                if shard not in self.fds:
                    if len(self.fds) >= OPEN_FILES:
                        os.close(self.fds.popitem(last=False)[1])
                    self.fds[shard] = os.open(path, os.O_RDONLY)
                self.fds.move_to_end(shard)
                return os.pread(self.fds[shard], size, offset)
        except OSError as e:
            raise DataError(f"{path}: cannot be read: {e.strerror}") from e

    def __del__(self) -> None:
        if getattr(self, "pid", None) == os.getpid():
            while self.fds:
                os.close(self.fds.popitem()[1])


_HEADERS: dict[bytes, tuple[np.dtype, tuple[int, ...]]] = {}


def load_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file in memory. Raises ValueError.

    A header is parsed once: every clip of a dataset has the same few, and parsing costs more than the reading.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        return np.load(io.BytesIO(data), allow_pickle=False)
    end = 10 + int.from_bytes(data[8:10], "little")
    header = data[:end]
    if header not in _HEADERS:
        f = io.BytesIO(header)
        np.lib.format.read_magic(f)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
        if fortran or dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
        if len(_HEADERS) > 1000:
            _HEADERS.clear()
        _HEADERS[header] = dtype, shape
    dtype, shape = _HEADERS[header]
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def _decode_video(data: bytes) -> np.ndarray:
    """All pictures uint8 [T,H,W,3] of an mp4 as the builder writes it: already at the dataset's rate and size."""
    import av

    container: Any = av.open(io.BytesIO(data))
    with container:
        container.streams.video[0].codec_context.thread_count = 1  # the loader's workers share the cores
        frames = [f.to_ndarray(format="rgb24", threads=1) for f in container.decode(video=0)]
    return np.stack(frames)
