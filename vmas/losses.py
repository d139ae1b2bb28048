"""Training objectives of section 4.4: the contrastive term (eq. 2) and the weighted cross-entropy (eq. 4).

The total is L = β L_c + L_g. Masked positions are taken out before any softmax or mean, so that what
stands there (audiocraft leaves NaN) reaches neither a loss nor a gradient.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vmas.errors import DataError, UsageError


def contrastive_loss(
    x: Tensor,
    m: Tensor,
    temperature: float | Tensor = 1.0,
    symmetric: bool = False,
    gather: bool = False,
) -> Tensor:
    """L_c of eq. 2, a scalar: which music of the batch belongs to which video.

    `x` [B,D] pooled video features X̄_v, `m` [B,D] pooled music features M̄ (same D; the projection that
    makes it so belongs to the model). g is the cosine divided by `temperature`; 1 is eq. 2 as printed,
    and a tensor may be learned. `symmetric` averages video→music and music→video. `gather` takes the
    candidates from every process, with gradients; the loss then is this process's share, and the mean
    over processes (what data-parallel training forms) equals one process with the whole batch. Each
    process must hold the same B. Raises DataError when the shapes differ.
    """
    if x.ndim != 2 or x.shape != m.shape:
        raise DataError(
            f"eq. 2 needs video and music features of one shape [B,D], got {list(x.shape)}, {list(m.shape)}"
        )
    x, m = F.normalize(_full(x), dim=-1), F.normalize(_full(m), dim=-1)
    start, all_x, all_m = 0, x, m
    if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        start = dist.get_rank() * len(x)
        all_m = _Gather.apply(m)
        all_x = _Gather.apply(x) if symmetric else x
    target = torch.arange(start, start + len(x), device=x.device)
    loss = F.cross_entropy(x @ all_m.T / temperature, target)
    if symmetric:
        loss = (loss + F.cross_entropy(m @ all_x.T / temperature, target)) / 2
    return loss


def token_nll(logits: Tensor, codes: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log p(y) per token, float32 [B,K,T], 0 where masked.

    `logits` [B,K,T,card], `codes` int [B,K,T] (any value where masked), `mask` bool, True = valid,
    broadcastable to [B,K,T] (the [K,T] of the delay pattern is).
    """
    if logits.ndim != 4 or logits.shape[:3] != codes.shape:
        raise DataError(
            f"logits {list(logits.shape)} do not fit codes {list(codes.shape)}; [B,K,T,card] and [B,K,T] needed"
        )
    if mask is not None:
        mask = mask.expand(codes.shape)
        logits = torch.where(mask[..., None], logits, 0)
        codes = torch.where(mask, codes, 0)
    nll = F.cross_entropy(_full(logits).flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)
    return nll if mask is None else torch.where(mask, nll, 0)


def weighted_cross_entropy(
    logits: Tensor,
    codes: Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    normalise: str = "count",
) -> Tensor:
    """L_g of eq. 4, a scalar: Σ_t w_t (-log p(y_t)), then the mean over codebooks.

    Arguments as in `token_nll`; `weights` [B,T] is P_av of eq. 3 in the codec's time (after the delay
    pattern is reverted), shared by the K codebooks; None = 1 everywhere, the plain objective.
    `normalise`: "count" divides each codebook's sum by its number of valid tokens (literal), "weight"
    by its sum of valid weights, so that α does not scale the loss; with several processes by the mean of
    that sum over them, so that the mean of their losses is the loss of the whole batch. Codebooks without
    a valid token are left out; with none at all the loss is 0.
    """
    if normalise not in ("count", "weight"):
        raise UsageError(f"normalise must be 'count' or 'weight', got {normalise!r}")
    return weighted_mean(token_nll(logits, codes, mask), mask, weights, normalise)


def weighted_mean(
    nll: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, normalise: str = "count"
) -> Tensor:
    """Eq. 4 on ready-made -log p: `nll` [B,K,T] (0 where masked) → scalar; the rest as `weighted_cross_entropy`."""
    B, _, T = nll.shape
    if weights is not None and weights.shape != (B, T):
        raise DataError(f"beat weights must be [B,T] = [{B},{T}], got {list(weights.shape)}")
    if mask is None and weights is None:
        return nll.mean(dim=(0, 2)).mean() if nll.numel() else nll.sum()
    valid = torch.ones_like(nll) if mask is None else mask.expand(nll.shape).to(nll.dtype)
    w = valid if weights is None else valid * weights.to(nll.dtype)[:, None]
    total = (w * nll).sum(dim=(0, 2))
    size = (w if normalise == "weight" else valid).sum(dim=(0, 2))
    if normalise == "weight" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        size = size.detach().clone()
        dist.all_reduce(size)
        size = size / dist.get_world_size()
    used = size > 0
    return (total / torch.where(used, size, 1)).sum() / used.sum().clamp(min=1)


def music_embedding(logits: Tensor, codebooks: Tensor, mask: Tensor | None = None, output: str = "softmax") -> Tensor:
    """M̄ [B,D]: M_t = Σ_k ŷ_k[t] E_k (section 4.4, M = ŶE), mean over the valid time steps.

    `logits` [B,K,T,card], `codebooks` E [K,card,D] of the codec (frozen: no gradient), `mask` as in
    `token_nll`. A residual codec sums its codebooks, hence the sum over k. `output`: Ŷ is the "softmax"
    over a codebook, or the bare "logits". The mean over time is taken first, since E is linear.
    """
    if output not in ("softmax", "logits"):
        raise UsageError(f"output must be 'softmax' or 'logits', got {output!r}")
    B, K, T, card = logits.shape
    if codebooks.shape[:2] != (K, card):
        raise DataError(f"codebooks {list(codebooks.shape)} do not fit {K} codebooks of {card} entries")
    valid = None if mask is None else mask.expand(B, K, T)
    if valid is not None:
        logits = torch.where(valid[..., None], logits, 0)
    y = _full(logits).softmax(dim=-1) if output == "softmax" else _full(logits)
    if valid is None:
        share = y.new_full((1, 1, T), 1 / T).expand(B * K, 1, T)
    else:
        v = valid.to(y.dtype)
        share = (v / v.sum(dim=2, keepdim=True).clamp(min=1)).view(B * K, 1, T)
    # the mean over time as a product: its gradient is then one, too, in place of three passes over all logits
    mean = torch.bmm(share, y.flatten(0, 1)).view(B, K, card)
    return mean.flatten(1) @ codebooks.detach().to(mean.dtype).flatten(0, 1)


def _full(x: Tensor) -> Tensor:
    """Half precision to float32; the losses are never formed in bfloat16."""
    return x if x.dtype == torch.float64 else x.float()


class _Gather(torch.autograd.Function):
    """[B,D] of every process as [world·B,D]; the gradient is summed over processes and cut to this one's rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]
