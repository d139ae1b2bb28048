"""Delay interleaving of the codebooks (appendix B; MusicGen's "delay" pattern).

Codebook k enters the sequence k steps later than the first, so that one step predicts all K codebooks
while codebook k still sees the coarser ones of its own moment. The layout is audiocraft's
`DelayedPatternProvider` (audiocraft/modules/codebooks_patterns.py): column 0 holds the special token
only, codebook k at time t stands in column t + delays[k] + 1, and everything else is special.

    K = 3, T = 4, S = special     column  0 1 2 3 4 5 6
                                          S 0 1 2 3 S S
                                          S S 0 1 2 3 S
                                          S S S 0 1 2 3
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _delays(n_q: int, delays: Sequence[int] | None) -> list[int]:
    out = list(range(n_q)) if delays is None else [int(d) for d in delays]
    if len(out) != n_q or out != sorted(out) or (out and out[0] < 0):
        raise ValueError(f"delays must be {n_q} non-negative numbers in ascending order, got {out}")
    return out


def length(T: int, n_q: int, delays: Sequence[int] | None = None) -> int:
    """Columns of the delayed sequence of T steps: T + the largest delay + 1 (T + K by default)."""
    return T + _delays(n_q, delays)[-1] + 1


def delay(codes: Tensor, special: int, delays: Sequence[int] | None = None, valid_only: bool = False) -> Tensor:
    """Interleave codes.

    Args:
        codes: int [B,K,T].
        special: token of the places that hold no code (the decoder uses `card`).
        delays: steps by which each codebook comes later, ascending; default 0, 1, ..., K-1.
        valid_only: cut to the T + 1 columns in which no codebook has run out (audiocraft's `valid_layout`).

    Returns: int [B,K,S] with S = T + max(delays) + 1, T + K by default.
    """
    B, K, T = codes.shape
    shifts = _delays(K, delays)
    seq = codes.new_full((B, K, length(T, K, shifts)), special)
    for k, d in enumerate(shifts):
        seq[:, k, d + 1 : d + 1 + T] = codes[:, k]
    return seq[..., : T + 1] if valid_only else seq


def revert(seq: Tensor, T: int, delays: Sequence[int] | None = None, special: int | None = None) -> Tensor:
    """Codes int [B,K,T] out of a delayed sequence int [B,K,S]: `revert(delay(x, s), T) == x`.

    Places beyond the end of a shorter sequence become `special`; without one they raise ValueError.
    """
    B, K, S = seq.shape
    shifts = _delays(K, delays)
    missing = length(T, K, shifts) - S
    if missing > 0:
        if special is None:
            raise ValueError(f"{T} steps of {K} codebooks need {S + missing} columns, got {S}")
        seq = torch.cat([seq, seq.new_full((B, K, missing), special)], dim=-1)
    return torch.stack([seq[:, k, d + 1 : d + 1 + T] for k, d in enumerate(shifts)], dim=1)


def revert_logits(logits: Tensor, T: int, delays: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Bring the decoder's outputs back to codec time.

    Column s of the decoder predicts column s + 1 of the sequence, so the logits of codebook k at time t
    stand in column t + delays[k].

    Args:
        logits: float [B,K,S,card], the outputs on `delay(codes, card)[..., :-1]` (its last column predicts nothing).
        T: token steps.

    Returns: (float [B,K,T,card], mask bool [K,T]). The mask is False where the sequence ended before the
    codebook's turn; logits are 0 there (audiocraft leaves NaN, which would poison any softmax or mean).
    """
    B, K, S, card = logits.shape
    shifts = _delays(K, delays)
    missing = T + shifts[-1] - S
    if missing > 0:
        logits = torch.cat([logits, logits.new_zeros(B, K, missing, card)], dim=2)
    out = torch.stack([logits[:, k, d : d + T] for k, d in enumerate(shifts)], dim=1)
    column = torch.arange(T, device=logits.device) + torch.tensor(shifts, device=logits.device)[:, None]
    return out, column < S
