"""The mini profile's tagger and embedder: a small CNN on log-mel spectra, 10 genres, 128 numbers a clip.

It stands for VGGish in FAD and for the MSD tagger in KL. It is trained here (`tagger_train`) on clean
music, on reconstructions of the codec and on degraded copies, because a tagger that never heard the
codec judges the codec and not the music. Its numbers compare with no published ones.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vmas import checkpoint
from vmas.codec import LogMel
from vmas.config import from_dict
from vmas.errors import CheckpointError, ConfigError, DataError

KIND = "tagger"
EMBED_DIM = 128


@dataclass(frozen=True)
class TaggerConfig:
    """Shape of the network and the labels it knows, in the order of its logits."""

    sample_rate: int
    n_mels: int
    n_fft: int
    hop: int
    width: int
    labels: tuple[str, ...]


class MiniTagger(nn.Module):
    """CNN on log-mel: four stages of 3x3 convolutions, mean and maximum over time and frequency, 128-d, logits.

    Waveforms are float [B,N] or [N] at `cfg.sample_rate`, of any length from one hop on. Deterministic in
    evaluation mode; `batch_size` rows are computed at a time.
    """

    def __init__(self, cfg: TaggerConfig):
        super().__init__()
        self.cfg = cfg
        self.labels = cfg.labels
        self.mel = LogMel(cfg.sample_rate, cfg.n_fft, cfg.hop, cfg.n_mels)
        self.register_buffer("mean", torch.zeros(cfg.n_mels, 1))
        self.register_buffer("std", torch.ones(cfg.n_mels, 1))
        stages, c_in = [], 1
        for c in (cfg.width, 2 * cfg.width, 4 * cfg.width, 8 * cfg.width):
            conv = nn.Conv2d(c_in, c, 3, padding=1, bias=False)
            stages += [conv, nn.BatchNorm2d(c), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
            c_in = c
        self.stages = nn.Sequential(*stages)
        self.embedding = nn.Linear(2 * c_in, EMBED_DIM)
        self.head = nn.Linear(EMBED_DIM, len(cfg.labels))

    def from_mel(self, log_mel: Tensor) -> Tensor:
        """Embedding float [B,128], before its activation, of log-mel spectra float [B,n_mels,T]."""
        x = self.stages(((log_mel - self.mean) / self.std)[:, None]).flatten(2)
        return self.embedding(torch.cat([x.mean(-1), x.amax(-1)], dim=1))

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits float [B,labels] of embeddings float [B,128]."""
        return self.head(torch.relu(embedding))

    @torch.no_grad()
    def embed(self, wav, batch_size: int = 64) -> Tensor:
        """Embeddings float32 [B,128] for FAD. Raises DataError on NaN, infinity or another shape."""
        wav = self._checked(wav)
        parts = [self.from_mel(self.mel(w.to(self.mean.device))) for w in wav.split(batch_size)]
        return torch.cat(parts).float().cpu()

    def logits(self, wav, batch_size: int = 64) -> Tensor:
        """Logits float32 [B,labels] before any softmax, for KL. Raises DataError as `embed`."""
        with torch.no_grad():
            return self.classify(self.embed(wav, batch_size).to(self.mean.device)).cpu()

    def _checked(self, wav) -> Tensor:
        wav = torch.as_tensor(wav, dtype=torch.float32)
        wav = wav[None] if wav.ndim == 1 else wav
        if wav.ndim != 2 or not wav.shape[0] or wav.shape[1] < self.cfg.hop:
            raise DataError(f"the tagger takes waveforms [B,N], N >= {self.cfg.hop}; got {list(wav.shape)}")
        if not torch.isfinite(wav).all():
            raise DataError("the waveform holds NaN or infinite samples; repair the audio before judging it")
        return wav


def save_tagger(folder, tagger: MiniTagger, seed: int = 0, training: dict | None = None, half: bool = True) -> Path:
    """Write weights (float16 unless `half` is False) and manifest."""
    config = dataclasses.asdict(tagger.cfg)
    return checkpoint.save(folder, tagger.state_dict(), KIND, config, seed, training, half=half)


def load_tagger(folder) -> MiniTagger:
    """The tagger of a checkpoint folder, frozen, in evaluation mode. Raises CheckpointError (missing, altered,
    damaged, of another architecture)."""
    state, manifest = checkpoint.load(folder, KIND)
    try:
        cfg = from_dict(TaggerConfig, manifest["config"], source=f"{folder}/{checkpoint.MANIFEST}")
    except (ConfigError, KeyError) as e:
        raise CheckpointError(folder, f"its manifest describes no tagger of this version: {e}") from e
    tagger = MiniTagger(cfg)
    checkpoint.load_into(tagger, state, folder)
    return tagger.eval().requires_grad_(False)
