"""Training of the frame codec: multi-scale log-mel L1, commitment loss, codebooks by moving averages.

The quantizer is audiocraft's ResidualVectorQuantizer. It enters after a short warm-up of the
auto-encoder, with k-means codebooks of warmed-up latents. Two parts of audiocraft's `EuclideanCodebook`
are done here instead: its k-means start leaves the moving sums at one frame per entry while the counts are
whole, so the first update shrinks every entry, and its revival of dead entries is overwritten by the moving
average in the same step. Here entry, sum and count always change together.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vmas import config
from vmas.codec import FrameCodec, LogMel, as_float, books, codec_report, quiet_xformers, save_codec
from vmas.config import CodecConfig, Profile
from vmas.errors import ConfigError, DataError
from vmas.training.state import load_state, save_state

SCALES = ((512, 64), (1024, 96), (2048, 128))  # (n_fft, mel bands) of the loss; hop n_fft/4
WARMUP_SHARE = 0.08  # of the steps, without the quantizer
COMMITMENT = 0.25
EMA_DECAY = 0.98  # about 50 batches: codebooks follow the encoder within a short training
KMEANS_FRAMES_PER_ENTRY = 10
REVIVE_EVERY = 10
DEAD_BELOW = 0.1  # of an even share of the batch


class MelLoss(nn.Module):
    """Mean over scales of the L1 distance of log-mel spectra, in nepers. wav float [B,N] twice → scalar."""

    def __init__(self, sample_rate: int):
        super().__init__()
        self.scales = nn.ModuleList(LogMel(sample_rate, n, n // 4, mels) for n, mels in SCALES)

    def forward(self, guess: Tensor, wav: Tensor) -> Tensor:
        return torch.stack([(m(guess) - m(wav)).abs().mean() for m in self.scales]).mean()


def build_quantizer(cfg: CodecConfig) -> nn.Module:
    """audiocraft's residual quantizer, still without entries; they are copied into the codec after training."""
    quiet_xformers()
    from audiocraft.quantization.vq import ResidualVectorQuantizer

    return ResidualVectorQuantizer(
        dimension=cfg.dim, n_q=cfg.n_q, bins=cfg.bins, decay=EMA_DECAY, kmeans_init=False, threshold_ema_dead_code=0
    )


def codebook_tables(quantizer: nn.Module) -> Tensor:
    """E float [K,bins,dim] of audiocraft's quantizer."""
    return torch.stack([book.embed for book in books(quantizer)]).clone()


def _set_entries(book: Any, rows: Tensor | slice, entries: Tensor, counts: Tensor | float) -> None:
    book.embed[rows] = entries
    book.embed_avg[rows] = entries * counts
    book.cluster_size[rows] = counts.squeeze(-1) if isinstance(counts, Tensor) else counts


@torch.no_grad()
def start_codebooks(quantizer: nn.Module, latent: Tensor, batch_frames: int, seed: int = 0) -> None:
    """k-means on latents [B,dim,T], layer by layer on what the earlier ones leave over.

    `batch_frames` is the number of frames of a training batch, to which the counts are scaled.
    """
    import warnings

    from scipy.cluster.vq import kmeans2

    residual = latent.transpose(1, 2).flatten(0, 1)
    for book in books(quantizer):
        data = residual.cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its point; `revive` looks after it
            entries, chosen = kmeans2(data, book.codebook_size, iter=10, minit="points", missing="warn", rng=seed)
        counts = torch.bincount(torch.from_numpy(chosen).long(), minlength=book.codebook_size).to(residual)
        counts = counts.clamp_min(0.5)[:, None] * batch_frames / len(residual)
        _set_entries(book, slice(None), torch.from_numpy(entries).to(residual), counts)
        residual = residual - book.dequantize(book.quantize(residual))


@torch.no_grad()
def revive(quantizer: nn.Module, latent: Tensor, generator: torch.Generator) -> int:
    """Replace entries that hardly any frame chose by residuals of `latent` [B,dim,T]; returns how many."""
    residual, revived = latent.transpose(1, 2).flatten(0, 1), 0
    for book in books(quantizer):
        fair = len(residual) / book.codebook_size
        dead = (book.cluster_size < DEAD_BELOW * fair).nonzero().flatten()
        if len(dead):
            rows = torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)
            _set_entries(book, dead, residual[rows], fair)
            revived += len(dead)
        residual = residual - book.dequantize(book.quantize(residual))
    return revived


