"""Speed and memory of the video encoder at the paper's size (96 frames of 224x224, float32, CPU, one clip).

    python benchmarks/bench_encoder.py [--threads 1] [--repeats 3] [--clock wall|cpu] [--skip-naive] [--json FILE]

In one run, interleaved: the matrix products of the forward pass alone (`torch.mm`/`torch.bmm` at their full
shapes into ready buffers, the patch convolution as one of them), our forward pass, and the same weights in
timm's HieraBlock without folded windows or parts. Peak memory is taken in a process of its own. Aims: forward
at most 1.5 times its GEMMs, at most 0.8 GB above the weights. Also the mini encoder's
training step. `--clock cpu` counts the processor's time instead of the wall's, for a machine that others use
(one thread only).
"""

import argparse
import collections
import json
import resource
import statistics
import subprocess
import sys
import time

import figures
import torch
from torch import nn
from torch.utils.benchmark import Timer

from vmas import config
from vmas.encoder import VideoEncoder, normalise
from vmas.encoder_cost import gemms

SHAPE = (1, 3, 96, 224, 224)


class TimmBlocks(nn.Module):
    """The encoder with timm's HieraBlock as it comes: windows on an axis of their own, no parts."""

    def __init__(self, encoder: VideoEncoder):
        super().__init__()
        from timm.models.hiera import HieraBlock

        self.encoder = encoder
        self.blocks = nn.ModuleList()
        for layout, runs in zip(encoder.layouts, encoder.runs, strict=True):
            for i in (*runs[0], *runs[1]):
                ours = encoder.blocks[i]
                block = HieraBlock(
                    ours.norm1.normalized_shape[0],
                    ours.norm2.normalized_shape[0],
                    ours.attn.heads,
                    q_stride=ours.cells,
                    window_size=layout.tokens // ours.cells,
                    use_mask_unit_attn=layout.window[0] == 1,
                    norm_layer=lambda dim, **kw: nn.LayerNorm(dim, eps=1e-6, **kw),
                )
                block.load_state_dict(ours.state_dict())
                self.blocks.append(block)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        e = self.encoder
        x = e.patch_embed(video)
        B, T, H, W, _ = x.shape
        x = x + e.pos_embed_spatial.view(1, 1, H, W, -1) + e.pos_embed_temporal.view(1, T, 1, 1, -1)
        for layout, runs in zip(e.layouts, e.runs, strict=True):
            # timm's order: tokens of a window outermost, windows innermost
            x = layout.gather(x).unflatten(0, (B, -1)).transpose(1, 2).flatten(1, 2)
            for i in (*runs[0], *runs[1]):
                x = self.blocks[i](x)
            layout = layout.pooled if len(runs[1]) else layout
            x = layout.scatter(x.unflatten(1, (layout.tokens, -1)).transpose(1, 2).flatten(0, 1))
        return e.norm(x.flatten(1, 3))


def gemm_seconds(encoder: VideoEncoder, seconds) -> dict[str, float]:
    """Time of every matrix product of the forward pass by kind; equal shapes are timed once and counted."""
    total = collections.Counter()
    for g, times in collections.Counter(gemms(encoder)).items():
        lead = () if g.batch == 1 else (g.batch,)
        a, b = torch.randn(*lead, g.m, g.k), torch.randn(*lead, g.k, g.n)
        out, product = torch.empty(*lead, g.m, g.n), torch.mm if g.batch == 1 else torch.bmm
        total[g.kind] += times * seconds(lambda a=a, b=b, out=out, f=product: f(a, b, out=out))
    return dict(total)


def peak_memory_gb() -> float:
    """Peak resident memory above the loaded weights, input video included, of one forward pass."""
    import psutil

    encoder = VideoEncoder().eval()
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        encoder(torch.randn(SHAPE))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, kilobytes elsewhere
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 1e9


def mini_step(batch: int = 16):
    """One forward and backward pass of the mini encoder, pixels to gradients."""
    p = config.load("mini")
    encoder = VideoEncoder.from_config(p.encoder, p.clip.num_frames, p.clip.img_size)
    frames = torch.randint(0, 256, (batch, p.clip.num_frames, p.clip.img_size, p.clip.img_size, 3), dtype=torch.uint8)
    return lambda: encoder(normalise(frames)).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-naive", action="store_true", help="leave out timm's blocks")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu counts all threads together: use it with one")
    torch.set_num_threads(args.threads)
    if args.memory:
        print(json.dumps(peak_memory_gb()))
        return
    command = [sys.executable, __file__, "--memory", "--threads", str(args.threads)]
    memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    clock = time.process_time if args.clock == "cpu" else time.perf_counter

    def seconds(function) -> float:
        """Time of one call after two warm-up calls."""
        return Timer("f()", globals={"f": function}, num_threads=args.threads, timer=clock).timeit(1).mean

    torch.manual_seed(0)
    encoder, video = VideoEncoder().eval(), torch.randn(SHAPE)
    naive = None if args.skip_naive else TimmBlocks(encoder).eval()
    step, rows = mini_step(), collections.defaultdict(list)
    with torch.inference_mode():
        if naive is not None:
            torch.testing.assert_close(encoder(video), naive(video), atol=1e-4, rtol=1e-4)
        for _ in range(args.repeats):
            kinds = gemm_seconds(encoder, seconds)
            rows["gemms"].append(sum(kinds.values()))
            rows["forward"].append(seconds(lambda: encoder(video)))
            if naive is not None:
                rows["timm blocks"].append(seconds(lambda: naive(video)))
    for _ in range(args.repeats):
        rows["mini step"].append(seconds(step))

    print(f"video encoder, {SHAPE[2]} frames of {SHAPE[3]}x{SHAPE[4]}, float32, CPU, one clip")
    print(f"{args.threads} thread(s), {args.clock} time, {args.repeats} repeats")
    print("GEMMs by kind (last repeat): " + ", ".join(f"{k} {v:.2f} s" for k, v in kinds.items()))
    print(f"{'':12} {'min s':>7} {'median s':>9} {'× GEMMs (min)':>14} {'× GEMMs (median of repeats)':>28}")
    for name in ("gemms", "forward", "timm blocks"):
        if rows[name]:
            paired = statistics.median(t / g for t, g in zip(rows[name], rows["gemms"], strict=True))
            least = min(rows[name])
            print(
                f"{name:12} {least:7.2f} {statistics.median(rows[name]):9.2f} {least / min(rows['gemms']):14.2f}"
                f" {paired:28.2f}"
            )
    if args.json:
        least = {name.replace(" ", "_") + "_s": min(times) for name, times in rows.items() if times}
        ratio = min(rows["forward"]) / min(rows["gemms"])
        about = {"threads": args.threads, "clock": args.clock, "repeats": args.repeats}
        figures.write(args.json, {"encoder": {**least, "over_gemms": ratio, "memory_gb": memory, **about}})
    print(f"peak memory above the weights, input included: {memory:.2f} GB (aim 0.8)")
    print(f"mini encoder, forward and backward, batch 16: {min(rows['mini step']):.2f} s (aim 0.4)")


if __name__ == "__main__":
    main()
