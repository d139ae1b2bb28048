"""Training: one loop on Accelerate for every stage, device and number of processes (appendix B).

    vmas train --profile mini                     # one process
    accelerate launch -m vmas.train --profile paper

AdamW or D-Adaptation, cosine schedule with warm-up, gradient clipping, an exponential moving
average whose weights are the ones kept, bf16 where the device has it, checkpoints in safetensors
from which a run continues where it stopped. The data order and the dropped conditions are functions
of (seed, step), so they need no state.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vmas import paths
from vmas.config import Profile, TrainConfig, sha256
from vmas.errors import CheckpointError, DataError
from vmas.tasks import ClipDataset
from vmas.train_state import load_state, save_state


@dataclass(frozen=True)
class Stage:
    """One run of the loop: its name, length, batch size and learning rate; the rest is `TrainConfig`."""

    name: str
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int


def recipe(cfg: TrainConfig) -> TrainConfig:
    """`cfg` without what a `Stage` says itself and without what only paces reports and checkpoints."""
    return replace(cfg, steps=0, pretrain_steps=0, batch_size=0, warmup_steps=0, val_every=0, checkpoint_every=0)


class StepSampler(torch.utils.data.Sampler):
    """Batches of row numbers from step `start` to `stop`, a function of the seed alone.

    Every epoch is a fresh permutation, the remainder that fills no batch is left out. With `world`
    processes each takes its slice of the global batch.
    """

    def __init__(self, n: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1):
        if n < batch_size * world:
            raise DataError(f"{n} clips do not fill one batch of {batch_size * world}: lower train.batch_size")
        self.n, self.batch, self.seed = n, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        whole = self.batch * self.world
        per_epoch = self.n // whole
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
            first = (step % per_epoch) * whole + self.rank * self.batch
            yield order[first : first + self.batch].tolist()


def build_optimizer(parameters, cfg: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """`adamw`, or `dadapt_adam`: D-Adaptation with decoupled decay, whose lr is a multiplier (1)."""
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=cfg.betas, weight_decay=cfg.weight_decay)
    if cfg.optimizer == "dadapt_adam":
        from dadaptation import DAdaptAdam

        return DAdaptAdam(parameters, lr=lr, betas=cfg.betas, weight_decay=cfg.weight_decay, decouple=True)
    raise DataError(f"unknown optimizer {cfg.optimizer!r}: choose adamw or dadapt_adam")


def build_schedule(optimizer, warmup_steps: int, total: int):
    """Linear warm-up, then half a cosine to 0 (4000 warm-up steps in appendix B)."""
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, warmup_steps, total)


def make_accelerator(cfg: TrainConfig, folder: Path, device: str = "auto"):
    """Accelerate with the precision of the config and a TensorBoard tracker in `folder`."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    return Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_steps=cfg.grad_accum,
        cpu=device == "cpu",
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        step_scheduler_with_optimizer=False,
    )


def _to_device(batch: dict, device) -> dict:
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


@torch.no_grad()
def validate(task: nn.Module, data: ClipDataset, batch_size: int, device) -> dict[str, float]:
    """Mean of everything the task logs over a split, with dropout off."""
    task.eval()
    sums: dict[str, float] = {}
    seen = 0
    for i in range(0, len(data), batch_size):
        rows = list(range(i, min(i + batch_size, len(data))))
        if len(rows) < 2:
            break
        for k, v in task(_to_device(data.__getitems__(rows), device)).items():
            sums[k] = sums.get(k, 0.0) + float(v) * len(rows)
        seen += len(rows)
    return {k: v / seen for k, v in sums.items()}


