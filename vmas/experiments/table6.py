"""Table 6, the video encoders: CLIP's kind, Hiera's kind and ours, in the same pipeline with the same training.

At mini scale the three are one class (`VideoEncoder`) with other sizes and nearly as many parameters, so that what
differs is what the paper claims to matter: the frames that are seen, and where attention and pooling look. Rows of X_v
stand on the decoder's time line where their frames are (`decoder.row_times`), which the sparse ones would otherwise
miss by up to three frames. 16 frames
are the paper's number, of 10 s; a clip has 5 s here, so variants with 8 have its density. The frames in between are
not shown to the others, neither in stage 1 nor in stage 2.
"""

import dataclasses
from typing import Any

from vmas import config
from vmas.config import Profile
from vmas.experiments.sweep import Condition
from vmas.records import Record, Row

TARGET = "table6"
TITLE = "Table 6. Comparison to other video encoders"
QUOTED = ("table6",)  # the paper's numbers beside ours
REFERENCE = "ours"
ENCODER = "the encoder, one clip"  # what the cost rows are about
PARAMETERS, GFLOPS, TIME = "Parameters, millions", "GFLOPs (2 a MAC, everything)", "Time, ms"


def _vit(frames: int) -> dict:
    """CLIP's kind: every frame on its own, 8x8 patches of 8 pixels, four blocks of width 128, a last linear layer."""
    return {
        "encoder": {
            "frames": frames, "mean_space": True, "width": 192, "embed_dim": 128, "num_heads": 4, "depths": [4],
            "pool": [], "windows": [[8, 8]], "patch_kernel": [1, 8, 8], "patch_stride": [1, 8, 8],
            "patch_padding": [0, 0, 0],
        }
    }  # fmt: skip


def _hiera(frames: int) -> dict:
    """Hiera's kind, with its own tokens of 4 pixels, pools of 2 and mask-unit windows; 2x2 places are left."""
    return {
        "encoder": {
            "frames": frames, "mean_space": True, "pool": [[2, 2], [2, 2], [2, 2]],
            "windows": [[8, 8], [4, 4], None, None], "patch_kernel": [3, 7, 7], "patch_stride": [2, 4, 4],
            "patch_padding": [1, 3, 3],
        }
    }  # fmt: skip


def _timed(overrides: dict) -> dict:
    return {**overrides, "decoder": {"row_times": "frames"}}


CONDITIONS: tuple[Condition, ...] = (
    Condition("clip", "CLIP-style, 16 frames", _timed(_vit(16)), "CLIP"),
    Condition("hiera", "Hiera-style, 16 frames", _timed(_hiera(16)), "Hiera"),
    Condition("ours", "VMAs encoder, every frame", _timed({}), "Ours"),
    Condition("clip-8", "CLIP-style, 8 frames", _timed(_vit(8)), about="as many a second as the paper's 16 of 10 s"),
    Condition(
        "hiera-8", "Hiera-style, 8 frames", _timed(_hiera(8)), about="as many a second as the paper's 16 of 10 s"
    ),
    Condition("ours-16", "VMAs encoder, 16 frames", _timed({"encoder": {"frames": 16}}), about="the frames alone"),
)
PAPER = tuple(c.name for c in CONDITIONS if c.paper)
EVERY_SEED = PAPER  # the paper's rows get every seed asked for, the variants the first three
VARIANT_SEEDS = 3


def costs(profile: str, measure: bool = False) -> list[dict[str, Any]]:
    """What the encoder of every condition costs: one dict each, computed from the encoder itself.

    Keys: condition, label, frames (seen), rows (of X_v), parameters, conv_gmac, linear_gmac, attention_gmac, gflops
    (2 a MAC, everything); with `measure` also ms per clip in batches of 4, on this machine.
    """
    from vmas import encoder_cost
    from vmas.model import build_encoder

    out = []
    for c in CONDITIONS:
        p = config.load(profile, c.overrides)
        encoder = build_encoder(p)
        found = encoder_cost.macs(encoder)
        one = {
            "condition": c.name,
            "label": c.label,
            "frames": p.encoder.frames or p.clip.num_frames,
            "rows": p.num_video_tokens,
            "parameters": sum(x.numel() for x in encoder.parameters()),
            **{f"{kind}_gmac": n / 1e9 for kind, n in found.items()},
            "gflops": 2 * sum(found.values()) / 1e9,
        }
        if measure:
            one["ms"] = 1000 * encoder_cost.seconds_per_clip(encoder)
        out.append(one)
    return out


def finish(record: Record, profile: Profile, file: str | None = None) -> Record:
    """The record with the cost of every encoder that it has rows of; `file` is the profile's, when it has no name."""
    there = {r.system for r in record.rows if r.value is not None}
    rows = []
    for one in costs(file or profile.name, measure=True):
        if one["label"] not in there:
            continue
        note = f"{one['frames']} frames seen, {one['rows']} rows of X_v."
        for metric, value, more in (
            (PARAMETERS, one["parameters"] / 1e6, ""),
            (GFLOPS, one["gflops"], " Computed; equal to torch's counter."),
            (TIME, one["ms"], f" Batches of 4 on {record.provenance.get('hardware', 'this machine')}."),
        ):
            rows.append(Row(one["label"], ENCODER, metric, "down", value, status=profile.status, note=note + more))
    ours = [r for r in record.rows if r.value is not None]
    quoted = [r for r in record.rows if r.value is None]
    return dataclasses.replace(record, rows=(*ours, *rows, *quoted))


def figure(record: Record):
    """The figure of the target (`vmas.report.encoders`)."""
    from vmas.report import encoders

    return encoders.quality(record)
