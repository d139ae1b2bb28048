"""The training loop on Accelerate, for every stage, device and number of processes (appendix B).

One call of `fit` is one run: it continues from the newest state in its folder, and ends with the module
holding the moving average of its weights. Nothing random is carried from step to step: dropout is seeded
by (seed, step, process) and the data order by (seed, step), so a run that was killed at any moment and
started again ends with the same bits, whatever the number of loader workers.
"""

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vmas.config import TrainConfig, sha256
from vmas.errors import CheckpointError, DataError
from vmas.memory import keep_freed
from vmas.training import sharded
from vmas.training.data import ClipDataset, Source
from vmas.training.optim import EMA, build_optimizer, build_schedule
from vmas.training.regional import compile_blocks
from vmas.training.state import Checkpoints, remove_leftovers, save_state

SAMPLES = 2  # validation clips that are generated for TensorBoard
LOG_EVERY = 10


@dataclass(frozen=True)
class Stage:
    """One run of the loop: its name, length, batch size per process and learning rate; the rest is `TrainConfig`."""

    name: str
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int


class Preempted(SystemExit):
    """SIGTERM came: what can be saved is saved, the process ends with exit code 0."""

    def __init__(self, where: str):
        super().__init__(0)
        self.message = f"stopped by SIGTERM {where}: give the command again"


def recipe(cfg: TrainConfig) -> TrainConfig:
    """`cfg` without what a `Stage` says itself and without what only paces work, reports and checkpoints."""
    return replace(pace(cfg), steps=0, pretrain_steps=0, batch_size=0, warmup_steps=0)


def pace(cfg: TrainConfig) -> TrainConfig:
    """`cfg` without what only paces work, reports and checkpoints. "fp32" is what `settled` leaves as "auto"."""
    quiet = {"val_every": 0, "sample_every": 0, "checkpoint_every": 0, "keep_last": 0, "num_workers": 0}
    precision = "auto" if cfg.precision == "fp32" else cfg.precision
    return replace(cfg, **quiet, activation_checkpointing=False, compile=False, precision=precision)


def settled(cfg: TrainConfig, device: str = "auto") -> TrainConfig:
    """`cfg` with "bf16" where "auto" means it, on a GPU, so that no state of it passes for one of float32."""
    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    bf16 = cfg.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    return replace(cfg, precision="bf16") if bf16 else cfg


