"""The autoregressive music decoder (section 4.3, eq. 1; appendix B).

Per block, with pre-normalisation as in MusicGen (audiocraft `modules/transformer.py`):

    F^(l)   = CA(X_a^(l-1), X_a^(l-1), X_a^(l-1)) + X_a^(l-1)      causal self-attention
    X_a^(l) = MHA(F^(l), X_v, X_v) + F^(l)                         cross-attention to the video, every block
    X_a^(l) = FFN(X_a^(l)) + X_a^(l)                               as every transformer block; eq. 1 leaves it out

The four codebooks enter as a sum of embeddings in the delay pattern (`vmas.patterns`), and one linear
head per codebook predicts the next step (the paper's Ŷ). Published MusicGen weights map one to one
(`vmas.decoder_weights`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vmas import patterns, sampling
from vmas.errors import DataError, UsageError

ENGINES = ("auto", "torch", "float32", "bfloat16")
MAX_PERIOD = 10000.0


def sin_positions(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal positions [S,dim] for positions [S]: cosines then sines, audiocraft's `create_sin_embedding`."""
    half = dim // 2
    index = torch.arange(half, device=positions.device, dtype=torch.float32)
    phase = positions.float()[:, None] / MAX_PERIOD ** (index / max(half - 1, 1))
    return torch.cat([phase.cos(), phase.sin()], -1)


