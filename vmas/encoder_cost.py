"""What the video encoder costs: multiply-accumulates by kind, for Table 6, and its list of GEMMs.

Counted with `torch.utils.flop_counter` on the meta device: on a CPU the counter does not see fused
attention. One MAC is one multiplication with its addition. Papers print 1 MAC as one FLOP or as two, with
or without convolution and attention; Table 6's three numbers do not come out of any one of these
conventions, so every number here names its own.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vmas.encoder import VideoEncoder

KINDS = ("conv", "linear", "attention")
# Windows of stage 1 are open in the paper; these are shown side by side.
STAGE_1_WINDOWS = ((4, 4), (8, 8), (28, 28))
PAPER_GFLOPS = {"CLIP ViT-B/16": 281.6, "Hiera-B": 140.2, "VMAs encoder": 130.7}  # Table 6


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
    return out


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
