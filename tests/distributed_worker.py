"""What test_distributed.py runs in one or two processes: distributed_worker.py CASE OUT_FOLDER [option=value ...].

Started by torchrun for two; every case writes what it found to OUT_FOLDER from process 0.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState

from vmas import config
from vmas.codec import build_codec
from vmas.model import VMAs
from vmas.training import loop
from vmas.training.data import ClipDataset
from vmas.training.sharded import is_sharded
from vmas.training.state import save_state
from vmas.training.tasks import VMAsTask

TOTAL = 4  # clips in a whole batch
LITERAL = {"gather": True}
BASELINE = {"contrastive": False, "beat_weighting": False}
# Options of the objective and of training; each is a case of `gradients`.
OBJECTIVES: dict[str, tuple[dict, dict]] = {
    **{f"{g}-{n}": ({"gather": g, "normalise": n}, {}) for g in (False, True) for n in ("count", "weight")},
    "no contrast": ({"contrastive": False}, {}),
    "no beats": ({**LITERAL, "beat_weighting": False}, {}),
    "baseline": (BASELINE, {}),
    "dropped": (LITERAL, {"cfg_dropout": 1.0}),
    "baseline dropped": (BASELINE, {"cfg_dropout": 1.0}),
    "recomputed": (LITERAL, {"activation_checkpointing": True}),
}
HALVES = ("False-count", "no contrast", "baseline")  # of them
SHARDED = ("True-count", "baseline", "dropped", "recomputed")


def profile(align: dict, **train):
    plain = {"precision": "fp32", "cfg_dropout": 0.0, "ema_every": 1, "warmup_steps": 1, "pieces_s": []}
    over = {"clip": {"seconds": 1.25}, "align": {"beta": 1.0, **align}, "train": {**plain, **train}}
    return config.load("smoke", over)


def task(p) -> VMAsTask:
    torch.manual_seed(5)
    codec = build_codec(p.codec)
    with torch.no_grad():
        codec.E.normal_()  # untrained it is 0, and eq. 2 would have no gradient
    torch.manual_seed(6)
    model = VMAs(p, codec)
    with torch.no_grad():
        for head in model.decoder.linears:
            head.weight.mul_(4.0)  # type: ignore[operator]  # surer guesses: else all clips' music is nearly the same
    return VMAsTask(model)


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


def shard() -> None:
    """Make accelerate shard on CPU too: its FSDP is the same code there, but only GPU processes are offered it."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_TRANSFORMER_CLS_TO_WRAP="Block,EncoderBlock",
        FSDP_RESHARD_AFTER_FORWARD="true",
    )
    state = Accelerator().state
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def whole(x: torch.Tensor) -> torch.Tensor:
    """`x` itself, of which no process may hold a part only; collective where they do."""
    x = x.detach()
    return x.full_tensor() if hasattr(x, "full_tensor") else x.clone()


