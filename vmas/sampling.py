"""Choosing the next token from logits: temperature, top-k, top-p, seeded per clip.

One uniform number per clip, step and codebook is drawn in advance and turned into a token by the
inverse of the cumulative distribution, so that a clip's tokens depend on its own seed only and not
on the batch that it is generated in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vmas.errors import DataError, UsageError

NOT_FINITE = "the decoder's logits are not finite: the weights or X_v hold NaN or infinite values"


class Options(NamedTuple):
    """How to sample; see `keep_mask` for top_k and top_p, `guide` for guidance. temperature 0 is greedy."""

    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0
    guidance: float = 3.0

    def check(self) -> None:
        """Raise UsageError for an option outside its range."""
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0.0 <= self.top_p <= 1.0:
            raise UsageError(f"top_p must lie between 0 (off) and 1, got {self.top_p}")
        if not 0.0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be 0 (greedy) or more and finite, got {self.temperature}")
        if not math.isfinite(self.guidance):
            raise UsageError(f"guidance must be a finite number, got {self.guidance}")


def uniforms(seed: int, first: int, clips: int, steps: int, n_q: int) -> Tensor:
    """Uniform numbers in [0,1), float32 [clips,steps,n_q]; row b depends on (seed, first + b) and n_q only.

    A longer sequence of the same clip begins with the numbers of the shorter one.
    """
    rows = []
    for clip in range(first, first + clips):
        generator = torch.Generator().manual_seed(_mix(seed, clip))
        rows.append(torch.rand(steps, n_q, generator=generator))
    return torch.stack(rows)


def _mix(seed: int, clip: int) -> int:
    """A 63-bit seed in which neighbouring (seed, clip) pairs share nothing (splitmix64's finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + (clip + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & 0x7FFFFFFFFFFFFFFF


def guide(logits: Tensor, clips: int, guidance: float) -> Tensor:
    """Classifier-free guidance: rows [given; null] of logits [2B,…] → null + guidance·(given - null) [B,…].

    Logits of B rows only (no null rows were decoded) pass unchanged.
    """
    if len(logits) == clips:
        return logits
    given, null = logits.split(clips)
    return null + (given - null) * guidance


def is_greedy(top_k: int, top_p: float, temperature: float) -> bool:
    """Whether the options leave one candidate only."""
    return temperature == 0.0 or (top_k == 1 and top_p == 0.0)


def keep_mask(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Candidates that stay, bool like `logits` [..., card] (already divided by the temperature).

    top_p > 0 keeps the most likely tokens until their probabilities reach top_p and replaces top-k, as in
    audiocraft's `LMModel`; else top_k > 0 keeps the top_k largest (and those equal to the smallest of them).
    """
    if top_p > 0.0:
        p, order = torch.softmax(logits, -1).sort(dim=-1, descending=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p <= top_p)
    if 0 < top_k < logits.shape[-1]:
        return logits >= logits.topk(top_k, dim=-1, sorted=True).values[..., -1:]
    return torch.ones_like(logits, dtype=torch.bool)


def sample(logits: Tensor, u: Tensor, top_k: int = 0, top_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Tokens int64 [...] for logits float [...,card] and uniform numbers u [...] in [0,1).

    Raises DataError when the logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise DataError(NOT_FINITE)
    if is_greedy(top_k, top_p, temperature):
        return logits.argmax(-1)
    logits = logits.float() / temperature
    p = torch.softmax(logits.masked_fill(~keep_mask(logits, top_k, top_p), float("-inf")), -1)
    cdf = p.double().cumsum(-1)
    # The last sum may differ from 1 by rounding: u is scaled by it, so that the token is always a candidate.
    return torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)[..., 0]