def make_accelerator(cfg: TrainConfig, folder: Path, device: str = "auto"):
    """Accelerate with the precision of the config and a TensorBoard tracker in `folder`.

    Number of processes, sharding (FSDP) and, where its file asks for that, compilation of the whole step come from
    `accelerate launch`.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    bf16 = settled(cfg, device).precision == "bf16"
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
def validate(task: nn.Module, data: ClipDataset, batch_size: int, accelerator) -> dict[str, float]:
    """Mean of everything the task logs over a split, with dropout off.

    A batch is shared among the processes as a training step's is, so that any number of them with the same total
    batch gives the same value; the last clips that cannot be shared evenly are left out.
    """
    task.eval()
    world, rank = accelerator.num_processes, accelerator.process_index
    sums: dict[str, float] = {}
    seen = 0
    for i in range(0, len(data), batch_size * world):
        size = min(batch_size * world, len(data) - i) // world * world
        if size < 2:
            break
        batch = _to_device(data.__getitems__(list(range(i + rank, i + size, world))), accelerator.device)
        for k, v in task(batch).items():
            sums[k] = sums.get(k, 0.0) + float(v) * size
        seen += size
    if world > 1:
        shared = accelerator.reduce(torch.tensor(list(sums.values()), device=accelerator.device), reduction="mean")
        sums = dict(zip(sums, shared.tolist(), strict=True))
    return {k: v / seen for k, v in sums.items()}


class Signals:
    """Remembers SIGTERM and Ctrl-C until the step is whole; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self._before[s] = signal.signal(s, self._note)
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _note(self, number, _frame) -> None:
        if number == signal.SIGINT and self.seen == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = number


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Let SIGTERM end what happens outside of `fit` with `Preempted`: all of it is whole or absent on disk."""

    def stop(_number, _frame):
        raise Preempted("outside of the training steps; finished stages and states are kept")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Run:
    """One run: the prepared model and everything that its state on disk holds."""

    def __init__(self, task: nn.Module, cfg: TrainConfig, stage: Stage, folder: Path, seed: int, device: str, key):
        self.cfg, self.stage, self.folder, self.seed = cfg, stage, folder, seed
        self.accelerator = make_accelerator(cfg, folder, device)
        if self.accelerator.device.type == "cpu":
            keep_freed()
        split = self.accelerator.distributed_type.value == "FSDP"
        groups = getattr(task, "param_groups", None)
        trained = groups(stage.lr) if groups else [p for p in task.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, cfg, stage.lr, split)
        if cfg.compile:
            compile_blocks(task)
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.task: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.ema = EMA(self.task, cfg.ema_decay)
        self.schedule = build_schedule(self.optimizer.optimizer, stage.warmup_steps, stage.steps)
        world = self.accelerator.num_processes
        self.batch = {"processes": world, "batch_size": stage.batch_size, "grad_accum": cfg.grad_accum}
        whole = stage.batch_size * cfg.grad_accum * world
        self.key = sha256(replace(recipe(cfg), grad_accum=1), replace(stage, batch_size=whole), seed, key)
        self.checkpoints = Checkpoints(folder / "states", cfg.keep_last)
        self.step, self.seconds, self.curve, self.best = 0, 0.0, [], math.inf
        self.heard: list[tuple[dict, float]] = []  # of the update under way: its batches and their losses
        if self.accelerator.is_main_process:
            for place in (folder, folder / "states"):
                remove_leftovers(place)

    def save(self) -> None:
        """The whole state; with sharded parameters every process must call it."""
        model, optimizer, average = sharded.gather(self.model, self.optimizer, self.ema)
        if self.accelerator.is_main_process:
            state = {
                **{"key": self.key, "batch": self.batch, "step": self.step, "seconds": self.seconds},
                **{"curve": self.curve, "best": self.best, "model": model, "optimizer": optimizer, "ema": average},
                "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            }
            self.checkpoints.save(self.step, state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> str:
        """Load the newest state; returns a line for the user, empty when there is nothing to say.

        Raises CheckpointError when the folder holds a run with other settings.
        """
        saved = self.checkpoints.load()
        if saved is None:
            return ""
        if saved["key"] != self.key:
            raise CheckpointError(
                self.folder,
                "holds a run with other settings (recipe, stage, seed, data or total batch of"
                f" {math.prod(saved['batch'].values())} clips a step)",
                "remove the folder, name another, or give processes x batch_size x grad_accum the same product",
            )
        sharded.scatter(self.model, self.optimizer, self.ema, saved, self.folder)
        self.schedule.load_state_dict({**saved["schedule"], "lr_lambdas": [None]})
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.curve, self.best = saved["curve"], saved["best"]
        if self.accelerator.is_main_process:
            self._cut_log()
        lines = []
        if self.checkpoints.damaged:
            names = ", ".join(str(p) for p in self.checkpoints.damaged)
            lines.append(f"{self.stage.name}: {names} damaged; continued from the state of step {self.step}")
        if saved["batch"] != self.batch:
            was, now = (", ".join(f"{v} {k}" for k, v in b.items()) for b in (saved["batch"], self.batch))
            lines.append(
                f"{self.stage.name}: continued with {now} instead of {was}: weights, optimizer, average, schedule and"
                " the clips of every step stay equal; dropout masks and the order of summation do not, so the bits"
                " differ; nor do the candidates of L_c (those of one process and pass, or of all processes with"
                " align.gather) and, with align.normalise=weight, the share of a pass in L_g"
            )
        return "\n".join(lines)

    def _cut_log(self) -> None:
        """Take the lines after the restored step out of the log: they will be written again."""
        log = self.folder / "log.jsonl"
        if log.is_file():
            lines = [t for t in log.read_text(encoding="utf-8").splitlines() if json.loads(t)["step"] <= self.step]
            aside = log.with_name(f".{log.name}")
            aside.write_text("".join(f"{t}\n" for t in lines), encoding="utf-8")
            aside.replace(log)

    def loader(self, train: Source):
        a, n = self.accelerator, self.cfg.grad_accum
        first, last = self.step * n, self.stage.steps * n
        shape = (self.stage.batch_size, self.seed, first, last, a.process_index, a.num_processes)
        return train.loader(*shape, workers=self.cfg.num_workers, pin=a.device.type == "cuda")

    def update(self, batch: dict, micro: int) -> dict[str, torch.Tensor]:
        """Forward, backward and, at the end of an accumulation, one optimizer step.

        Raises DataError, before any weight changes, when the gradient of the update is not finite.
        """
        a = self.accelerator
        self.model.train()
        # the same in every process and pass of an update, as it would be in one large batch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + micro // self.cfg.grad_accum)
        torch.manual_seed((self.seed * 7919 + a.process_index) * 1_000_003 + micro)
        with a.accumulate(self.model):
            out = self.model(_to_device(batch, a.device), generator=generator)
            a.backward(out["loss"])
            self.heard.append((batch, float(out["loss"].detach())))
            if a.sync_gradients:
                norm = a.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
                assert norm is not None
                self.check(norm)
                self.heard.clear()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if a.sync_gradients:
            self.schedule.step()
            self.step += 1
            if self.step % self.cfg.ema_every == 0 or self.step == self.stage.steps:
                self.ema.update()
        return out

    def check(self, norm: torch.Tensor) -> None:
        """Raises DataError when the gradient's norm is not finite, with this process's batches kept on disk.

        The gradient is shared by the processes, so that a bad loss in one stops all.
        """
        full = getattr(norm, "full_tensor", None)  # of sharded parameters
        size = float(full() if full else norm)
        if math.isfinite(size):
            return
        where = self.folder / f"bad-batch-{self.accelerator.process_index}"
        losses = [loss for _, loss in self.heard]
        batches = [dict(batch) for batch, _ in self.heard]
        save_state(where, {"step": self.step + 1, "batches": batches, "losses": losses})
        raise DataError(
            f"{where}: in step {self.step + 1} the loss is {', '.join(f'{x:g}' for x in losses)} and the gradient's"
            f" norm {size:g}; these are the clips that made it, and no state on disk has seen them: look at them, lower"
            " train.lr or raise train.warmup_steps"
        )

    def report(self, val: ClipDataset, loss: float) -> None:
        """Validation loss of the average into the curve, the log and TensorBoard."""
        with self.ema.applied():
            logs = validate(self.model, val, self.stage.batch_size, self.accelerator)
        self.curve.append({"step": self.step, **{k: round(v, 6) for k, v in logs.items()}})
        self.accelerator.log({f"val/{k}": v for k, v in logs.items()}, step=self.step)
        if self.accelerator.is_main_process:
            row = {**self.curve[-1], "train_loss": loss, "seconds": self.seconds}
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        if logs["loss"] < self.best:
            self.best = logs["loss"]
            _, _, average = sharded.gather(self.model, self.optimizer, self.ema)
            if self.accelerator.is_main_process:
                save_state(self.folder / "best", {"step": self.step, **self.curve[-1], "ema": average})

    def sample(self, val: ClipDataset) -> None:
        """Short generations of the average into TensorBoard: audio players and spectrograms."""
        from vmas.training.samples import log_samples

        make = getattr(self.task, "sample", None)
        if make is None:
            return
        main = self.accelerator.is_main_process
        if main or sharded.is_sharded(self.task):  # then every process has to generate, the same
            with self.ema.applied(), sharded.gathered(self.task, self.accelerator):
                self.task.eval()
                batch = _to_device(val.first(SAMPLES), self.accelerator.device)
                music = make(batch, seed=self.seed)
            if main:
                log_samples(self.accelerator, self.stage.name, music, self.step)
        self.accelerator.wait_for_everyone()

    def asked_to_stop(self, signals: Signals) -> int | None:
        """The signal that came to any process: all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return signals.seen
        seen = torch.tensor(signals.seen or 0, device=self.accelerator.device)
        return int(self.accelerator.reduce(seen, "sum") > 0 and signal.SIGTERM) or None