def gradients(out: Path, options: dict) -> None:
    """Loss and gradients of an update of the loop, for every objective: OUT/whole, OUT/halves, OUT/sharded.

    "halves" goes through the same clips in two accumulated parts; "sharded" is FSDP's, with two processes. The second
    of two updates with a learning rate of 0 is kept: DDP finds out at the next pass what the one before left open.
    """
    layouts = [("whole", 1, OBJECTIVES), ("halves", 2, HALVES)]
    if PartialState(cpu=True).num_processes > 1:
        layouts += [("sharded", 1, SHARDED)]
    for layout, parts, names in layouts:
        if layout == "sharded":
            shard()
        for name in names:
            align, train = OBJECTIVES[name]
            p = profile(align, grad_accum=parts, grad_clip=1e9, **train)
            stage = loop.Stage("probe", 2, TOTAL // PartialState().num_processes // parts, 0.0, 1)
            device = "auto" if layout == "sharded" else "cpu"
            run = loop.Run(task(p), p.train, stage, out / "run", 0, device, [])
            assert is_sharded(run.model) == (layout == "sharded")
            grads: dict = {}

            def keep(*_, run=run, grads=grads):
                found = [(n, q) for n, q in run.task.named_parameters() if q.requires_grad]
                grads.update({n: None if q.grad is None else whole(q.grad) for n, q in found})

            run.optimizer.optimizer.register_step_pre_hook(keep)
            shown = [run.update(b, m)["loss"].detach() for m, b in enumerate(run.loader(data(p)))]
            loss = run.accelerator.reduce(torch.stack(shown[-parts:]).mean(), "mean")
            if run.accelerator.is_main_process:
                save_state(out / layout / name, {"loss": float(loss), "grads": grads})
            run.accelerator.wait_for_everyone()


def fitted(
    out: Path,
    name: str,
    sharded: bool = False,
    kill: str = "",
    kill_rank: int = 0,
    objective: str = "True-count",
    **more: Any,
) -> None:
    """A run of the loop in OUT/name, and what it ends with in OUT/name/end: weights, curve, lines said."""
    align, train = OBJECTIVES[objective]
    stop, steps = more.pop("stop", None), more.pop("steps", 4)
    p = profile(align, **{"val_every": 2, "checkpoint_every": 2, **train, **more})
    world = PartialState(cpu=not sharded).num_processes
    lr = 10.0 if p.train.optimizer == "dadapt_adam" else 1e-3  # a multiplier; at 1 it takes longer to see d grow
    stage = loop.Stage("train", steps, TOTAL // world // p.train.grad_accum, lr, 1)
    model = task(p)
    if kill and PartialState().process_index == kill_rank:
        arm(model, *kill.split(":"))
    said: list[str] = []
    device = "auto" if sharded else "cpu"
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pid-{PartialState().process_index}").write_text(str(os.getpid()))
    try:
        got = loop.fit(
            model, data(p), data(p, 4), p.train, stage, folder, 1, device, False, stop_after=stop, say=said.append
        )
    except loop.Preempted:
        (folder / f"preempted-{PartialState().process_index}").touch()
        PartialState().destroy_process_group()  # as vmas.training.stages does
        raise
    found = {"weights": {n: whole(q) for n, q in model.named_parameters()}, "curve": got["curve"], "said": said}
    assert is_sharded(model) == sharded
    if PartialState().is_main_process:
        save_state(folder / "end", found)


def train(out: Path, options: dict) -> None:
    """One run; `stop` interrupts it, `kill` ends it (see `arm`)."""
    given = {k: int(v) if v.isdigit() else v for k, v in options.items()}
    fitted(out, **given)


def arm(model: VMAsTask, place: str, when: str) -> None:
    """Have this process killed: `place` "step" in the forward pass of an update, "save" half-way into a file's bytes,
    "rename" between the two; `when` counts them from 1, in this process."""
    left = int(when)

    def reached() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "step":
        model.model.register_forward_pre_hook(lambda *_: die() if model.training and reached() else None)
        return
    write = safetensors.torch.save_file

    def save_file(tensors, file):
        write(tensors, file)
        if "states" in Path(file).parts and reached():
            if place == "save":
                os.truncate(file, os.path.getsize(file) // 2)
            die()

    safetensors.torch.save_file = save_file


def killed(out: Path, options: dict) -> None:
    """A run of 12 updates that is killed again and again, each time in a process of its own: OUT/killed; and one that
    is not: OUT/through."""
    fitted(out, "through", steps=12)
    for plan in options["plan"].split(","):
        kill, workers = plan.rsplit(":", 1)
        pid = os.fork()
        if pid == 0:
            fitted(out, "killed", steps=12, kill=kill, num_workers=int(workers))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"{plan} did not come to be killed"
    fitted(out, "killed", steps=12, num_workers=1)


def sharded(out: Path, options: dict) -> None:
    """Runs under FSDP beside the same under DDP."""
    adapted: dict = {"optimizer": "dadapt_adam", "steps": 5}
    still: dict = {"steps": 4, "ema_decay": 1.0}
    fitted(out, "adapted ddp", **adapted)
    fitted(out, "often ddp", val_every=1, sample_every=2, **still)
    shard()
    fitted(out, "through", True)
    fitted(out, "again", True, stop=2)
    fitted(out, "again", True)
    # an average that stays where it was is never better than before, and as far from the weights as can be
    fitted(out, "rarely", True, val_every=100, **still)
    fitted(out, "often", True, val_every=1, sample_every=2, **still)
    fitted(out, "adapted fsdp", True, **adapted)
    fitted(out, "adapted again", True, stop=3, **adapted)
    fitted(out, "adapted again", True, **adapted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = dict(a.split("=", 1) for a in sys.argv[3:])
    {"gradients": gradients, "train": train, "killed": killed, "sharded": sharded}[sys.argv[1]](
        Path(sys.argv[2]), given
    )