class Dropout(nn.Module):
    """Dropout whose mask, on a CPU, takes one random byte an element: there the drawing is a seventh of a step.

    The probability is rounded to 1/256 and the scale follows it, so the mean is kept exactly.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        cut = round(self.p * 256)
        # the whole range: random_() alone leaves the sign bit, and with it one byte in eight, short of a bit
        bits = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
        return x * keep.to(x.dtype).mul_(256 / (256 - cut))


class Block(nn.Module):
    """One block of eq. 1. Linear maps without bias, as MusicGen; so a zeroed condition adds exactly nothing."""

    def __init__(self, dim: int, heads: int, ff_mult: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm_cross = nn.LayerNorm(dim)
        self.q_cross = nn.Linear(dim, dim, bias=False)
        self.kv_cross = nn.Linear(dim, 2 * dim, bias=False)
        self.out_cross = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ff_mult * dim, bias=False)
        self.linear2 = nn.Linear(ff_mult * dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B,T,parts·D] → `parts` tensors [B,heads,T,D/heads]."""
        b, t, _ = x.shape
        # unbound in place: the gradients are then put together in x's own order, with one copy in place of two
        return tuple(part.transpose(1, 2) for part in x.view(b, t, parts, self.heads, -1).unbind(2))

    def cross_kv(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,heads,T_v,D/heads] of the projected condition [B,T_v,D]."""
        k, v = self.split(self.kv_cross(cond), 2)
        return k, v

    def self_attention(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x), 3)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def cross_attention(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        (q,) = self.split(self.q_cross(x), 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_cross(y.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.gelu(self.linear1(x))))

    def forward(self, x: Tensor, cond: Tensor | None, bias: Tensor | None) -> Tensor:
        """x [B,S,D], cond [B,T_v,D] (projected, zeroed where unconditioned), bias [S,T_v] or None → [B,S,D].

        None for `cond` where no clip has a condition: what a zeroed one adds is not worked out.
        """
        x = x + self.dropout(self.self_attention(self.norm1(x)))
        if cond is not None:
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), *self.cross_kv(cond), bias))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class MusicDecoder(nn.Module):
    """Transformer over delayed music tokens, conditioned on X_v.

    Args:
        n_q: codebooks K. card: entries per codebook; `card` itself is the special token.
        dim, layers, heads, ff_mult: width, depth, heads, FFN width over `dim`.
        cond_dim: width d of X_v; the projection to `dim` (`cond_proj`) belongs to the decoder.
        dropout: after each sub-layer and inside the FFN (not on attention weights).
        time_bias_s: width w in seconds of the bias -((t_a - t_v)/w)² added to the cross-attention's scores,
            t_a = s/frame_rate the time of the token of codebook 0 that position s predicts, t_v = cond_start
            + j/cond_rate that of row j of X_v. Not in the paper: None (off) is the paper's model.
        frame_rate: token steps per second. cond_rate: rows of X_v per second (paper: 9.6 fps / stride 2).
        cond_start: time of row 0 in seconds; None = 0.5/cond_rate, the middle of the first of equal parts.
        gradient_checkpointing: recompute each block in the backward pass, for memory.
    """

    def __init__(
        self,
        n_q: int,
        card: int,
        dim: int,
        layers: int,
        heads: int,
        ff_mult: int,
        cond_dim: int,
        dropout: float = 0.0,
        time_bias_s: float | None = None,
        frame_rate: float = 50.0,
        cond_rate: float = 4.8,
        cond_start: float | None = None,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        if dim % heads or dim % 2:
            raise UsageError(f"decoder: dim {dim} must be even and divisible by heads {heads}")
        if time_bias_s is not None and time_bias_s <= 0:
            raise UsageError(f"decoder: time_bias_s must be positive seconds or null, got {time_bias_s}")
        self.n_q, self.card, self.dim, self.heads, self.cond_dim = n_q, card, dim, heads, cond_dim
        self.time_bias_s, self.frame_rate, self.cond_rate = time_bias_s, frame_rate, cond_rate
        self.cond_start = cond_start
        self.gradient_checkpointing = gradient_checkpointing
        self.emb = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(n_q))
        self.cond_proj = nn.Linear(cond_dim, dim)
        self.layers = nn.ModuleList(Block(dim, heads, ff_mult, dropout) for _ in range(layers))
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, card, bias=False) for _ in range(n_q))
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal of std 1/√fan_in cut at 3 std, blocks further divided by √(2·depth): MusicGen's recipe, but one.

        Token embeddings begin with std 1, as large as the positions that are added to them: with MusicGen's
        1/√dim the tokens are drowned at first, and a short training does not get over it.
        """

        def init(weight: Tensor, depth: float = 0.5) -> None:
            std = 1.0 / math.sqrt(weight.shape[1] * 2 * depth)
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

        for name, weight in self.named_parameters():
            if name.startswith("linears."):
                init(weight)
            elif name.startswith("emb."):
                nn.init.normal_(weight)
        for depth, block in enumerate(self.blocks, start=1):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    init(module.weight, depth)

    @property
    def blocks(self) -> list[Block]:
        """The transformer's blocks, first to last."""
        return cast(list[Block], list(self.layers))

    def conditioning(self) -> list[nn.Parameter]:
        """The parameters that only a condition reaches: its projection and the cross-attention."""
        return [p for name, p in self.named_parameters() if name.startswith("cond_proj.") or "cross" in name]

    @property
    def special(self) -> int:
        """Token that fills positions without a code."""
        return self.card

    def project_condition(self, X_v: Tensor, cond_mask: Tensor | None = None) -> Tensor:
        """[B,T_v,cond_dim] → [B,T_v,dim]; rows with cond_mask False become the null condition.

        The null condition is zero after the projection, as MusicGen's conditioners leave it.
        """
        if X_v.ndim != 3 or X_v.shape[-1] != self.cond_dim:
            raise DataError(f"X_v must have shape [B,T_v,{self.cond_dim}], got {list(X_v.shape)}")
        cond = self.cond_proj(X_v)
        if cond_mask is None:
            return cond
        if cond_mask.shape != X_v.shape[:1]:
            raise DataError(f"cond_mask must have shape [{len(X_v)}], got {list(cond_mask.shape)}")
        return cond * cond_mask.to(cond)[:, None, None]

    def time_bias(self, start: int, steps: int, rows: int, device: torch.device | None = None) -> Tensor | None:
        """Bias [steps,rows] of positions start … start+steps-1 against the rows of X_v, or None when off."""
        if self.time_bias_s is None:
            return None
        t_a = torch.arange(start, start + steps, device=device, dtype=torch.float32) / self.frame_rate
        j = torch.arange(rows, device=device, dtype=torch.float32)
        t_v = (j + 0.5) / self.cond_rate if self.cond_start is None else self.cond_start + j / self.cond_rate
        return -(((t_a[:, None] - t_v) / self.time_bias_s) ** 2)

    def embed(self, seq: Tensor, start: int = 0) -> Tensor:
        """Sum of the codebooks' embeddings plus positions: seq [B,K,S] → [B,S,D], S beginning at `start`."""
        x = torch.stack([emb(seq[:, k]) for k, emb in enumerate(self.emb)]).sum(0)
        return x + sin_positions(torch.arange(start, start + seq.shape[-1], device=seq.device), self.dim).to(x)

    def forward(self, seq: Tensor, X_v: Tensor, cond_mask: Tensor | None = None) -> Tensor:
        """Teacher-forced logits (eq. 1, then Ŷ).

        Args:
            seq: int64 [B,K,S], delayed tokens 0 … card-1 and the special token `card`.
            X_v: float [B,T_v,cond_dim].
            cond_mask: bool [B], False = null condition for that clip; None = all conditioned.

        Returns: logits [B,K,S,card]; position s predicts sequence position s+1.
        Raises: DataError for wrong shapes.
        """
        x = self.hidden(seq, X_v, cond_mask)
        return torch.stack([linear(x) for linear in self.linears], 1)

    def hidden(
        self, seq: Tensor, X_v: Tensor | None, cond_mask: Tensor | None = None, starts: Sequence[int] = (0,)
    ) -> Tensor:
        """Output of the last block after the final norm [B,S,dim], which the heads read; arguments as `forward`.

        None for X_v is the null condition for every clip, in the same bits and without the cross-attention.

        With n `starts`, seq is [n·B,K,S]: n pieces of every clip, piece i beginning at token starts[i] of the
        video's time line and at position 0 of its own (a piece is heard as a clip that begins there).
        """
        n, S = len(starts), seq.shape[-1]
        self._check_seq(seq, X_v, n)
        x = self.embed(seq)
        cond = mask = None
        if X_v is not None:
            cond = self.project_condition(X_v, cond_mask).repeat(n, 1, 1)
            bias = [self.time_bias(t0, S, X_v.shape[1], x.device) for t0 in starts]
            known = [b.to(x.dtype) for b in bias if b is not None]
            mask = known[0] if known else None
            if len(known) > 1:  # one a piece, for every clip of it: [n·B,1,S,T_v]
                mask = torch.stack(known).repeat_interleave(len(X_v), 0)[:, None]
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = recompute(block, x, cond, mask, use_reentrant=False)
            else:
                x = block(x, cond, mask)
        return self.out_norm(x)

    def codec_time_logits(
        self, codes: Tensor, X_v: Tensor | None, cond_mask: Tensor | None = None, pieces: int = 1, start: int = 0
    ) -> Tensor:
        """Teacher-forced logits of codes int64 [B,K,T] in the codec's own time: [B,K,T,card].

        The same numbers as delaying, `forward` and `patterns.revert_logits`; every head reads only the
        positions that it is asked for, so nothing is masked and nothing is copied.

        codes may begin at token `start` of the clip, and be cut into `pieces` of equal length that do not hear
        each other: the logits of a piece are those of music that begins there. Raises DataError when T is not
        divisible by `pieces`.
        """
        b, k, T = codes.shape
        if T % pieces:
            raise DataError(f"{T} tokens cannot be cut into {pieces} equal pieces")
        L = T // pieces
        cut = codes.reshape(b, k, pieces, L).permute(2, 0, 1, 3).flatten(0, 1)
        starts = range(start, start + T, L)
        x = self.hidden(patterns.delay(cut, self.special)[..., :-1], X_v, cond_mask, starts)
        logits = torch.stack([linear(x[:, k : k + L]) for k, linear in enumerate(self.linears)], 1)
        if pieces == 1:
            return logits
        return logits.unflatten(0, (pieces, b)).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _check_seq(self, seq: Tensor, X_v: Tensor | None, pieces: int = 1) -> None:
        if seq.ndim != 3 or seq.shape[1] != self.n_q or seq.shape[-1] == 0:
            raise DataError(f"tokens must have shape [B,{self.n_q},S] with S > 0, got {list(seq.shape)}")
        if seq.is_floating_point():
            raise DataError(f"tokens must be integers, got {seq.dtype}")
        if X_v is not None and len(seq) != len(X_v) * pieces:
            raise DataError(f"{len(seq)} token sequences but {len(X_v)} clips in X_v")

    @torch.no_grad()
    def generate(
        self,
        X_v: Tensor,
        num_tokens: int,
        *,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        guidance: float = 3.0,
        seed: int = 0,
        first: int = 0,
        progress: Callable[[int, int], None] | None = None,
        engine: str = "auto",
    ) -> Tensor:
        """Sample tokens for each clip with cached keys and values.

        Args:
            X_v: float [B,T_v,cond_dim].
            num_tokens: t_a, token steps per clip; num_tokens + K - 1 decoding steps are run (delay pattern).
            top_k, top_p, temperature: see `vmas.sampling.keep_mask`; temperature 0 or top_k 1 is greedy.
            guidance: scale g of classifier-free guidance, null + g·(conditioned - null); 1 = none.
            seed, first: clip b draws from (seed, first + b) alone, so its tokens do not depend on its batch.
            progress: called as progress(steps_done, steps).
            engine: "torch" (any device), "float32" or "bfloat16" (`vmas.decode_cpu`, the latter with
                weights rounded to bfloat16), or "auto": float32 on a CPU, else torch.

        Returns: codes int64 [B,K,num_tokens].
        Raises: DataError for wrong shapes or non-finite logits, UsageError for options out of range.
        """
        options = sampling.Options(top_k, top_p, temperature, guidance)
        options.check()
        if num_tokens < 1:
            raise UsageError(f"num_tokens must be at least 1, got {num_tokens}")
        training = self.training
        self.eval()  # no dropout while sampling
        try:
            return self._generate(X_v, num_tokens, options, seed, first, progress, engine)
        finally:
            self.train(training)

    def _generate(self, X_v, num_tokens, options, seed, first, progress, engine) -> Tensor:
        guided = options.guidance != 1.0
        clips, steps = len(X_v), num_tokens + self.n_q - 1
        u = sampling.uniforms(seed, first, clips, steps, self.n_q).to(X_v.device)
        cond = torch.cat([self.project_condition(X_v[b : b + 1]) for b in range(clips)])
        run = make_engine(self, engine, cond, steps, guided)
        codes = torch.full((clips, self.n_q, num_tokens), self.special, dtype=torch.int64, device=X_v.device)
        tokens = torch.full((clips, self.n_q), self.special, dtype=torch.int64, device=X_v.device)
        for s in range(steps):
            # step s fills codebook k at time s - k; outside the clip the special token stays (delay pattern)
            lo, hi = max(0, s - num_tokens + 1), min(self.n_q, s + 1)
            new = run.next(tokens, lo, u[:, s, lo:hi], options)
            tokens.fill_(self.special)
            tokens[:, lo:hi] = new
            for k in range(lo, hi):
                codes[:, k, s - k] = tokens[:, k]
            if progress is not None:
                progress(s + 1, steps)
        return codes