def peak_gb(device: torch.device) -> float:
    """Most memory that this process has held so far, GB: the GPU's, else the process's own."""
    import resource

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def fit(
    task: nn.Module,
    train: Source,
    val: ClipDataset,
    cfg: TrainConfig,
    stage: Stage,
    folder,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    stop_after: int | None = None,
    say=print,
) -> dict:
    """Train `task` for `stage.steps` updates; its parameters end as the moving average.

    Args:
        folder: where the states, the log (`log.jsonl`), the best average by validation (`best/`) and
            TensorBoard's files go; a run found there with the same settings is continued.
        stop_after: stop (as if interrupted) after this many updates in this call; for tests.
        say: gets one line when a run is continued with another number of processes.

    Returns: {"steps", "seconds", "loader_share", "peak_gb", "precision", "device", "curve": [{"step", "loss", ...}],
    "val": last validation}.
    Raises DataError when the loss is not finite, CheckpointError when `folder` holds another run,
    Preempted (exit code 0) after SIGTERM.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(task, cfg, stage, folder, seed, device, [len(train), len(val)])
    if line := run.resume():
        say(line)
    run.accelerator.init_trackers(stage.name)
    share, begun = 0.0, run.step
    with Signals() as signals:
        try:
            if run.step < stage.steps:
                share = _steps(run, train, val, signals, progress, stop_after)
        finally:
            # not end_training(), which also ends the process group that the next stage needs
            for tracker in run.accelerator.trackers:
                tracker.finish()
    if run.step == stage.steps:
        run.ema.copy_to_module()
    last = run.curve[-1] if run.curve else {}
    took = {
        "seconds": round(run.seconds, 1),
        "loader_share": round(share, 4),
        "peak_gb": peak_gb(run.accelerator.device),
        "precision": run.accelerator.mixed_precision,
        "device": run.accelerator.device.type,
    }
    if run.step > begun:
        rate = run.seconds / run.step
        say(
            f"{stage.name}: {run.step} steps, {rate:.2f} s each with validation and states;"
            f" {took['loader_share']:.1%} of a step's time waiting for data; {took['peak_gb']:.1f} GB at most"
        )
    return {"steps": run.step, **took, "curve": run.curve, "val": last}


def _steps(run: Run, train: Source, val: ClipDataset, signals: Signals, progress: bool, stop_after) -> float:
    """All remaining updates; returns the share of the steps' time that was spent waiting for data.

    Validation, samples and states are not counted as a step's time.
    """
    from tqdm.auto import tqdm

    cfg, stage, first = run.cfg, run.stage, run.step
    show = None if progress and run.accelerator.is_local_main_process else True
    clock, before, waited, worked = time.monotonic(), run.seconds, 0.0, 0.0
    with tqdm(total=stage.steps, initial=first, desc=stage.name, unit="step", disable=show) as bar:
        batches: Iterator = iter(run.loader(train))
        for micro in range(first * cfg.grad_accum, stage.steps * cfg.grad_accum):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            out = run.update(batch, micro)
            loss = float(out["loss"].detach())  # waits for the device
            worked += time.monotonic() - asked
            if not run.accelerator.sync_gradients:
                continue
            run.seconds = before + time.monotonic() - clock
            share = waited / max(worked, 1e-9)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", data=f"{share:.1%}", refresh=False)
            if run.step % LOG_EVERY == 0:
                logs = {f"train/{k}": float(v.detach()) for k, v in out.items()}
                run.accelerator.log({**logs, "lr": run.schedule.get_last_lr()[0], "data": share}, step=run.step)
            last = run.step == stage.steps
            if run.step % cfg.val_every == 0 or last:
                run.report(val, loss)
            if cfg.sample_every and (run.step % cfg.sample_every == 0 or last):
                run.sample(val)
            signal_seen = run.asked_to_stop(signals)
            stopping = signal_seen is not None or (stop_after is not None and run.step - first >= stop_after)
            if run.step % cfg.checkpoint_every == 0 or last or stopping:
                run.save()
            if signal_seen == signal.SIGTERM:
                raise Preempted(f"after step {run.step}; the state is in {run.folder}")
            if signal_seen is not None:
                raise KeyboardInterrupt
            if stopping:
                break
    return waited / max(worked, 1e-9)