class Segments:
    """Random stretches of `samples` samples of the clips; silent ones are drawn again."""

    def __init__(self, wavs: np.ndarray, samples: int, generator: torch.Generator):
        if wavs.ndim != 2 or not len(wavs) or wavs.shape[1] < samples:
            raise DataError(f"codec training needs clips [N,samples] of at least {samples} samples, got {wavs.shape}")
        self.wavs, self.samples, self.generator = wavs, samples, generator

    def _draw(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def batch(self, size: int) -> Tensor:
        """float [size,samples]."""
        rows = []
        while len(rows) < size:
            for _ in range(8):
                start = self._draw(self.wavs.shape[1] - self.samples + 1)
                part = as_float(self.wavs[self._draw(len(self.wavs)), start : start + self.samples])
                if part.abs().max() > 1e-3:
                    break
            rows.append(part)
        return torch.stack(rows)


@torch.no_grad()
def set_input_statistics(codec: FrameCodec, wavs: np.ndarray, clips: int = 256) -> None:
    """Mean and deviation of every mel band, which standardise the codec's input."""
    rows = np.linspace(0, len(wavs) - 1, min(clips, len(wavs))).astype(int)
    x = torch.cat([codec.mel(as_float(wavs[r])[None])[0] for r in rows], dim=1)
    if not torch.isfinite(x).all():
        raise DataError("the training waveforms hold NaN or infinite samples")
    codec.mel_mean.copy_(x.mean(1))
    codec.mel_std.copy_(x.std(1).clamp_min(1e-2))


def train_codec(
    profile: Profile,
    wavs: np.ndarray,
    out_dir,
    val: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: bool = True,
    checkpoint_every: int = 250,
) -> dict:
    """Train the frame codec of a profile on the CPU and write its checkpoint to `out_dir`.

    Args:
        wavs: int16 or float [N,samples], training clips (a memory map is fine).
        val: clips [N,samples] for the report in the manifest; without them the report is on training clips
            and says so.
        resume: go on from `<out_dir>.state/`, which an interrupted run leaves behind.

    Progress goes to `<out_dir>.state/log.jsonl`; the folder goes when the checkpoint is written, and the record
    keeps twenty points of the loss. Returns the record that the manifest stores.
    Raises ConfigError for another kind of codec and DataError for unusable waveforms.
    """
    from tqdm.auto import tqdm

    cfg = profile.codec
    if cfg.kind != "frame":
        raise ConfigError(f"codec.kind is {cfg.kind!r}: only 'frame' is trained here, 'encodec' is loaded")
    out_dir = Path(out_dir)
    work = out_dir.with_name(out_dir.name + ".state")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = _Run(cfg, wavs, seed)
        if resume:
            run.restore(load_state(work / "last"))
        work.mkdir(parents=True, exist_ok=True)
        hide = None if progress else True
        bar = tqdm(total=cfg.train_steps, initial=run.step, desc="codec", unit="step", disable=hide)
        with open(work / "log.jsonl", "a" if run.step else "w", encoding="utf-8") as log, bar:
            while run.step < cfg.train_steps:
                seen = run.one_step()
                bar.update()
                if run.step % 20 == 0 or run.step == cfg.train_steps:
                    bar.set_postfix_str(f"mel {seen['mel']:.3f}")
                    log.write(json.dumps(seen) + "\n")
                    log.flush()
                if run.step % checkpoint_every == 0 and run.step < cfg.train_steps:
                    save_state(work / "last", run.state())
    codec = run.finish()
    record = {
        "steps": run.step,
        "seconds_of_audio": round(run.step * cfg.batch_size * cfg.segment_s),
        "wall_s": round(run.seconds, 1),
        "parameters": sum(p.numel() for p in codec.parameters()),
        "loss": run.tail(),
        "curve": _curve(work / "log.jsonl"),
        "report": codec_report(codec, wavs[:16] if val is None else val),
        "report_split": "train" if val is None else "val",
    }
    save_codec(out_dir, codec, seed, record)
    shutil.rmtree(work)
    return record


def _curve(log: Path, points: int = 20) -> list[list[float]]:
    """[step, mel loss] at about `points` places of the log, the last included."""
    lines = log.read_text(encoding="utf-8").splitlines()
    seen = [json.loads(line) for line in lines[:: -max(1, len(lines) // points)][::-1]]
    return [[s["step"], s["mel"]] for s in seen]


class _Run:
    """One training run: everything that a step changes, and how to store it."""

    def __init__(self, cfg: CodecConfig, wavs: np.ndarray, seed: int):
        self.cfg, self.seed, self.step, self.seconds = cfg, seed, 0, 0.0
        self.recent: list[float] = []
        self.generator = torch.Generator().manual_seed(seed)
        self.data = Segments(wavs, round(cfg.segment_s * cfg.frame_rate) * cfg.hop, self.generator)
        self.codec = FrameCodec(cfg)
        set_input_statistics(self.codec, wavs)
        self.quantizer = build_quantizer(cfg)
        self.loss = MelLoss(cfg.sample_rate)
        self.warmup = round(WARMUP_SHARE * cfg.train_steps)
        self.optimizer = torch.optim.AdamW(self.codec.parameters(), lr=cfg.lr, betas=(0.8, 0.98), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, cfg.lr, total_steps=cfg.train_steps, pct_start=0.1, cycle_momentum=False
        )

    def key(self) -> str:
        return config.sha256(self.cfg, self.data.wavs.shape)

    def _start_codebooks(self) -> None:
        tokens = self.data.samples // self.cfg.hop
        with torch.no_grad():
            latent = self.codec.latent(self.data.batch(-(-KMEANS_FRAMES_PER_ENTRY * self.cfg.bins // tokens)))
        start_codebooks(self.quantizer, latent.transpose(1, 2), self.cfg.batch_size * tokens, self.seed)

    def one_step(self) -> dict:
        """One update; returns what goes to the log."""
        began = time.perf_counter()
        if self.step == self.warmup:
            self._start_codebooks()
        wav = self.data.batch(self.cfg.batch_size)
        latent = self.codec.latent(wav)
        penalty, revived = latent.new_zeros(()), 0
        if self.step >= self.warmup:
            if self.step % REVIVE_EVERY == 0 and self.step < 0.9 * self.cfg.train_steps:
                revived = revive(self.quantizer, latent.detach().transpose(1, 2), self.generator)
            result = self.quantizer.train()(latent.transpose(1, 2), self.cfg.frame_rate)
            latent, penalty = result.x.transpose(1, 2), result.penalty
        mel = self.loss(self.codec.synthesise(latent), wav)
        self.optimizer.zero_grad(set_to_none=True)
        (mel + COMMITMENT * penalty).backward()
        nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.perf_counter() - began
        self.recent = [*self.recent[-99:], float(mel.detach())]
        return {
            "step": self.step,
            "mel": round(float(np.mean(self.recent[-20:])), 5),
            "penalty": round(float(penalty.detach()), 5),
            "revived": revived,
            "lr": self.schedule.get_last_lr()[0],
            "wall_s": round(self.seconds, 1),
        }

    def tail(self) -> dict:
        """Mean loss of the last 100 steps."""
        return {"mel_nepers": round(float(np.mean(self.recent)), 4)}

    def finish(self) -> FrameCodec:
        self.codec.E.copy_(codebook_tables(self.quantizer))
        return self.codec.eval().requires_grad_(False)

    def state(self) -> dict:
        return {
            "key": self.key(),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "codec": dict(self.codec.state_dict()),
            "quantizer": dict(self.quantizer.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
        }

    def restore(self, state: dict | None) -> None:
        """Continue from `state`; a state of other settings is left alone."""
        if state is None or state["key"] != self.key():
            return
        self.step, self.seconds, self.recent = state["step"], state["seconds"], state["recent"]
        self.codec.load_state_dict(state["codec"])
        self.quantizer.load_state_dict(state["quantizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