class Engine(Protocol):
    """Decodes one position after the other, with cached keys and values."""

    def step(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B,K] → logits [R,K,card]; R = 2·B when guided: the clips, then the same with no condition."""
        ...

    def next(self, tokens: Tensor, first: int, u: Tensor, options: sampling.Options) -> Tensor:
        """A step, then tokens int64 [B,n] of codebooks first … first+n-1 drawn with u [B,n] in [0,1)."""
        ...


def make_engine(decoder: MusicDecoder, engine: str, cond: Tensor, steps: int, guided: bool) -> Engine:
    """The engine named `engine` (see `MusicDecoder.generate`) for cond [B,T_v,dim], the projected condition.

    steps: positions that it must hold. guided: also decode every clip with the null condition.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown decoding engine {engine!r}: one of {', '.join(ENGINES)}")
    if engine == "torch" or (engine == "auto" and (cond.device.type != "cpu" or cond.dtype != torch.float32)):
        return TorchEngine(decoder, cond, steps, guided)
    if cond.device.type != "cpu":
        raise UsageError(f"decoding engine {engine!r} runs on the CPU, the decoder is on {cond.device}")
    from vmas import decode_cpu

    if engine == "auto" and not decode_cpu.supported(decoder):
        return TorchEngine(decoder, cond, steps, guided)
    return decode_cpu.CpuEngine(decoder, cond, steps, guided, half=engine == "bfloat16")


