"""What the video encoder costs: multiply-accumulates by kind, for Table 6, and its list of GEMMs.

Counted with `torch.utils.flop_counter` on the meta device: on a CPU the counter does not see fused
attention. One MAC is one multiplication with its addition. Papers print 1 MAC as one FLOP or as two, with
or without convolution and attention; Table 6's three numbers do not come out of any one of these
conventions, so every number here names its own.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vmas.encoder import VideoEncoder

KINDS = ("conv", "linear", "attention")
# Windows of stage 1 are open in the paper; these are shown side by side.
STAGE_1_WINDOWS = ((4, 4), (8, 8), (28, 28))
# Table 6's encoders as sizes of our class. CLIP's class token is left out: 196 of its 197 tokens a frame.
PAPER_SCALE: dict[str, dict[str, Any]] = {
    "CLIP ViT-B/16": dict(
        num_frames=16, single_output=False, embed_dim=768, num_heads=12, depths=(12,), pool=(), windows=((14, 14),),
        patch_kernel=(1, 16, 16), patch_stride=(1, 16, 16), patch_padding=(0, 0, 0),
    ),
    "Hiera-B": dict(num_frames=16, single_output=False, pool=((2, 2),) * 3, windows=((8, 8), (4, 4), None, None)),
    "VMAs encoder": {},
}  # fmt: skip
PAPER_GFLOPS = {"CLIP ViT-B/16": 281.6, "Hiera-B": 140.2, "VMAs encoder": 130.7}  # Table 6


class Unfilled(TorchFunctionMode):
    """Leaves out initialisation: on the meta device there are no numbers to fill in, and torch knows these
    operations there only in Python, whose first call imports its compiler (5 s)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.erfinv_, Tensor.clamp_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Gemm:
    """`batch` products [m,k] x [k,n] of one kind (`conv` is the patch convolution as a matrix product)."""

    kind: str
    batch: int
    m: int
    k: int
    n: int

    @property
    def macs(self) -> int:
        return self.batch * self.m * self.k * self.n


def gemms(encoder: VideoEncoder, clips: int = 1) -> list[Gemm]:
    """Every matrix product of a forward pass over `clips` clips, in order, at its full shape."""
    conv = encoder.patch_embed.proj
    tokens = clips * math.prod(encoder.grid)
    out = [Gemm("conv", 1, tokens, conv.weight[0].numel(), conv.out_channels)]
    for layout, runs in zip(encoder.layouts, encoder.runs, strict=True):
        tokens, length = clips * math.prod(layout.grid), layout.tokens
        for i in (*runs[0], *runs[1]):
            block = encoder.block(i)
            attn, queries, pooled = block.attn, length // block.cells, tokens // block.cells
            dim, dim_out = block.norm1.weight.numel(), block.norm2.weight.numel()
            heads, width, hidden = tokens // length * attn.heads, dim_out // attn.heads, block.mlp.fc1.out_features
            if dim != dim_out:
                out.append(Gemm("linear", 1, tokens, dim, dim_out))
            out += [
                Gemm("linear", 1, tokens, dim, 3 * dim_out),
                Gemm("attention", heads, queries, width, length),
                Gemm("attention", heads, queries, length, width),
                Gemm("linear", 1, pooled, dim_out, dim_out),
                Gemm("linear", 1, pooled, dim_out, hidden),
                Gemm("linear", 1, pooled, hidden, dim_out),
            ]
    if isinstance(proj := getattr(encoder, "proj", None), nn.Linear):
        out.append(Gemm("linear", 1, clips * encoder.grid[0], proj.in_features, proj.out_features))
    return out


def macs(encoder: VideoEncoder, clips: int = 1) -> dict[str, int]:
    """MACs of a forward pass by kind, in closed form: what `count` measures, without running anything."""
    out = dict.fromkeys(KINDS, 0)
    for gemm in gemms(encoder, clips):
        out[gemm.kind] += gemm.macs
    return out


def at_paper_scale(model: str, frames: int | None = None, window: tuple[int, int] | None = None) -> VideoEncoder:
    """One of Table 6's encoders (a key of `PAPER_SCALE`) on the meta device; `frames` in place of its own number.

    `window` is our encoder's in stage 1 (`STAGE_1_WINDOWS`).
    """
    sizes = dict(PAPER_SCALE[model])
    if frames is not None:
        sizes["num_frames"] = frames
    if window is not None:
        sizes["windows"] = (window, (7, 7), None, None)
    with torch.device("meta"), Unfilled():
        return VideoEncoder(**sizes)


