"""Training of the mini tagger: originals, codec reconstructions and degraded copies, label smoothing.

Log-mel spectra are taken once; gain, noise and low-pass act on them directly (a gain adds a constant, noise
adds magnitudes in power, a low-pass subtracts a slope), which costs nothing next to the network.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmas.codec import Codec, as_float
from vmas.config import Profile
from vmas.embedders.tagger import MiniTagger, TaggerConfig, save_tagger
from vmas.errors import DataError

N_MELS, N_FFT, HOP = 64, 2048, 640
BATCH = 32
CROP = 120  # frames of a training example, 2.4 s
LR = 2e-3
SMOOTHING = 0.1
RECONSTRUCTED = 800  # training clips that also pass through the codec
DEGRADED_SHARE = 0.5  # of a batch, for noise and low-pass each independently


def spectra(
    tagger: MiniTagger, wavs, codec: Codec | None = None, batch_size: int = 32, progress: bool = False
) -> Tensor:
    """Log-mel float16 [N,n_mels,T] of wavs int16 or float [N,samples], through the codec where one is given."""
    from tqdm.auto import tqdm

    parts = []
    label = "tagger: spectra" if codec is None else "tagger: reconstructions"
    with torch.no_grad():
        for i in tqdm(range(0, len(wavs), batch_size), desc=label, disable=None if progress else True):
            wav = as_float(wavs[i : i + batch_size])
            if codec is not None:
                wav = codec.decode(codec.encode(wav[:, None]))[:, 0, : wav.shape[1]]
            parts.append(tagger.mel(wav).half())
    out = torch.cat(parts)
    if not torch.isfinite(out).all():
        raise DataError("the waveforms for the tagger hold NaN or infinite samples")
    return out


def degrade(log_mel: Tensor, generator: torch.Generator) -> Tensor:
    """Random gain (±9 dB), white noise (-60 to -15 dB of the loudest band) and low-pass, each per example."""
    B, M, _ = log_mel.shape

    def uniform(low, high):
        return low + (high - low) * torch.rand(B, 1, 1, generator=generator)

    def some():
        return (torch.rand(B, 1, 1, generator=generator) < DEGRADED_SHARE).float()

    x = log_mel + uniform(-1.0, 1.0)
    loudest = x.amax(dim=(1, 2), keepdim=True)
    noise = loudest + uniform(-6.9, -1.7) + 0.3 * torch.randn(x.shape, generator=generator)
    x = torch.where(some().bool(), 0.5 * torch.logaddexp(2 * x, 2 * noise), x)
    band = torch.arange(M).view(1, M, 1)
    cutoff, slope = uniform(0.4 * M, M), uniform(0.1, 0.8)
    x = x - some() * slope * (band - cutoff).clamp_min(0)
    return x.clamp_min(float(np.log(1e-4)))


def crop(log_mel: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """A random stretch of `frames` frames of every example."""
    T = log_mel.shape[-1]
    if frames >= T:
        return log_mel
    starts = torch.randint(T - frames + 1, (len(log_mel),), generator=generator)
    return torch.stack([x[:, s : s + frames] for x, s in zip(log_mel, starts.tolist(), strict=True)])


@torch.no_grad()
def accuracy(tagger: MiniTagger, log_mel: Tensor, labels: Tensor, batch_size: int = 64) -> float:
    """Share of clips whose largest logit is the label's."""
    tagger.eval()
    guess = torch.cat([tagger.classify(tagger.from_mel(x.float())).argmax(1) for x in log_mel.split(batch_size)])
    return float((guess == labels).float().mean())


