"""DISCO-MV: the builder of section 3 and the WebDataset shards that training reads.

A dataset is a folder of plain WebDataset tar files with an index: `open(folder)` gives what the training loop
takes, and any other tool reads the tar files as they are.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmas.dataset.stream import ShardSource


def open(folder, split: str = "train", **options) -> "ShardSource":
    """The shards of `folder` as a source of training batches; options as in `vmas.dataset.stream.ShardSource`.

    `folder` is what `vmas dataset build --out` wrote, of which `split` ("train", "val" or "test") is taken, or a
    folder of shards itself. Raises DataError where there are none.
    """
    from vmas.dataset.stream import ShardSource

    return ShardSource(_split(Path(folder), split), **options)


def _split(folder: Path, split: str) -> Path:
    from vmas.dataset import shards
    from vmas.errors import DataError

    splits = sorted(p.parent.name for p in folder.glob("*/" + shards.INDEX))
    if (folder / shards.INDEX).is_file() or any(folder.glob("*.tar")) or not splits:
        return folder
    if split not in splits:
        raise DataError(f"{folder}: holds no split {split!r}, but {', '.join(splits)}")
    return folder / split
