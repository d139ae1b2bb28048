"""Where batches come from, and in which order.

The order is a function of (seed, step) alone: it needs no state, any run can be continued at any step, and the
number of loader workers changes nothing.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vmas.errors import DataError

ROWS = "rows"  # in every batch: which clips it holds


class Source(Protocol):
    """What the loop trains on: arrays in memory (`ClipDataset`) or a stream of shards."""

    def __len__(self) -> int:
        """Clips in one epoch."""
        ...

    def __getitems__(self, indices) -> dict[str, Tensor]:
        """One batch: the clips at the given positions."""
        ...

    def first(self, n: int) -> dict[str, Tensor]:
        """The first n clips, or all."""
        ...

    def loader(
        self, batch_size: int, seed: int, start: int, stop: int, rank=0, world=1, workers=0, pin=False
    ) -> Iterable[dict[str, Tensor]]:
        """This process's batches of steps start … stop-1; every epoch shows each clip once over all processes, and
        the union over processes depends on batch_size · world only."""
        ...


def _as_it_is(batch):
    return batch


class StepSampler(torch.utils.data.Sampler):
    """Batches of row numbers from step `start` to `stop`, a function of the seed alone.

    Every epoch is a fresh permutation; where it fills no whole number of batches, the next one begins within a
    batch, so that every epoch shows every clip once. With `world` processes each takes its slice of the global
    batch, so that the union over processes does not depend on their number as long as batch_size · world stays.
    """

    def __init__(self, n: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1):
        if n < batch_size * world:
            raise DataError(f"{n} clips do not fill one batch of {batch_size * world}: lower train.batch_size")
        self.n, self.batch, self.seed = n, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        whole, first = self.batch * self.world, self.rank * self.batch

        @functools.lru_cache(2)  # a batch may lie in two epochs
        def order(epoch: int) -> list[int]:
            return torch.randperm(
                self.n, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            ).tolist()

        for step in range(self.start, self.stop):
            at = step * whole + first  # clips are counted on through the epochs
            yield [order(epoch)[place] for epoch, place in (divmod(j, self.n) for j in range(at, at + self.batch))]


class Joined:
    """Arrays of one kind laid end to end without a copy: what is asked for is read from the parts that it lies in.

    For arrays on disk that are larger together than memory. Raises DataError where their rows differ in shape or kind.
    """

    def __init__(self, parts: Sequence["Array"]):
        kinds = {(p.shape[1:], p.dtype) for p in parts}
        if len(kinds) != 1:
            raise DataError(f"arrays of {len(kinds)} kinds cannot be laid end to end")
        self.parts, self.starts = list(parts), np.cumsum([0, *map(len, parts)])
        self.shape, self.dtype = (int(self.starts[-1]), *parts[0].shape[1:]), parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, or those at the positions of an int array."""
        wanted = np.arange(len(self))[rows]
        lies_in = np.searchsorted(self.starts, wanted, "right") - 1
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for i, part in enumerate(self.parts):
            here = np.flatnonzero(lies_in == i)
            out[here] = part[wanted[here] - self.starts[i]]
        return out


Array = np.ndarray | Joined  # what a data set's arrays may be


class ClipDataset(torch.utils.data.Dataset):
    """Batches of named arrays of one split; `rows` limits it to a subset (data-size experiments)."""

    def __init__(self, arrays: Mapping[str, Array], rows: np.ndarray | None = None):
        self.arrays = arrays
        self.rows = np.arange(len(next(iter(arrays.values())))) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices) -> dict[str, Tensor]:
        """One batch: every array at the given positions, int16 tokens widened to int64."""
        rows = self.rows[np.asarray(indices)]
        order = np.argsort(rows)  # memory-mapped files read faster forwards
        back = np.argsort(order)
        batch = {k: torch.from_numpy(np.ascontiguousarray(a[rows[order]][back])) for k, a in self.arrays.items()}
        batch = {k: v.long() if v.dtype == torch.int16 else v for k, v in batch.items()}
        return {**batch, ROWS: torch.from_numpy(rows)}

    def loader(self, batch_size: int, seed: int, start: int, stop: int, rank=0, world=1, workers=0, pin=False):
        sampler = StepSampler(len(self), batch_size, seed, start, stop, rank, world)
        return torch.utils.data.DataLoader(
            self,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            # its own generator: a loader that starts draws a seed from the global one
            generator=torch.Generator(),
            pin_memory=pin,
            persistent_workers=workers > 0,
        )

    def first(self, n: int) -> dict[str, Tensor]:
        return self.__getitems__(range(min(n, len(self))))


class Held(ClipDataset):
    """Clips of `stream` without what is large and no longer needed: `first` still gives it. `rows` as in its arrays."""

    def __init__(self, arrays: Mapping[str, Array], stream: Source, rows: np.ndarray | None = None):
        super().__init__(arrays, rows)
        self.stream = stream

    def first(self, n: int) -> dict[str, Tensor]:
        return {**self.stream.first(n), **super().first(n)}