def fit(
    tagger: MiniTagger,
    clean: tuple[Tensor, Tensor],
    again: tuple[Tensor, Tensor],
    steps: int,
    generator: torch.Generator,
    spoil: bool = True,
    progress: bool = True,
) -> float:
    """Train `tagger` in place for `steps` updates; the mean loss of the last 50.

    clean, again: log-mel [N,n_mels,T] and labels int64 [N], of originals and of what has been through a codec. Half
    of every batch is of the latter where there are any. spoil: degrade what is heard (`degrade`).
    """
    from tqdm.auto import tqdm

    g = generator
    optimizer = torch.optim.AdamW(tagger.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    recent: list[float] = []
    for _ in tqdm(range(steps), desc="tagger", unit="step", disable=None if progress else True):
        old = torch.randint(len(clean[0]), (BATCH // 2 if len(again[0]) else BATCH,), generator=g)
        new = torch.randint(max(len(again[0]), 1), (BATCH - len(old),), generator=g)
        x = crop(torch.cat([clean[0][old], again[0][new]]).float(), CROP, g)
        y = torch.cat([clean[1][old], again[1][new]])
        tagger.train()
        logits = tagger.classify(tagger.from_mel(degrade(x, g) if spoil else x))
        loss = F.cross_entropy(logits, y, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-49:], float(loss.detach())]
    return float(np.mean(recent))


@torch.no_grad()
def normalise(tagger: MiniTagger, log_mel: Tensor) -> None:
    """Let the tagger see `log_mel` [N,n_mels,T] with mean 0 and standard deviation 1 in every band."""
    tagger.mean.copy_(log_mel.float().mean((0, 2))[:, None])
    tagger.std.copy_(log_mel.float().std((0, 2)).clamp_min(1e-2)[:, None])


def train_tagger(
    profile: Profile,
    wavs: np.ndarray,
    labels: np.ndarray,
    codec: Codec | None,
    out_dir,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Train the tagger of a profile and write its checkpoint to `out_dir`.

    Args:
        wavs: int16 or float [N,samples]; labels: int [N], positions in `vmas.corpus.GENRES`.
        codec: what the reconstructions are made with; None trains on originals only.
        val: (wavs, labels) for the accuracies in the record.

    Returns the record that the manifest stores: val accuracy on clean and on reconstructed clips.
    Raises DataError when labels and clips do not fit.
    """
    from vmas.corpus import GENRES

    labels_t = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    if len(labels_t) != len(wavs) or not len(wavs):
        raise DataError(f"{len(wavs)} clips but {len(labels_t)} labels for the tagger")
    if int(labels_t.min()) < 0 or int(labels_t.max()) >= len(GENRES):
        raise DataError(f"labels must lie in 0..{len(GENRES) - 1}")
    began, steps = time.perf_counter(), profile.eval.tagger_steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        g = torch.Generator().manual_seed(seed)
        cfg = TaggerConfig(profile.clip.sample_rate, N_MELS, N_FFT, HOP, profile.eval.tagger_width, tuple(GENRES))
        tagger = MiniTagger(cfg)
        clean = spectra(tagger, wavs, progress=progress)
        normalise(tagger, clean)
        some = np.sort(torch.randperm(len(wavs), generator=g)[:RECONSTRUCTED].numpy())
        again = clean[:0] if codec is None else spectra(tagger, wavs[some], codec, progress=progress)
        again_labels = labels_t[torch.from_numpy(some)]
        loss = fit(tagger, (clean, labels_t), (again, again_labels), steps, g, progress=progress)
    tagger.eval().requires_grad_(False)
    record = {
        "steps": steps,
        "loss": round(loss, 4),
        "parameters": sum(p.numel() for p in tagger.parameters()),
        "codec_sha256": codec.sha256 if codec is not None else None,
        "train_accuracy": round(accuracy(tagger, clean[:300], labels_t[:300]), 4),
    }
    if val is not None:
        val_labels = torch.as_tensor(np.asarray(val[1]), dtype=torch.long)
        record["val_clips"] = len(val_labels)
        record["val_accuracy"] = round(accuracy(tagger, spectra(tagger, val[0]), val_labels), 4)
        if codec is not None:
            heard = spectra(tagger, val[0], codec, progress=progress)
            record["val_accuracy_reconstructed"] = round(accuracy(tagger, heard, val_labels), 4)
    record["wall_s"] = round(time.perf_counter() - began, 1)
    save_tagger(Path(out_dir), tagger, seed, record)
    return json.loads(json.dumps(record))
