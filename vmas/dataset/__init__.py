"""DISCO-MV: the builder of section 3 and the WebDataset shards that training reads.

A dataset is a folder of plain WebDataset tar files with an index: `open(folder)` gives what the training loop
takes, and any other tool reads the tar files as they are.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmas.dataset.stream import ShardSource


def open(folder, **options) -> "ShardSource":
    """The shards of `folder` as a source of training batches; options as in `vmas.dataset.stream.ShardSource`."""
    from vmas.dataset.stream import ShardSource

    return ShardSource(folder, **options)
