"""Cached decoding on a CPU: one compiled function runs a whole decoding step on all threads.

The step is a fixed list of stages (per block: self-attention, its output, cross-attention, its output, and the two
layers of the FFN). Each stage is cut into tasks that the threads claim from a shared counter, so a thread that
the system has put aside delays nobody; a thread enters the next stage when all tasks of this one are done.

Results do not depend on the number of threads nor on the other rows of the batch. Weights are float32, or
bfloat16 with float32 sums, which halves the memory to read where the memory is the limit (few rows).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numba import types
from torch import Tensor

from vmas import compiled, sampling
from vmas.decode_kernels import (
    LANES,
    atomic_add,
    cached,
    choose,
    gelu_,
    layer_norm,
    linear,
    softmax_,
    yield_processor,
)
from vmas.errors import DataError, UsageError

SELF, SELF_OUT, CROSS, CROSS_OUT, UP, DOWN, LOGITS = range(7)  # stages: six per block, then the heads once
STAGES = 6
SQUARE, WIDE = 2, 4  # panels per task of a [dim,dim] matrix and of the wider ones


class Shape(NamedTuple):
    """Sizes of a step: all integers, for the compiled functions."""

    layers: int
    dim: int
    heads: int
    hidden: int
    n_q: int
    card: int
    rows: int  # rows decoded: clips, or twice as many with guidance
    clips: int  # the first rows, which have a condition
    steps: int  # length of the cache, a multiple of 16
    cond: int  # rows of X_v


def supported(decoder) -> bool:
    """Whether the engine can run this decoder: every width a multiple of 16 (the panel's width)."""
    hidden = decoder.blocks[0].linear1.out_features
    return not any(n % LANES for n in (decoder.dim // decoder.heads, hidden, decoder.card))


@cached()
def _wait(counters, index, goal):
    """Wait until counters[index] reaches goal; give the processor away when that takes long."""
    spins = 0
    while atomic_add(counters, index, 0) < goal:
        spins += 1
        if spins > 200:
            yield_processor()


_F, _I = types.float32[::1], types.int64


@cached(signatures=[types.void(_F, _I, _F, _F, _I, _I, _I, _I, _F, types.boolean, _F, _F, _I)])
def _attend(q, q_at, keys, values, at, length, head_dim, capacity, bias, biased, scores, y, y_at):
    """y[y_at:+head_dim] = softmax(q·keys/√head_dim + bias)·values over `length` cached positions of one head.

    keys [capacity/16, head_dim, 16] and values [head_dim/16, capacity, 16] begin at `at`.
    """
    scale = np.float32(1.0 / head_dim**0.5)
    groups = (length + LANES - 1) // LANES
    linear(q, q_at, 0, keys, at, head_dim * LANES, scores, 0, 0, head_dim, groups, 1, False)
    if biased:
        for i in range(length):
            scores[i] += bias[i] / scale
    softmax_(scores, length, scale)
    linear(scores, 0, 0, values, at, capacity * LANES, y, y_at, 0, length, head_dim // LANES, 1, False)


@cached()
def _self_attention(sh, layer, head, position, x, w, w_at, qkv, cache_k, cache_v, scores, y):
    """One head of the causal self-attention for all rows: project, extend the cache, attend."""
    hd, dim = sh.dim // sh.heads, sh.dim
    linear(x, 0, dim, w, w_at + 3 * head * hd * dim, dim * LANES, qkv, 0, 3 * hd, dim, 3 * hd // LANES, sh.rows, False)
    for r in range(sh.rows):
        at = ((layer * sh.rows + r) * sh.heads + head) * sh.steps * hd
        key_at = at + (position // LANES) * hd * LANES + position % LANES
        row = 3 * hd * r
        for d in range(hd):
            cache_k[key_at + d * LANES] = qkv[row + hd + d]
            cache_v[at + (d // LANES) * sh.steps * LANES + position * LANES + d % LANES] = qkv[row + 2 * hd + d]
        _attend(
            qkv, row, cache_k, cache_v, at, position + 1, hd, sh.steps, scores, False, scores, y, r * dim + head * hd
        )


@cached()
def _cross_attention(sh, layer, head, x, w, w_at, q, cross_k, cross_v, bias, biased, scores, y):
    """One head of the cross-attention for the conditioned rows."""
    hd, dim = sh.dim // sh.heads, sh.dim
    padded = (sh.cond + LANES - 1) // LANES * LANES
    linear(x, 0, dim, w, w_at + head * hd * dim, dim * LANES, q, 0, hd, dim, hd // LANES, sh.clips, False)
    for r in range(sh.clips):
        at = ((layer * sh.clips + r) * sh.heads + head) * padded * hd
        _attend(q, hd * r, cross_k, cross_v, at, sh.cond, hd, padded, bias, biased, scores, y, r * dim + head * hd)


@cached()
def _normalise(x, norms, index, rows, dim, out):
    for r in range(rows):
        layer_norm(x[r * dim : (r + 1) * dim], norms[index, 0], norms[index, 1], out[r * dim : (r + 1) * dim])


@cached()
def _step(
    sh, position, w, norms, cache_k, cache_v, cross_k, cross_v, bias, biased, x, y, hidden, logits, private, counters
):
    """One decoding step as seen by one thread; every thread runs this with its own `private` memory.

    x [rows·dim] holds the embedded tokens and becomes the residual stream; logits [rows·n_q·card] is the result.
    """
    dim, rows, clips, h, out = sh.dim, sh.rows, sh.clips, sh.hidden, sh.n_q * sh.card
    normed, projected, scores = private
    square, panel, layer_size = dim * dim, dim * LANES, 6 * dim * dim + 2 * dim * h
    tasks = (
        sh.heads,
        -(-dim // (LANES * SQUARE)),
        sh.heads,
        -(-dim // (LANES * SQUARE)),
        -(-h // (LANES * WIDE)),
        dim // LANES,
        -(-out // (LANES * WIDE)),
    )
    for stage in range(STAGES * sh.layers + 1):
        layer, kind = stage // STAGES, stage % STAGES
        if layer == sh.layers:
            kind = LOGITS
        at = layer * layer_size
        active = clips if kind == CROSS or kind == CROSS_OUT else rows  # a null condition adds nothing
        ready = kind == SELF_OUT or kind == CROSS_OUT or kind == DOWN
        task = atomic_add(counters, 2 * stage, 1)
        while task < tasks[kind]:
            if not ready:  # each thread normalises for itself, which costs less than another stage
                _normalise(x, norms, 3 * layer + kind // 2 % 3, active, dim, normed)
                ready = True
            if kind == SELF:
                _self_attention(sh, layer, task, position, normed, w, at, projected, cache_k, cache_v, scores, y)
            elif kind == CROSS:
                w_at = at + 4 * square
                _cross_attention(sh, layer, task, normed, w, w_at, projected, cross_k, cross_v, bias, biased, scores, y)
            elif kind == SELF_OUT or kind == CROSS_OUT:
                p = task * SQUARE
                w_at = at + (3 if kind == SELF_OUT else 5) * square + p * panel
                n = min(SQUARE, dim // LANES - p)
                linear(y, 0, dim, w, w_at, panel, x, p * LANES, dim, dim, n, active, True)
            elif kind == UP:
                p = task * WIDE
                w_at, n = at + 6 * square + p * panel, min(WIDE, h // LANES - p)
                linear(normed, 0, dim, w, w_at, panel, hidden, p * LANES, h, dim, n, rows, False)
                for r in range(rows):
                    gelu_(hidden[r * h + p * LANES : r * h + (p + n) * LANES])
            elif kind == DOWN:
                w_at = at + 6 * square + dim * h + task * h * LANES
                linear(hidden, 0, h, w, w_at, h * LANES, x, task * LANES, dim, h, 1, rows, True)
            else:
                p = task * WIDE
                n = min(WIDE, out // LANES - p)
                linear(normed, 0, dim, w, at + p * panel, panel, logits, p * LANES, out, dim, n, rows, False)
            atomic_add(counters, 2 * stage + 1, 1)
            task = atomic_add(counters, 2 * stage, 1)
        _wait(counters, 2 * stage + 1, tasks[kind])


@cached()
def _embed(table, positions, position, tokens, rows, x):
    """x[r] = Σ_k table[k, tokens[r % clips, k]] + positions[position]."""
    clips, n_q = tokens.shape
    dim = table.shape[2]
    for r in range(rows):
        row = x[r * dim : (r + 1) * dim]
        for i in range(dim):
            row[i] = positions[position, i]
        for k in range(n_q):
            entry = table[k, tokens[r % clips, k]]
            for i in range(dim):
                row[i] += entry[i]


@cached()
def _choose(logits, clips, guidance, u, top_k, temperature, first, z, keys, tokens):
    """Guidance and sampling: tokens [B,n] for codebooks first … first+n-1; False when logits are not finite."""
    for b in range(clips):
        for k in range(tokens.shape[1]):
            given = logits[b, first + k]
            if logits.shape[0] > clips:
                null = logits[clips + b, first + k]
                for i in range(len(z)):
                    z[i] = null[i] + (given[i] - null[i]) * guidance
            else:
                for i in range(len(z)):
                    z[i] = given[i]
            tokens[b, k] = choose(z, keys, u[b, k], top_k, temperature)
            if tokens[b, k] < 0:
                return False
    return True


def panels(weight: Tensor) -> Tensor:
    """[N,in] → [N/16,in,16], flat."""
    n, inner = weight.shape
    return weight.reshape(n // LANES, LANES, inner).transpose(1, 2).reshape(-1)


def pack(decoder, half: bool) -> np.ndarray:
    """All weights of the linear layers in the order of the stages, in panels: float32, or bfloat16 as uint16.

    The query, key and value of a head lie side by side, because a task computes one head.
    """
    dim, heads = decoder.dim, decoder.heads
    parts = []
    for block in decoder.blocks:
        by_head = block.qkv.weight.view(3, heads, dim // heads, dim).transpose(0, 1).reshape(3 * dim, dim)
        maps = (block.out, block.q_cross, block.out_cross, block.linear1, block.linear2)
        parts += [panels(w) for w in (by_head, *(m.weight for m in maps))]
    parts += [panels(m.weight) for m in decoder.linears]
    if half:
        return torch.cat([p.to(torch.bfloat16) for p in parts]).view(torch.uint16).numpy()
    return torch.cat([p.float() for p in parts]).numpy()


class CpuEngine:
    """Decodes step by step; see `vmas.decoder.make_engine` for the interface.

    Args:
        decoder: `MusicDecoder` on the CPU. cond: projected condition [B,T_v,dim]. steps: positions to decode.
        guided: also decode each clip with the null condition. half: weights in bfloat16.
        threads: default torch.get_num_threads().

    Raises: UsageError when a width of the decoder is not a multiple of 16.
    """

    def __init__(self, decoder, cond: Tensor, steps: int, guided: bool, half: bool = False, threads: int | None = None):
        if not supported(decoder):
            raise UsageError(f"the CPU engine needs widths that are multiples of {LANES}; use engine='torch'")
        clips, cond_rows, dim = cond.shape
        rows = 2 * clips if guided else clips
        heads, hidden = decoder.heads, decoder.blocks[0].linear1.out_features
        capacity = -(-steps // LANES) * LANES
        self.shape = sh = Shape(
            len(decoder.blocks), dim, heads, hidden, decoder.n_q, decoder.card, rows, clips, capacity, cond_rows
        )
        self.decoder, self.steps, self.position = decoder, steps, 0
        self.weights = pack(decoder, half)
        norms = [n for b in decoder.blocks for n in (b.norm1, b.norm_cross, b.norm2)] + [decoder.out_norm]
        self.norms = torch.stack([torch.stack([n.weight, n.bias]) for n in norms]).detach().float().numpy()
        self.table = torch.stack([e.weight for e in decoder.emb]).detach().float().numpy()
        from vmas.decoder import sin_positions

        self.positions = sin_positions(torch.arange(steps), dim).numpy()
        cache = (sh.layers * rows * capacity * dim,)
        self.cache_k, self.cache_v = np.zeros(cache, np.float32), np.zeros(cache, np.float32)
        self.cross_k, self.cross_v = self._cross(cond)
        bias = decoder.time_bias(0, steps, cond_rows)
        self.bias = np.zeros((steps, 1), np.float32) if bias is None else bias.numpy()
        self.biased = bias is not None
        self.x, self.y = np.zeros(rows * dim, np.float32), np.zeros(rows * dim, np.float32)
        self.hidden = np.zeros(rows * hidden, np.float32)
        self.logits = np.zeros((rows, sh.n_q, sh.card), np.float32)
        self.z, self.keys = np.zeros(sh.card, np.float32), np.zeros(sh.card, np.int32)
        self.threads = max(1, threads or torch.get_num_threads())
        head_dim = dim // heads
        longest = max(capacity, -(-cond_rows // LANES) * LANES)
        sizes = (rows * dim, rows * 3 * head_dim, longest)
        self.private = [tuple(np.zeros(n, np.float32) for n in sizes) for _ in range(self.threads)]
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def _cross(self, cond: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Keys [L,B,heads,T/16,D,16] and values [L,B,heads,D/16,T,16] of the condition, T padded to 16.

        Clip by clip, because torch's product of a row depends in its last bits on the rows beside it.
        """
        clips = [[torch.stack(block.cross_kv(c[None])) for c in cond] for block in self.decoder.blocks]
        k, v = torch.stack([torch.cat(c, 1) for c in clips], 1).float()  # [L,B,heads,T,D] each
        pad = (0, 0, 0, -k.shape[3] % LANES)
        k, v = torch.nn.functional.pad(k, pad), torch.nn.functional.pad(v, pad)
        k = k.unflatten(3, (-1, LANES)).transpose(4, 5)
        v = v.unflatten(4, (-1, LANES)).transpose(3, 4)
        return k.reshape(-1).numpy(), v.reshape(-1).numpy()

    def advance(self, tokens: np.ndarray) -> None:
        """Decode one position: tokens int64 [B,K] → self.logits."""
        if self.position >= self.steps:
            raise UsageError(f"the cache holds {self.steps} positions and all are used")
        with compiled.filling(("advance", self.weights.dtype)):
            self._advance(tokens)

    def _advance(self, tokens: np.ndarray) -> None:
        s = self.position
        _embed(self.table, self.positions, s, tokens, self.shape.rows, self.x)
        # Fresh counters every step: a thread that wakes up late finds every task of its step taken.
        counters = np.zeros(2 * (STAGES * self.shape.layers + 1), np.int64)
        args = (self.shape, s, self.weights, self.norms, self.cache_k, self.cache_v, self.cross_k, self.cross_v,
                self.bias[s], self.biased, self.x, self.y, self.hidden, self.logits.reshape(-1))  # fmt: skip
        if self.pool is not None:
            for private in self.private[1:]:
                self.pool.submit(_step, *args, private, counters)
        _step(*args, self.private[0], counters)
        self.position += 1

    def step(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B,K] → logits [R,K,card] (a copy)."""
        self.advance(tokens.numpy())
        return torch.from_numpy(self.logits.copy())

    def next(self, tokens: Tensor, first: int, u: Tensor, options: sampling.Options) -> Tensor:
        """Decode one position and sample codebooks first … first+n-1: u [B,n] → tokens int64 [B,n]."""
        clips, (top_k, top_p, temperature, guidance) = self.shape.clips, options
        if top_p > 0.0:  # rare: left to torch
            logits = sampling.guide(self.step(tokens), clips, guidance)[:, first : first + u.shape[1]]
            return sampling.sample(logits, u, top_k, top_p, temperature)
        self.advance(tokens.numpy())
        new = np.empty(tuple(u.shape), np.int64)
        scale, heat = np.float32(guidance), float(temperature)
        with compiled.filling("choose"):
            finite = _choose(self.logits, clips, scale, u.numpy(), top_k, heat, first, self.z, self.keys, new)
        if not finite:
            raise DataError(sampling.NOT_FINITE)
        return torch.from_numpy(new)
