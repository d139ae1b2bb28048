"""VGGish (Hershey et al. 2017), the embedding of the paper's FAD [20, 25]: 16 kHz audio to 128 numbers a patch.

Two front ends are in use and their FADs are not comparable, so the variant is part of the metric's
name. "google" (default; behind MusicGen's published numbers): windows of 1 s every 0.5 s, the first 96
frames of each, 19 patches per 10 s. "torchvggish": 0.96 s without overlap, 10 per 10 s. The embedding
is taken before the last activation, without PCA or quantisation.
Reference: AudioSet's vggish_input.py and mel_features.py; weights converted by torchvggish (Apache-2.0).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from vmas.errors import CheckpointError, DataError, UsageError, nearest

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512  # 25 ms, 10 ms
BANDS, F_MIN, F_MAX = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
VARIANTS = ("google", "torchvggish")
DIM = 128


@cache
def mel_matrix() -> np.ndarray:
    """Triangles float64 [257,64], linear in HTK mel (not in Hz, as librosa's are); the DC row is zero."""

    def mel(hertz):
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(F_MIN), mel(F_MAX), BANDS + 2)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rise, fall))
    weights[0] = 0.0
    return weights


def log_mel(wav: np.ndarray) -> np.ndarray:
    """ln(mel + 0.01) of magnitudes, float64 [frames,64], of 16 kHz mono float [N]; frames are not centred."""
    wav = np.asarray(wav, np.float64)
    if len(wav) < WINDOW:
        return np.zeros((0, BANDS))
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic
    magnitude = np.abs(np.fft.rfft(frames * hann, FFT))
    return np.log(magnitude @ mel_matrix() + LOG_OFFSET)


def patches(wav: np.ndarray, sample_rate: int = SAMPLE_RATE, variant: str = "google") -> np.ndarray:
    """Log-mel patches float32 [P,96,64] of a waveform float [N] or [C,N] in [-1,1]; channels are averaged.

    Other rates are resampled to 16 kHz first. Raises DataError for non-finite audio or less than one patch
    (1 s for "google", 0.96 s plus a frame's tail for "torchvggish"), UsageError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown VGGish variant {variant!r}: {nearest(variant, VARIANTS)}")
    x = np.asarray(wav, np.float64)
    x = x.mean(axis=0) if x.ndim == 2 else x
    if x.ndim != 1 or not np.isfinite(x).all():
        raise DataError(f"VGGish needs a finite waveform [N] or [C,N], got shape {list(np.shape(wav))}")
    if sample_rate != SAMPLE_RATE:
        import soxr

        x = soxr.resample(x, sample_rate, SAMPLE_RATE, quality="HQ")
    if variant == "google":
        starts = range(0, len(x) - SAMPLE_RATE + 1, SAMPLE_RATE // 2)
        out = [log_mel(x[s : s + SAMPLE_RATE])[:PATCH_FRAMES] for s in starts]
    else:
        mel = log_mel(x)
        out = [mel[s : s + PATCH_FRAMES] for s in range(0, len(mel) - PATCH_FRAMES + 1, PATCH_FRAMES)]
    if not out:
        raise DataError(f"VGGish ({variant}) needs about 1 s of audio, got {len(x) / SAMPLE_RATE:.2f} s")
    return np.stack(out).astype(np.float32)


class VGGish(nn.Module):
    """The network: six 3x3 convolutions (64, 128, 256, 256, 512, 512), four poolings, 4096, 4096, 128.

    Parameter names are torchvggish's, so that its weights load as they are.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for block in ((64,), (128,), (256, 256), (512, 512)):
            for out in block:
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                width = out
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        flat = 512 * (PATCH_FRAMES // 16) * (BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, DIM),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Patches [P,96,64] to embeddings [P,128], before the last activation."""
        h = self.features(x[:, None])
        # the original is channels-last, which fixes the order of the flattened features
        return self.embeddings(h.permute(0, 2, 3, 1).flatten(1))

    @torch.inference_mode()
    def embed(
        self, wav: np.ndarray, sample_rate: int = SAMPLE_RATE, variant: str = "google", batch_size: int = 32
    ) -> np.ndarray:
        """Embeddings float32 [P,128] of a waveform; arguments and errors as in `patches`."""
        x = torch.from_numpy(patches(wav, sample_rate, variant))
        device = next(self.parameters()).device
        self.eval()
        return np.concatenate([self(part.to(device)).cpu().numpy() for part in x.split(batch_size)])


def load_vggish(device: str = "cpu") -> VGGish:
    """VGGish with the published weights from `VMAS_WEIGHTS`.

    Raises WeightsUnavailable (which file, where from, which licence) or CheckpointError.
    """
    from vmas import weights

    path = weights.locate("vggish")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {k: v for k, v in state.items() if not k.startswith("pproc.")}  # PCA, unused
    model = VGGish()
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise CheckpointError(path, "not VGGish's weights", " ".join(str(e).split())[:200]) from e
    return model.eval().to(device)
