"""Music tagging transformer (Won, Choi and Serra 2021), the tagger behind the paper's KL [53].

22.05 kHz mono, log-mel, three residual convolution blocks, a 4-layer transformer with a class token
and 50 tags of the Million Song Dataset. It takes exactly 220500 samples (10 s). Reference: models.py
and modules.py of minzwon/semi-supervised-music-tagging-transformer (MIT), whose parameter names are
kept so that its checkpoints load.
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vmas.errors import CheckpointError, DataError

SAMPLE_RATE = 22050
SAMPLES = 220500
N_FFT, HOP, BANDS, F_MAX = 1024, 512, 128, 11025.0
TAGS = 50
MAX_POSITIONS = 512


class ResidualBlock(nn.Module):
    """[B,C,F,T] → [B,out,F/p,T/q]: two 3x3 convolutions beside a shortcut, then max pooling."""

    def __init__(self, channels: int, out: int, pooling: tuple[int, int]):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv_2, self.bn_2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.widens = channels != out
        if self.widens:
            self.conv_3, self.bn_3 = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn_2(self.conv_2(self.bn_1(self.conv_1(x)).relu()))
        short = self.bn_3(self.conv_3(x)) if self.widens else x
        return nn.functional.max_pool2d((short + h).relu(), self.pooling)


class FrontEnd(nn.Module):
    """Log-mel [B,1,128,T] → tokens [B,T/4,dim]."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.input_bn = nn.BatchNorm2d(1)
        self.layer1 = ResidualBlock(1, channels, (2, 2))
        self.layer2 = ResidualBlock(channels, channels, (2, 2))
        self.layer3 = ResidualBlock(channels, channels, (2, 1))
        self.fc = nn.Linear(BANDS // 8 * channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.input_bn(x))))
        return self.fc(h.permute(0, 3, 1, 2).flatten(2))


class Attention(nn.Module):
    """Self-attention [B,n,dim]; no bias on queries, keys and values."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, dim=-1))
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """x + fn(norm(x)). The reference nests a residual around it, hence `fn.` twice in its names."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.fn = nn.ModuleDict({"norm": nn.LayerNorm(dim), "fn": fn})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn["fn"](self.fn["norm"](x))


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PreNorm(dim, Attention(dim, heads, dropout)), PreNorm(dim, FeedForward(dim, 4 * dim, dropout))]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, feed in self.layers:  # type: ignore[misc]
            x = feed(attention(x))
        return x


class MusicTagger(nn.Module):
    """Won et al. 2021. `attention_ndim` 256 is the teacher (4,567,732 parameters), 64 the student (1,108,852)."""

    def __init__(
        self,
        conv_ndim: int = 128,
        attention_ndim: int = 256,
        heads: int = 8,
        layers: int = 4,
        tags: int = TAGS,
        dropout: float = 0.1,
    ):
        super().__init__()
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

        self.spec = MelSpectrogram(SAMPLE_RATE, N_FFT, hop_length=HOP, f_min=0.0, f_max=F_MAX, n_mels=BANDS, power=2.0)
        self.amplitude_to_db = AmplitudeToDB()
        self.frontend = FrontEnd(conv_ndim, attention_ndim)
        self.pos_embedding = nn.Parameter(torch.randn(1, MAX_POSITIONS + 1, attention_ndim))
        self.cls_token = nn.Parameter(torch.randn(attention_ndim))
        self.transformer = Transformer(attention_ndim, layers, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.mlp_head = nn.Sequential(nn.LayerNorm(attention_ndim), nn.Linear(attention_ndim, tags))

    def forward(self, wav: Tensor) -> Tensor:
        """Waveforms [B,220500] at 22.05 kHz to pre-sigmoid logits [B,tags]. Raises DataError for another length."""
        if wav.ndim != 2 or wav.shape[1] != SAMPLES:
            raise DataError(f"the tagger takes exactly {SAMPLES} samples at {SAMPLE_RATE} Hz, got {list(wav.shape)}")
        x = self.frontend(self.amplitude_to_db(self.spec(wav))[:, None])
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]]))
        return self.mlp_head(x[:, 0])

    @torch.inference_mode()
    def logits(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Pre-sigmoid logits float32 [windows,tags] of a clip float [N] or [C,N], one row per 10 s window.

        Windows do not overlap; a shorter rest is left out, and a clip below 10 s is padded with silence.
        Mean over rows gives the clip's logits (`vmas.metrics.kl` does so). Raises DataError for bad audio.
        """
        device = self.cls_token.device
        self.eval()
        return self(torch.from_numpy(windows(wav, sample_rate)).to(device)).cpu().numpy()


def windows(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Non-overlapping 10 s windows float32 [W,220500] at 22.05 kHz, see `MusicTagger.logits`."""
    x = np.asarray(wav, np.float32)
    x = x.mean(axis=0) if x.ndim == 2 else x
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"the tagger needs a finite waveform [N] or [C,N], got shape {list(np.shape(wav))}")
    if sample_rate != SAMPLE_RATE:
        import soxr

        x = soxr.resample(x, sample_rate, SAMPLE_RATE, quality="HQ")
    if len(x) < SAMPLES:
        x = np.pad(x, (0, SAMPLES - len(x)))
    count = len(x) // SAMPLES
    return np.ascontiguousarray(x[: count * SAMPLES].reshape(count, SAMPLES), dtype=np.float32)


def load_music_tagger(path: str | Path | None = None, device: str = "cpu") -> MusicTagger:
    """The tagger with published weights: a checkpoint file, teacher or student by its shapes.

    None takes the teacher (what the paper's KL needs) from `VMAS_WEIGHTS`. The prefix `network.` is
    taken off and the teacher that a student's file also holds is left out. Raises WeightsUnavailable,
    or CheckpointError for a missing file or another architecture.
    """
    from vmas import weights

    path = weights.locate("music_tagger_teacher") if path is None else Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such file", "name a checkpoint of the music tagging transformer")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {k.removeprefix("network."): v for k, v in state.items() if not k.startswith("teacher")}
        sizes = [state[k].shape[0] for k in ("frontend.layer1.conv_1.weight", "cls_token", "mlp_head.1.bias")]
        model = MusicTagger(conv_ndim=sizes[0], attention_ndim=sizes[1], tags=sizes[2])
        model.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, pickle.UnpicklingError) as e:
        raise CheckpointError(path, "not the music tagging transformer", " ".join(str(e).split())[:200]) from e
    return model.eval().to(device)
