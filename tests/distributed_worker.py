"""What test_distributed.py runs in one or two processes: distributed_worker.py CASE OUT_FOLDER [option=value ...].

Started by torchrun for two; every case writes what it found to OUT_FOLDER from process 0.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vmas import config
from vmas.codec import build_codec
from vmas.model import VMAs
from vmas.training import loop
from vmas.training.data import ClipDataset, StepSampler
from vmas.training.sharded import is_sharded
from vmas.training.state import save_state
from vmas.training.tasks import VMAsTask

TOTAL = 4  # clips in a whole batch


def profile(**align):
    over = {
        "clip": {"seconds": 1.25},
        "align": {"beta": 1.0, **align},
        "train": {"precision": "fp32", "cfg_dropout": 0.0, "ema_every": 1, "warmup_steps": 1},
    }
    return config.load("smoke", over)


def task(p) -> VMAsTask:
    torch.manual_seed(5)
    codec = build_codec(p.codec)
    torch.manual_seed(6)
    return VMAsTask(VMAs(p, codec))


def data(p, n: int = 16) -> ClipDataset:
    rng = np.random.default_rng(3)
    c = p.clip
    return ClipDataset(
        {
            "frames": rng.integers(0, 256, (n, c.num_frames, c.img_size, c.img_size, 3), dtype=np.uint8),
            "codes": rng.integers(0, p.codec.bins, (n, p.codec.n_q, p.num_tokens)).astype(np.int16),
            "weights": np.where(rng.random((n, p.num_tokens)) < 0.1, 1.0, 0.05).astype(np.float32),
        }
    )


def gradients(out: Path, options: dict) -> None:
    """Loss and gradients of the first whole batch, for every combination asked for.

    With one process and `parts=2` the batch is gone through in two halves whose gradients are averaged, which is what
    two processes do when the contrast is local; with `parts=1` at once.
    """
    for gather in (False, True):
        for normalise in ("count", "weight"):
            p = profile(gather=gather, normalise=normalise)
            folder = out / f"run-{gather}-{normalise}"
            probe = loop.make_accelerator(p.train, folder, "cpu")
            world, parts = probe.num_processes, int(options.get("parts", 1))
            size = TOTAL // world // parts
            stage = loop.Stage("probe", 1, size, 1e-3, 1)
            run = loop.Run(task(p), p.train, stage, folder, 0, "cpu", [])
            found, losses = data(p), []
            for i in range(parts):
                rows = next(iter(StepSampler(16, size, 0, i, i + 1, run.accelerator.process_index, world)))
                result = run.model(found.__getitems__(rows))
                losses.append(result["loss"].detach())
                run.accelerator.backward(result["loss"] / parts)
            loss = run.accelerator.reduce(torch.stack(losses).mean(), "mean")
            state = {"loss": float(loss), "grads": {n: q.grad for n, q in run.task.named_parameters()}}
            if run.accelerator.is_main_process:
                save_state(out / f"{gather}-{normalise}", state)
            run.accelerator.wait_for_everyone()


def shard() -> None:
    """Make accelerate shard on CPU too: its FSDP is the same code there, but only GPU processes are offered it."""
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = Accelerator().state
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def train(out: Path, options: dict) -> None:
    """`steps` updates of the loop; the weights that it ends with. `stop` interrupts, as a killed run would be."""
    world = int(options.get("world", 1))
    p = profile(gather=True)
    cfg = replace(
        p.train,
        optimizer=options.get("optimizer", "adamw"),
        grad_accum=int(options.get("accum", 1)),
        num_workers=int(options.get("workers", 0)),
        val_every=2,
        checkpoint_every=2,
    )
    stage = loop.Stage("train", int(options.get("steps", 4)), TOTAL // world // cfg.grad_accum, 1e-3, 1)
    stop = int(options["stop"]) if "stop" in options else None
    model = task(p)
    said: list[str] = []
    device = "cpu"
    if options.get("sharded"):
        shard()
        device = "auto"
    got = loop.fit(
        model, data(p), data(p, 4), cfg, stage, out / "run", 1, device, False, stop_after=stop, say=said.append
    )
    import torch.distributed as dist

    sharded = is_sharded(model)
    if not dist.is_initialized() or dist.get_rank() == 0:
        tensors = {n: _whole(q) for n, q in model.named_parameters()}
        save_state(
            out / options.get("name", "end"),
            {"weights": tensors, "curve": got["curve"], "said": said, "sharded": sharded},
        )
    elif any(hasattr(q, "full_tensor") for q in model.parameters()):
        for q in model.parameters():
            _whole(q)


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = dict(a.split("=", 1) for a in sys.argv[3:])
    {"gradients": gradients, "train": train}[sys.argv[1]](Path(sys.argv[2]), given)