class TorchEngine:
    """Cached decoding with torch operations on any device: preallocated self-attention cache, cross-attention
    keys and values computed once. Rows with the null condition skip the cross-attention, which adds zero there."""

    def __init__(self, decoder: MusicDecoder, cond: Tensor, steps: int, guided: bool):
        self.decoder, self.guided, self.clips, self.position = decoder, guided, len(cond), 0
        rows, head_dim = self.clips * (2 if guided else 1), decoder.dim // decoder.heads
        shape = (len(decoder.blocks), 2, rows, decoder.heads, steps, head_dim)
        self.cache = torch.zeros(shape, dtype=cond.dtype, device=cond.device)
        self.cross = [block.cross_kv(cond) for block in decoder.blocks]

    def step(self, tokens: Tensor) -> Tensor:
        d, n, s = self.decoder, self.clips, self.position
        x = d.embed(tokens[:, :, None], start=s)
        if self.guided:
            x = torch.cat([x, x])
        bias = d.time_bias(s, 1, self.cross[0][0].shape[2], x.device)
        bias = None if bias is None else bias.to(x.dtype)
        for i, block in enumerate(d.blocks):
            q, k, v = block.split(block.qkv(block.norm1(x)), 3)
            self.cache[i, 0, :, :, s : s + 1] = k
            self.cache[i, 1, :, :, s : s + 1] = v
            past = self.cache[i, :, :, :, : s + 1]
            y = F.scaled_dot_product_attention(q, past[0], past[1])
            x = x + block.out(y.transpose(1, 2).flatten(2))
            x[:n] += block.cross_attention(block.norm_cross(x[:n]), *self.cross[i], bias)
            x = x + block.feed_forward(block.norm2(x))
        self.position += 1
        x = d.out_norm(x)[:, 0]
        return torch.stack([linear(x) for linear in d.linears], 1)

    def next(self, tokens: Tensor, first: int, u: Tensor, options: sampling.Options) -> Tensor:
        logits = sampling.guide(self.step(tokens), self.clips, options.guidance)
        return sampling.sample(logits[:, first : first + u.shape[1]], u, *options[:3])
