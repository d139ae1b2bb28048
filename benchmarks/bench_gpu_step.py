"""A training step at paper size on one GPU, with random weights: seconds, MFU and peak memory.

    python benchmarks/bench_gpu_step.py [--gpu h200] [--batch 8] [--steps 10] [--no-checkpointing] [--freeze encoder]
                                        [--compile] [--out record.json]

The model, the losses, the optimizer and the autocast are those of `vmas train --profile paper`; frames, tokens and
weights are drawn at random, which costs what real ones cost. MFU = model FLOPs (closed form, tested against torch's
counter; what checkpointing computes twice is left out) over seconds times the GPU's dense bf16 peak. Aims on an H200:
45% with the encoder trained, at most 70 GiB. On a machine without a GPU `--device cpu --profile smoke` runs the same
lines, and prints no MFU.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from vmas import config, records
from vmas.codec import build_codec
from vmas.config import sha256
from vmas.model import VMAs
from vmas.records import Record, Row
from vmas.training import cost
from vmas.training.optim import EMA, build_optimizer
from vmas.training.tasks import VMAsTask

AIM_MFU, AIM_GIB = 0.45, 70.0


def draw(p: config.Profile, n: int, device: str) -> dict[str, torch.Tensor]:
    """A batch of n random clips on the device."""
    g = torch.Generator().manual_seed(0)
    c = p.clip
    frames = torch.randint(0, 256, (n, c.num_frames, c.img_size, c.img_size, 3), dtype=torch.uint8, generator=g)
    codes = torch.randint(0, p.codec.bins, (n, p.codec.n_q, p.num_tokens), generator=g)
    weights = torch.where(torch.rand(n, p.num_tokens, generator=g) < 0.03, 1.0, p.align.alpha)
    return {"frames": frames.to(device), "codes": codes.to(device), "weights": weights.to(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--gpu", default="h200", choices=cost.GPUS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep every activation")
    parser.add_argument("--freeze", action="append", default=[], help="a part that is not trained (repeatable)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--out", type=Path, help="also write the record here")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("bench_gpu_step: no CUDA GPU here; --device cpu --profile smoke runs the same lines without MFU")
    changed = {"batch_size": args.batch, "freeze": args.freeze, "activation_checkpointing": not args.no_checkpointing}
    p = config.load(args.profile, {"train": changed})
    start = time.monotonic()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with torch.device(args.device):
        task = VMAsTask(VMAs(p, build_codec(p.codec)))
    task = task.to(args.device).train()
    trained = sum(x.numel() for x in task.parameters() if x.requires_grad)
    optimizer = build_optimizer(task.param_groups(p.train.lr), p.train, p.train.lr)
    ema = EMA(task, p.train.ema_decay)
    step_of = torch.compile(task) if args.compile else task
    batch = draw(p, args.batch, args.device)
    bf16 = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda)

    def step(i: int) -> None:
        with bf16:
            loss = step_of(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), p.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if i % p.train.ema_every == 0:
            ema.update()

    def seconds(i: int) -> float:
        begin = time.perf_counter()
        step(i)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for i in range(3):  # the first ones choose kernels, compile and allocate
        seconds(i)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    spent = [seconds(i) for i in range(args.steps)]
    median = statistics.median(spent)
    plan = cost.plan(p, 1, args.gpu, "ddp")
    print(f"{p.name}, {args.batch} clips of {p.clip.seconds:g} s, {trained / 1e6:,.1f}M parameters trained")
    print(f"step {median:.3f} s (median of {args.steps}; {min(spent):.3f} to {max(spent):.3f})")
    found = {"seconds a step": (median, "down")}
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**30
        mfu = cost.utilisation(plan, median)
        print(f"MFU {mfu:.1%} of {plan.gpu.name}'s {plan.gpu.flops / 1e12:.0f} TFLOP/s; aim {AIM_MFU:.0%}")
        print(f"memory {peak:.1f} GiB at its peak; aim {AIM_GIB:.0f}; planned {plan.memory.total / 2**30:.1f}")
        found |= {"MFU": (mfu, "up"), "peak memory, GiB": (peak, "down")}
    if args.out:
        note = f"random weights, batch {args.batch}, {json.dumps(changed)}, compile {args.compile}"
        rows = [
            Row("training step", f"profile {p.name}", name, direction, value, status=p.status, note=note)
            for name, (value, direction) in found.items()
        ]
        prov = records.provenance(" ".join(sys.argv), time.monotonic() - start, sha256(p), "", "", args.device)
        records.write(Record("gpu-step", p.name, "Training step on a GPU", sha256(p), tuple(rows), prov, {}), args.out)


if __name__ == "__main__":
    main()
