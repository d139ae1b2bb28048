"""Bytes of activations that a training step keeps for its backward pass, in closed form.

With c bytes a value in the matrix products (2 under bf16 autocast, else 4), a decoder block of width D and FFN
width F keeps for each of its S·B positions

    3·(4D + 8)      the residual stream, which stays fp32, as input of the three norms; their mean and deviation
    c·(3D + D)      the normed inputs of the self-attention's, cross-attention's and FFN's first layer; the q of
                    the cross-attention
    c·(3D + D + D)  q, k, v and the output of the self-attention, the output of the cross-attention
    c·2F            the FFN before and after its GELU
    4·2·heads       the logarithms of the fused attention's softmax sums; its scores are never stored
    3D + F          one byte each for dropout's masks, where there is dropout

and for each of the T_v·B rows of X_v c·2D keys and values. An encoder block is counted in the same way, with the
queries pooled. Activation checkpointing (`train.activation_checkpointing`) keeps the input of every block, 4·D·S·B
in the decoder, and everything above for the one block that is being recomputed. The backward pass has let go of the
decoder when it reaches the encoder, so the more expensive of the two sets the peak: at the paper's sizes the encoder's
first block.

Checked in tests/test_training_cost.py against the bytes that autograd really saves. That is on a CPU; CUDA
keeps the encoder's norms' inputs in fp32 throughout (autocast), as counted here, a CPU from stage 2 on in bf16.
Frozen parts through which gradients still pass are counted as if they were trained.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from vmas.config import Profile
from vmas.decoder import MusicDecoder
from vmas.encoder import VideoEncoder

FP32 = 4
STATISTICS = 8  # a norm's mean and reciprocal deviation, fp32
INDEX = 8  # int64


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of one step on one GPU."""

    encoder: "Part"
    decoder: "Part"  # its `rest`: embeddings, condition, last norm, heads and losses

    def stored(self, checkpointing: bool) -> int:
        """Bytes at the end of the forward pass."""
        return self.encoder.stored(checkpointing) + self.decoder.stored(checkpointing)

    def kept(self, checkpointing: bool) -> int:
        """Bytes at their peak: without checkpointing, or with it while one block is being recomputed."""
        if not checkpointing:
            return self.stored(False)
        return max(self.encoder.stored(True) + self.decoder.recomputing(), self.encoder.recomputing())


@dataclass(frozen=True)
class Part:
    """Bytes kept by a chain of blocks and by what stands around them; no blocks where nothing is trained."""

    blocks: tuple[int, ...]  # each with its input
    inputs: tuple[int, ...]  # of each, all that is kept of it under checkpointing
    rest: int

    def stored(self, checkpointing: bool) -> int:
        """At the end of the forward pass."""
        return sum(self.inputs if checkpointing else self.blocks) + self.rest

    def recomputing(self) -> int:
        """Under checkpointing, while the most expensive block is recomputed; later inputs are let go of by then."""
        inputs = accumulate(self.inputs)
        return self.rest + max((i + block for i, block in zip(inputs, self.blocks, strict=True)), default=0)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def encoder_bytes(encoder: VideoEncoder, clips: int, c: int) -> Part:
    """Bytes that the encoder keeps for `clips` clips; 0 when it is frozen whole."""
    if not _trains(encoder):
        return Part((), (), 0)
    channels, frames, height, width = encoder.input_shape
    rest = c * clips * channels * frames * height * width  # what the first convolution reads
    blocks, inputs = [], []
    for n, (layout, runs) in enumerate(zip(encoder.layouts, encoder.runs, strict=True)):
        t, h, w = layout.grid
        tokens = clips * t * h * w
        for block in (encoder.block(i) for i in (*runs[0], *runs[1])):
            dim, out = block.norm1.weight.numel(), block.norm2.weight.numel()
            queries, hidden = tokens // block.cells, block.mlp.fc1.out_features
            # the positions make stage 1's stream fp32; the widening blocks' projection leaves it in c bytes
            inputs.append(tokens * dim * (c if n else FP32))
            total = tokens * (FP32 * dim + STATISTICS) + c * tokens * (dim + 3 * out)
            total += c * queries * out + FP32 * queries * block.attn.heads
            total += queries * (FP32 * out + STATISTICS) + c * queries * (out + 2 * hidden)
            if dim != out:  # the skip path's projection; it casts the normed input a second time
                total += c * tokens * dim * (c < FP32)
            if block.cells > 1:  # the maximum keeps what it chose from, and its choice: of the queries and the skip
                total += c * (tokens + 2 * queries) * out
            blocks.append(total)
    steps = clips * math.prod(encoder.layouts[-1].grid)  # one place a time step in the paper's encoder
    return Part(tuple(blocks), tuple(inputs), rest + steps * (FP32 * encoder.dim + STATISTICS))


def activations(encoder: VideoEncoder, decoder: MusicDecoder, profile: Profile, clips: int, c: int) -> Activations:
    """What a step of the profile over `clips` clips keeps, at `c` bytes a value in the matrix products."""
    codec, rows, T = profile.codec, clips * profile.num_video_tokens, profile.num_tokens
    steps = T + codec.n_q - 1
    positions, dim, hidden = clips * steps, decoder.dim, profile.decoder.ff_mult * decoder.dim
    block = positions * (3 * (FP32 * dim + STATISTICS) + c * (9 * dim + 2 * hidden) + FP32 * 2 * decoder.heads)
    block += rows * c * 2 * dim
    if profile.decoder.dropout:
        block += positions * (3 * dim + hidden)
    if decoder.time_bias_s is not None:
        block += c * steps * profile.num_video_tokens
    entries = clips * codec.n_q * T
    heads = c * rows * (decoder.cond_dim + dim) + INDEX * (positions + clips) * codec.n_q
    heads += positions * (FP32 * dim + STATISTICS) + c * entries * dim
    # log-softmax for the cross-entropy, softmax for M̄; both in fp32
    heads += entries * (FP32 * codec.bins * (1 + profile.align.contrastive) + INDEX + FP32)
    trained = _trains(encoder) or _trains(decoder)
    count = len(decoder.blocks) if trained else 0
    return Activations(
        encoder=encoder_bytes(encoder, clips, c),
        decoder=Part((block,) * count, (FP32 * positions * dim,) * count, heads),
    )
