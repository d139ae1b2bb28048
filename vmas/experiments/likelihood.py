"""How likely a decoder finds the clips' own music, token by token, given one video or another."""

from collections.abc import Callable
from typing import Any

import numpy as np


def encoded(model, frames: np.ndarray, size: int = 50):
    """X_v [N,T_v,d] of the videos uint8 [N,T,H,W,3], `size` at a time."""
    import torch

    with torch.inference_mode():
        parts = [
            model.encode_video(torch.from_numpy(np.array(frames[i : i + size])).to(model.device))
            for i in range(0, len(frames), size)
        ]
    return torch.cat(parts)


def token_nats(
    model,
    tokens: np.ndarray,
    X_v,
    conditioned: bool = True,
    size: int = 50,
    done: Callable[[int], Any] = lambda _: None,
) -> np.ndarray:
    """-log p of the music `tokens` int [N,K,t_a] given X_v [N,T_v,d] or no video: float64 [N,t_a], sum over codebooks.

    Token t of every codebook stands at its own time t, whatever the delay pattern does. `done` is told of every clip.
    """
    import torch

    from vmas import losses

    out = np.empty((len(tokens), tokens.shape[-1]))
    with torch.inference_mode():
        for i in range(0, len(tokens), size):
            codes = torch.from_numpy(np.asarray(tokens[i : i + size], np.int64)).to(model.device)
            keep = None if conditioned else torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
            logits = model.decoder.codec_time_logits(codes, X_v[i : i + size], keep)
            out[i : i + size] = losses.token_nll(logits, codes).sum(1).double().cpu().numpy()
            done(len(codes))
    return out
