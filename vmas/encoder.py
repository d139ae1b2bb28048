"""The efficient video encoder: Hiera with stronger spatial pooling and time kept whole.

Section 4.2, Table 2 and appendix B of the paper. Architecture after "Hiera: A Hierarchical Vision
Transformer without the Bells-and-Whistles" (arXiv:2306.00989); the names of the parameters are those
of its reference code (facebookresearch/hiera), so that its weights load as they are
(`vmas.encoder_weights`).

With the paper's numbers, 96 frames of 224x224:

    tokens   48 x 56 x 56 x 96     blocks 0-1    attention inside 8x8 windows of one time step
    pool 4   48 x 14 x 14 x 192    blocks 2-4    7x7 windows (block 2 itself still attends in 8x8)
    pool 7   48 x  2 x  2 x 384    blocks 5-20   all tokens of the clip (block 5 still in 7x7)
    pool 2   48 x  1 x  1 x 768    blocks 21-23  all tokens of the clip
    X_v      48 x 768              after the final norm

Open in the paper and chosen here: the windows (8x8 leaves stage 1 as pretrained, 7x7 is the smallest
that holds the 7-pool), the final norm, LayerNorm's eps 1e-6 (Hiera's), normalisation of the pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vmas.config import EncoderConfig
from vmas.errors import ConfigError

EPS = 1e-6
NORMALISATION = {  # mean and standard deviation of the pixels in [0, 1]
    "kinetics": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),  # Hiera's video models
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # its image models
}
# CUDA's attention kernels put the batch on a grid axis that ends here; 28 clips of 8x8 windows are more.
MAX_BATCH = {"cuda": 65535}
# Tokens of a windowed stage worked on at once without gradients: the widest buffer of a part stays in cache.
PART_TOKENS = 2048


def normalise(frames: Tensor, statistics: str = "kinetics") -> Tensor:
    """Pixels to the encoder's input: uint8 [B,T,H,W,3] → float32 [B,3,T,H,W].

    `statistics` is "kinetics" (Hiera's video models) or "imagenet" (when image weights are loaded).
    """
    mean, std = (torch.tensor(v, device=frames.device) for v in NORMALISATION[statistics])
    x = frames.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return x.sub_((mean * 255).view(3, 1, 1, 1)).div_((std * 255).view(3, 1, 1, 1))


@dataclass(frozen=True)
class Layout:
    """Order of the tokens in one run of blocks: window by window, cells of the coming pool outermost.

    grid: (T', H, W) of the tokens. window: (t, h, w) of one attention window. pool: (ph, pw) of the pooling
    that ends the run, (1, 1) for none. Inside a window the tokens stand as (ph, pw, t, h/ph, w/pw), so that
    pooling is a maximum over the outermost axis.
    """

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    pool: tuple[int, int] = (1, 1)

    @property
    def tokens(self) -> int:
        """Tokens in a window."""
        return math.prod(self.window)

    @property
    def cells(self) -> int:
        """Tokens that pooling makes into one."""
        return math.prod(self.pool)

    @property
    def pooled(self) -> "Layout":
        """The layout after the pooling."""
        (T, H, W), (t, h, w), (p, q) = self.grid, self.window, self.pool
        return Layout((T, H // p, W // q), (t, h // p, w // q))

    def gather(self, x: Tensor) -> Tensor:
        """[B,T',H,W,C] → windows [B·n,L,C] (always contiguous, at most one copy)."""
        (T, H, W), (t, h, w), (p, q) = self.grid, self.window, self.pool
        B, C = x.shape[0], x.shape[-1]
        # H = (windows, rest of window, cell): the cell is innermost in space and outermost in a window.
        x = x.reshape(B, T // t, t, H // h, h // p, p, W // w, w // q, q, C)
        return x.permute(0, 1, 3, 6, 5, 8, 2, 4, 7, 9).reshape(-1, self.tokens, C)

    def scatter(self, x: Tensor) -> Tensor:
        """Windows [B·n,L,C] → [B,T',H,W,C]."""
        (T, H, W), (t, h, w), (p, q) = self.grid, self.window, self.pool
        C = x.shape[-1]
        x = x.reshape(-1, T // t, H // h, W // w, p, q, t, h // p, w // q, C)
        return x.permute(0, 1, 6, 2, 7, 4, 3, 8, 5, 9).reshape(-1, T, H, W, C)


def _pool(x: Tensor, cells: int) -> Tensor:
    """Maximum over each pool cell: [N,cells·L,C] → [N,L,C]."""
    return x if cells == 1 else x.unflatten(1, (cells, -1)).amax(1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention [N,heads,L,d], in as many calls as the device's kernels need."""
    limit = MAX_BATCH.get(q.device.type, len(q))
    if len(q) <= limit:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(q.split(limit), k.split(limit), v.split(limit), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


class Attention(nn.Module):
    """Self-attention inside each window, with pooled queries where `cells` > 1.

    The windows are the batch: [N,L,dim] → [N,L/cells,dim_out]. Fused attention needs this shape; with the
    windows on an axis of their own it falls back to a slower kernel.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, cells: int = 1):
        super().__init__()
        self.heads, self.cells = heads, cells
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (s.unflatten(-1, (self.heads, -1)).transpose(1, 2) for s in (_pool(q, self.cells), k, v))
        return self.proj(_attend(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU, linear: [...,dim] → [...,dim]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block of Hiera on windows [N,L,dim] → [N,L/cells,dim_out].

    A block that widens (dim ≠ dim_out) projects its normed input for the skip path, and pools both paths.
    `drop_path` leaves out a residual branch for whole clips, never for single windows.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, mlp_ratio: float, cells: int = 1, drop_path: float = 0.0):
        super().__init__()
        self.cells, self.drop_path = cells, drop_path
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self.attn = Attention(dim, dim_out, heads, cells)
        self.norm2 = nn.LayerNorm(dim_out, eps=EPS)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))

    def _drop(self, x: Tensor, clips: int) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        mask = x.new_empty(clips, 1).bernoulli_(keep).div_(keep)
        return (x.reshape(clips, -1) * mask).view_as(x)

    def forward(self, x: Tensor, clips: int = 1) -> Tensor:
        h = self.norm1(x)
        if hasattr(self, "proj"):
            x = _pool(self.proj(h), self.cells)
        x = x + self._drop(self.attn(h), clips)
        return x + self._drop(self.mlp(self.norm2(x)), clips)


class PatchEmbed(nn.Module):
    """Video to tokens by one 3-D convolution: [B,in_chans,T,H,W] → [B,T',H',W',dim]."""

    def __init__(self, in_chans: int, dim: int, kernel, stride, padding):
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video).movedim(1, -1)


class VideoEncoder(nn.Module):
    """Video to one feature per two frames: X_v of section 4.2.

    Args:
        num_frames, img_size: t_v and the side (or height and width) of the frames.
        in_chans, embed_dim, num_heads: channels of the video, width and heads of stage 1; both double per stage.
        depths: blocks of each stage.
        pool: (height, width) of the pooling in the first block of stages 2, 3, ...
        windows: attention window (height, width) of each stage, inside one time step; None attends to every
            token of the clip. A pooling block keeps the window of the stage before it.
        patch_kernel, patch_stride, patch_padding: the convolution (time, height, width) that makes the tokens.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.
        mlp_ratio: hidden width of the MLPs over their width.
        single_output: the last stage must have one token per time step, as the paper's. False allows more
            (X_v is then [B,T'·H·W,D]); it is there to compare with Hiera as published.
        gradient_checkpointing: recompute each block in the backward pass, for memory.

    Raises ConfigError when sizes do not fit each other, naming the stage and what would fit.
    """

    def __init__(
        self,
        num_frames: int = 96,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        num_heads: int = 1,
        depths: Sequence[int] = (2, 3, 16, 3),
        pool: Sequence[tuple[int, int]] = ((4, 4), (7, 7), (2, 2)),
        windows: Sequence[tuple[int, int] | None] = ((8, 8), (7, 7), None, None),
        patch_kernel: tuple[int, int, int] = (3, 7, 7),
        patch_stride: tuple[int, int, int] = (2, 4, 4),
        patch_padding: tuple[int, int, int] = (1, 3, 3),
        drop_path_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        single_output: bool = True,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.input_shape = (in_chans, num_frames, height, width)
        if embed_dim % num_heads:
            raise ConfigError(f"encoder: embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        grid = patch_grid((num_frames, height, width), patch_kernel, patch_stride, patch_padding)
        self.layouts = plan(grid, depths, pool, windows, single_output)
        self.grid = grid
        self.dim = embed_dim * 2 ** (len(depths) - 1)
        self.width = self.dim  # of X_v
        self.rows = [t * patch_stride[0] - patch_padding[0] + patch_kernel[0] // 2 for t in range(grid[0])]

        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_kernel, patch_stride, patch_padding)
        self.pos_embed_spatial = nn.Parameter(torch.empty(1, grid[1] * grid[2], embed_dim))
        self.pos_embed_temporal = nn.Parameter(torch.empty(1, grid[0], embed_dim))
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.blocks = nn.ModuleList()
        self.runs: list[tuple[range, range]] = []  # blocks under layouts[n]: the stage's own, then the pooling block
        dim, heads, start = embed_dim, num_heads, 0
        for n, depth in enumerate(depths):
            for i in range(depth):
                widen = n > 0 and i == 0
                dim_out, heads = (2 * dim, 2 * heads) if widen else (dim, heads)
                cells = self.layouts[n - 1].cells if widen else 1
                self.blocks.append(EncoderBlock(dim, dim_out, heads, mlp_ratio, cells, rates[len(self.blocks)]))
                dim = dim_out
            stop = len(self.blocks)
            last = stop + (n < len(depths) - 1)
            self.runs.append((range(start, stop), range(stop, last)))
            start = last
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self._initialise()

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the videos that the encoder is given."""
        return self.input_shape

    @property
    def rows_at(self) -> list[int]:
        """The frame of the clip that each time step of X_v is centred on."""
        return self.rows

    @classmethod
    def from_config(cls, cfg: EncoderConfig, num_frames: int, img_size: int | tuple[int, int]) -> "VideoEncoder":
        """The encoder of a profile; `cfg.weights` is not loaded here (see `vmas.encoder_weights`)."""
        return cls(
            num_frames=num_frames,
            img_size=img_size,
            embed_dim=cfg.embed_dim,
            num_heads=cfg.num_heads,
            depths=cfg.depths,
            pool=cfg.pool,
            windows=cfg.windows,
            patch_kernel=cfg.patch_kernel,
            patch_stride=cfg.patch_stride,
            patch_padding=cfg.patch_padding,
            drop_path_rate=cfg.drop_path_rate,
        )

    def block(self, i: int) -> EncoderBlock:
        """EncoderBlock i, counted from 0 over all stages."""
        return cast(EncoderBlock, self.blocks[i])

    def _initialise(self):
        # Xavier's bound follows the width, so that the small encoders trained here learn as well as wide ones.
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Conv3d)):
                nn.init.xavier_uniform_(m.weight.flatten(1))
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        for p in (self.pos_embed_spatial, self.pos_embed_temporal):
            nn.init.trunc_normal_(p, std=0.02)

    def forward(self, video: Tensor, return_stages: bool = False):
        """X_v [B,T',D] of a normalised video [B,in_chans,T,H,W]; T' = T/2 and D = 768 with the paper's numbers.

        With `return_stages` also the list of every stage's tokens [B,T',H_s,W_s,C_s], before the pooling that
        ends the stage and before the final norm. Raises ConfigError for a video of another shape than the
        encoder was made for.
        """
        if tuple(video.shape[1:]) != self.input_shape:
            want = ",".join(map(str, self.input_shape))
            raise ConfigError(f"encoder: the video is {list(video.shape)}, this encoder takes [B,{want}]")
        x = self.patch_embed(video)
        B, T = x.shape[:2]
        stages = []
        for n, layout in enumerate(self.layouts):
            # Windows do not reach across time: where no gradient keeps the tokens alive, a few time steps at a
            # time go through the whole run, so that every buffer stays in the processor's cache.
            steps = T
            if layout.window[0] == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
                steps = max(1, PART_TOKENS // math.prod(layout.grid[1:]))
            kept = [] if return_stages else None
            if steps >= T:
                x = self._run(n, x, 0, kept)
            else:
                parts = [(clip[:, t : t + steps], t) for clip in x.split(1) for t in range(0, T, steps)]
                x = _join([self._run(n, part, t, kept) for part, t in parts], B)
            if kept is not None:
                stages.append(_join(kept, B))
        X_v = self.norm(x.flatten(1, 3))
        return (X_v, stages) if return_stages else X_v

    def _run(self, n: int, x: Tensor, start: int, kept: list[Tensor] | None) -> Tensor:
        """Stage n and the pooling block after it on time steps start, start+1, ...: [B,t,H,W,C] → [B,t,H',W',C'].

        The stage's tokens before the pooling block are appended to `kept`.
        """
        B, t, H, W, _ = x.shape
        if n == 0:
            time = self.pos_embed_temporal[:, start : start + t, None, None]
            x = x + (self.pos_embed_spatial.view(1, 1, H, W, -1) + time)
        layout = replace(self.layouts[n], grid=(t, H, W))
        x = layout.gather(x)
        stage, pooling = self.runs[n]
        for i in stage:
            x = self._block(i, x, B)
        if kept is not None:
            kept.append(layout.scatter(x))
        for i in pooling:
            x = self._block(i, x, B)
        return layout.pooled.scatter(x)

    def _block(self, i: int, x: Tensor, clips: int) -> Tensor:
        block = self.blocks[i]
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if x.requires_grad or any(p.requires_grad for p in block.parameters()):  # a frozen one keeps nothing
                return cast(Tensor, recompute(block, x, clips, use_reentrant=False))
        return block(x, clips)


def _join(parts: list[Tensor], clips: int) -> Tensor:
    """Parts [1,t,...] of every clip in turn → [clips,T,...]; a single part is whole already."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1).unflatten(1, (clips, -1)).squeeze(0)


def patch_grid(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int]:
    """Tokens (T',H',W') that the patch convolution makes of (T,H,W). Raises ConfigError when there are none."""
    T, H, W = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    if min(T, H, W) < 1:
        raise ConfigError(
            f"encoder: {size[0]} frames of {size[1]}x{size[2]} are smaller than the patch kernel {tuple(kernel)}"
        )
    return T, H, W


def plan(
    grid: tuple[int, int, int],
    depths: Sequence[int],
    pool: Sequence[tuple[int, int]],
    windows: Sequence[tuple[int, int] | None],
    single_output: bool = True,
) -> list[Layout]:
    """Token layout of every stage. Raises ConfigError when windows or pools do not tile the grid.

    Every window must hold whole pool cells and the grid whole windows: otherwise attention or pooling
    would mix tokens that are not neighbours (Hiera's reference code and timm do not check this).
    """
    if not depths or min(depths) < 1:
        raise ConfigError(f"encoder: every stage needs at least one block, got depths {tuple(depths)}")
    if len(pool) != len(depths) - 1 or len(windows) != len(depths):
        raise ConfigError(
            f"encoder: {len(depths)} stages need {len(depths) - 1} pools and {len(depths)} windows,"
            f" got {len(pool)} and {len(windows)}"
        )
    T, H, W = grid
    layouts = []
    for stage, (window, cell) in enumerate(zip(windows, [*pool, (1, 1)], strict=True)):
        size = (T, H, W) if window is None else (1, *window)
        _, h, w = size
        if min(h, w, *cell) < 1:
            raise ConfigError(
                f"encoder: stage {stage + 1}: windows and pools must be positive, got {window} and {cell}"
            )
        if H % h or W % w:
            raise ConfigError(
                f"encoder: stage {stage + 1} has {H}x{W} tokens, not whole windows of {h}x{w};"
                f" sides that fit: {_divisors(H)}" + (f" and {_divisors(W)}" if W != H else "")
            )
        if h % cell[0] or w % cell[1]:
            raise ConfigError(
                f"encoder: stage {stage + 1}'s window {h}x{w} does not hold whole cells of the"
                f" {cell[0]}x{cell[1]} pool that follows; take a pool that divides it"
            )
        layouts.append(Layout((T, H, W), size, tuple(cell)))
        H, W = H // cell[0], W // cell[1]
    if single_output and (H, W) != (1, 1):
        last = f"{pool[-1][0] * H}x{pool[-1][1] * W}" if pool else f"{H}x{W}"
        raise ConfigError(
            f"encoder: the last stage has {H}x{W} tokens per time step, X_v needs one; a last pool of {last} would fit"
        )
    return layouts


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(2, n + 1) if n % d == 0) or "1"
