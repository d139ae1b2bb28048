"""torch.compile, block by block.

The step as a whole does not compile into one graph: its random draws (condition dropped or not, length of the pieces)
are Python's, and the compiler would take minutes over twelve copies of the same block. Compiled alone, the equal blocks
of a stack share one compilation, everything around them runs as it is, and no parameter changes its name.
"""

from torch import nn

from vmas.decoder import Block
from vmas.encoder import EncoderBlock

KINDS = 64  # compilations of one block's code: the encoder's stages differ in shape, pieces in length, training in mode


def compile_blocks(task: nn.Module) -> int:
    """Compile every block of `task`'s encoder and decoder at its first call; returns their number."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    blocks = [m for m in task.modules() if isinstance(m, EncoderBlock | Block)]
    for block in blocks:
        block.compile()
    return len(blocks)