def against_frames(frames: Sequence[int] = (8, 16, 32, 48, 64, 96)) -> list[dict]:
    """GFLOPs (2 a MAC, everything counted) of Table 6's encoders at paper scale for other numbers of frames.

    One dict each: model, frames, gflops, attention_share (of the MACs).
    """
    rows = []
    for model in PAPER_SCALE:
        for n in frames:
            found = macs(at_paper_scale(model, n))
            total = sum(found.values())
            rows.append(
                {"model": model, "frames": n, "gflops": 2 * total / 1e9, "attention_share": found["attention"] / total}
            )
    return rows


def seconds_per_clip(encoder: VideoEncoder, clips: int = 4, repeats: int = 5) -> float:
    """Median time of a forward pass without gradients, per clip, at a batch of `clips`; one pass before warms up."""
    x = torch.randn(clips, *encoder.video_shape, device=next(encoder.parameters()).device)
    taken = []
    training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        for _ in range(repeats + 1):
            _settle(x)
            start = time.perf_counter()
            encoder(x)
            _settle(x)
            taken.append(time.perf_counter() - start)
    encoder.train(training)
    return statistics.median(taken[1:]) / clips


def _settle(x: torch.Tensor) -> None:
    """Wait until a GPU has done what it was told."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def count(module: nn.Module, *shape: int) -> dict[str, int]:
    """MACs of `module` on an input of `shape`, by kind: conv, linear, attention (QKᵀ and its product with V).

    `module` must lie on the meta device.
    """
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(*shape, device="meta"))
    macs = dict.fromkeys(KINDS, 0)
    for op, flops in counter.get_flop_counts()["Global"].items():
        name = str(op)
        kind = "conv" if "convolution" in name else "linear" if name in ("aten.addmm", "aten.mm") else "attention"
        macs[kind] += flops // 2
    return macs


def clip_vit_b16() -> nn.Module:
    """CLIP's image encoder ViT-B/16 without head (timm), on the meta device."""
    import timm

    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_clip_224", pretrained=False, num_classes=0).eval()


def hiera_base(num_frames: int = 16) -> nn.Module:
    """Hiera-B for video as published, without head (timm), on the meta device."""
    from timm.models.hiera import Hiera

    with torch.device("meta"):
        return Hiera(
            img_size=(num_frames, 224, 224),
            num_classes=0,
            q_stride=(1, 2, 2),
            mask_unit_size=(1, 8, 8),
            patch_kernel=(3, 7, 7),
            patch_stride=(2, 4, 4),
            patch_padding=(1, 3, 3),
            sep_pos_embed=True,
        ).eval()


def gflops_table() -> list[dict]:
    """Table 6's cost column under every customary convention, one row per encoder.

    Keys: model, frames, conv_gmac, linear_gmac, attention_gmac; total_1x and total_2x (GFLOPs of everything
    with 1 and 2 FLOPs per MAC), linear_2x (2 FLOPs per MAC, linear layers only), paper (Table 6).
    """
    rows = [
        ("CLIP ViT-B/16", "", 16, count(clip_vit_b16(), 16, 3, 224, 224)),
        ("Hiera-B", "", 16, count(hiera_base(), 1, 3, 16, 224, 224)),
    ]
    for window in STAGE_1_WINDOWS:
        with torch.device("meta"):
            encoder = VideoEncoder(windows=(window, (7, 7), None, None)).eval()
        name = f"{window[0]}x{window[1]} windows in stage 1"
        rows.append(("VMAs encoder", name, 96, count(encoder, 1, 3, 96, 224, 224)))
    table = []
    for model, variant, frames, macs in rows:
        total = sum(macs.values())
        table.append(
            {
                "model": model,
                "variant": variant,
                "frames": frames,
                **{f"{kind}_gmac": macs[kind] / 1e9 for kind in KINDS},
                "total_1x": total / 1e9,
                "total_2x": 2 * total / 1e9,
                "linear_2x": 2 * macs["linear"] / 1e9,
                "paper": PAPER_GFLOPS[model],
            }
        )
    return table