def fit(
    task: nn.Module,
    train: ClipDataset,
    val: ClipDataset,
    cfg: TrainConfig,
    stage: Stage,
    folder,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    stop_after: int | None = None,
) -> dict:
    """Train `task` for `stage.steps` updates; its parameters end as the moving average.

    Args:
        folder: where the state, the log (`log.jsonl`) and TensorBoard's files go; a run found there with
            the same settings is continued.
        stop_after: stop (as if interrupted) after this many updates in this call; for tests.

    Returns: {"steps", "seconds", "curve": [{"step", "val_loss", ...}], "val": last validation}.
    Raises DataError when the loss is not finite, CheckpointError when `folder` holds another run.
    """
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from tqdm.auto import tqdm

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(cfg, folder, device)
    torch.manual_seed(seed * 7919 + accelerator.process_index)
    optimizer = build_optimizer([p for p in task.parameters() if p.requires_grad], cfg, stage.lr)
    model, optimizer = accelerator.prepare(task, optimizer)
    ema = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay))
    schedule = build_schedule(optimizer.optimizer, stage.warmup_steps, stage.steps)
    run_key = sha256(recipe(cfg), stage, seed, accelerator.num_processes, [len(train), len(val)])
    state: dict[str, Any] = {"step": 0, "curve": [], "seconds": 0.0}

    def snapshot() -> dict:
        return {
            "key": run_key,
            **state,
            "model": accelerator.unwrap_model(model).state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.optimizer.state_dict(),
            "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "rng": torch.get_rng_state(),
        }

    saved = load_state(folder / "state")
    if saved is not None:
        if saved["key"] != run_key:
            raise CheckpointError(folder, "holds a run with other settings", "remove the folder or name another")
        accelerator.unwrap_model(model).load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
        optimizer.optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict({**saved["schedule"], "lr_lambdas": [None]})
        torch.set_rng_state(saved["rng"])
        state.update(step=saved["step"], curve=saved["curve"], seconds=saved["seconds"])

    start = state["step"]
    sampler = StepSampler(
        len(train),
        stage.batch_size,
        seed,
        start * cfg.grad_accum,
        stage.steps * cfg.grad_accum,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = torch.utils.data.DataLoader(
        train,
        batch_sampler=sampler,
        collate_fn=lambda batch: batch,
        num_workers=cfg.num_workers,
        # its own generator: a loader that starts draws a seed, and would shift the dropout of a resumed run
        generator=torch.Generator(),
        pin_memory=accelerator.device.type == "cuda",
    )
    accelerator.init_trackers(stage.name)
    bar = tqdm(total=stage.steps, initial=start, desc=stage.name, unit="step", disable=None if progress else True)
    clock = time.monotonic()
    before = state["seconds"]
    try:
        for i, batch in enumerate(loader, start * cfg.grad_accum):
            model.train()
            generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
            with accelerator.accumulate(model):
                out = model(_to_device(batch, accelerator.device), generator=generator)
                accelerator.backward(out["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), cfg.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            schedule.step()
            state["step"] += 1
            state["seconds"] = before + time.monotonic() - clock
            step = state["step"]
            if step % cfg.ema_every == 0 or step == stage.steps:
                ema.update_parameters(accelerator.unwrap_model(model))
            loss = float(out["loss"].detach())
            if not math.isfinite(loss):
                raise DataError(f"{folder}: the loss is {loss} at step {step}; the last state on disk is intact")
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if step % 10 == 0:
                logs = {f"train/{k}": float(v.detach()) for k, v in out.items()}
                accelerator.log({**logs, "lr": schedule.get_last_lr()[0]}, step=step)
            if step % cfg.val_every == 0 or step == stage.steps:
                val_logs = validate(ema.module, val, stage.batch_size, accelerator.device)
                state["curve"].append({"step": step, **{k: round(v, 6) for k, v in val_logs.items()}})
                accelerator.log({f"val/{k}": v for k, v in val_logs.items()}, step=step)
                _append(folder / "log.jsonl", {**state["curve"][-1], "train_loss": loss, "seconds": state["seconds"]})
            stopping = stop_after is not None and step - start >= stop_after
            if accelerator.is_main_process and (step % cfg.checkpoint_every == 0 or step == stage.steps or stopping):
                save_state(folder / "state", snapshot())
            if stopping:
                break
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            save_state(folder / "state", snapshot())
        raise
    finally:
        bar.close()
        accelerator.end_training()
    if state["step"] == stage.steps:
        accelerator.unwrap_model(model).load_state_dict(ema.module.state_dict())
    last = state["curve"][-1] if state["curve"] else {}
    return {"steps": state["step"], "seconds": round(state["seconds"], 1), "curve": state["curve"], "val": last}


def _append(path: Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Session:
    """What the stages of one seed share. `say` reports the stage that begins."""

    profile: Profile
    seed: int
    device: str
    progress: bool
    say: Callable[[str], None]

    def folder(self, stage: Stage, *parts) -> Path:
        """Where a stage keeps its state: named by everything that it depends on."""
        key = sha256(self.profile.clip, self.profile.corpus, recipe(self.profile.train), stage, *parts)
        return paths.cache() / "train" / self.profile.name / f"{stage.name}-seed{self.seed}-{key[:8]}"

    def fit(self, task: nn.Module, data, cfg: TrainConfig, stage: Stage, *parts) -> dict:
        return fit(task, *data, cfg, stage, self.folder(stage, *parts), self.seed, self.device, self.progress)


def pretrain_encoder(session: Session, train, val) -> tuple[nn.Module, dict]:
    """Stage 1a: the encoder learns motion (stands for Hiera's Kinetics weights); left out at 0 steps."""
    from vmas.model import build_encoder
    from vmas.tasks import MotionTask, motion_data

    e = session.profile.encoder
    torch.manual_seed(session.seed)
    encoder = build_encoder(session.profile)
    if not e.motion_steps:
        return encoder, {}
    session.say("stage 1a: the encoder learns motion (stands for Hiera's Kinetics weights)")
    task = MotionTask(encoder, *MotionTask.statistics(train.flow))
    stage = Stage("motion", e.motion_steps, e.motion_batch, e.motion_lr, e.motion_steps // 10)
    cfg = replace(session.profile.train, optimizer="adamw")
    return task.encoder, session.fit(task, (motion_data(train), motion_data(val)), cfg, stage, e)


def pretrain_decoder(session: Session, train, val, codec_sha256: str) -> tuple[nn.Module, dict]:
    """Stage 1b: the decoder learns music without video (stands for MusicGen's weights); left out at 0 steps."""
    from vmas.model import build_decoder
    from vmas.tasks import MusicTask, music_data

    p, cfg = session.profile, session.profile.train
    torch.manual_seed(session.seed + 1)
    decoder = build_decoder(p)
    if not cfg.pretrain_steps:
        return decoder, {}
    session.say("stage 1b: the decoder learns music without video (stands for MusicGen's weights)")
    task = MusicTask(decoder, p.codec.bins, p.encoder.out_dim, p.num_video_tokens)
    stage = Stage("music", cfg.pretrain_steps, cfg.batch_size, cfg.lr, min(cfg.warmup_steps, cfg.pretrain_steps // 4))
    data = music_data(train), music_data(val)
    return task.decoder, session.fit(task, data, cfg, stage, p.decoder, codec_sha256)


def train_profile(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    out=None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """All stages for one seed: motion → music → VMAs; returns the folder of the finished checkpoint.

    The codec must be there (`vmas.pipeline.train` makes what is missing). Every stage resumes from its
    own folder under the cache, so an interrupted command is simply given again.
    """
    from vmas.codec import load_codec
    from vmas.features import load_split
    from vmas.model import VMAs
    from vmas.tasks import VMAsTask, vmas_data

    out = Path(out) if out else paths.checkpoints(profile.name) / f"vmas-seed{seed}"
    codec = load_codec(paths.checkpoints(profile.name) / "codec")
    session = Session(profile, seed, device, progress, say)
    train, val = (load_split(profile, s, codec, progress) for s in ("train", "val"))
    record: dict = {}
    encoder, record["motion"] = pretrain_encoder(session, train, val)
    decoder, record["music"] = pretrain_decoder(session, train, val, codec.sha256)

    say("stage 2: VMAs, L = βL_c + L_g")
    torch.manual_seed(seed + 2)
    model = VMAs(profile, codec)
    model.encoder.load_state_dict(encoder.state_dict())
    model.decoder.load_state_dict(decoder.state_dict())
    cfg = profile.train
    stage = Stage("vmas", cfg.steps, cfg.batch_size, cfg.lr, cfg.warmup_steps)
    data = vmas_data(train, profile), vmas_data(val, profile)
    parts = (profile.encoder, profile.decoder, profile.align, codec.sha256)
    record["vmas"] = session.fit(VMAsTask(model), data, cfg, stage, *parts)
    record["threads"] = torch.get_num_threads()
    record["device"] = model.device.type
    model.to("cpu")
    return model.save_pretrained(out, seed, record, half=True)


if __name__ == "__main__":
    import sys

    from vmas.cli import main

    main(["train", *sys.argv[1:]])
