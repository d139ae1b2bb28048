"""What is trained, and on which arrays: the three stages of the mini recipe behind one interface.

A task is a module whose `forward(batch)` returns a dict with "loss" and anything worth logging; a
dataset gives batches from memory-mapped features. `motion` stands for Hiera's Kinetics weights and
`music` for MusicGen's; at paper scale both are loaded instead and only `vmas` is trained.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmas import losses
from vmas.beats import beat_weights, flow_to_grid, video_beats
from vmas.config import Profile
from vmas.decoder import MusicDecoder
from vmas.encoder import VideoEncoder, normalise
from vmas.errors import DataError
from vmas.features import SplitFeatures
from vmas.model import VMAs
from vmas.training.data import ClipDataset
from vmas.training.optim import freeze

THUMBNAIL = 4  # pixels a side
FLOW_FLOOR = 0.05  # pixels per frame; log(flow + floor) spreads still and moving frames alike


def clip_weights(flow: np.ndarray, beats: np.ndarray, profile: Profile) -> np.ndarray:
    """P_av float32 [N,t_a] (eq. 3) from flow [N,t_v-1] and music beats P_a [N,t_a]."""
    a = profile.align
    out = np.empty(beats.shape, np.float32)
    for i, (one, P_a) in enumerate(zip(flow, beats, strict=True)):
        O = flow_to_grid(one, profile.clip.fps, beats.shape[1], profile.codec.frame_rate, flow_time=a.flow_time)
        P_v = video_beats(O, a.delta, require_positive=a.require_positive)
        out[i] = beat_weights(P_v, P_a, a.delta, a.alpha, place=a.place)
    return out


def _tokens(split: SplitFeatures) -> np.ndarray:
    if split.tokens is None:
        raise DataError("the split was loaded without a codec: it has no tokens to train on")
    return split.tokens


def motion_data(split: SplitFeatures) -> ClipDataset:
    return ClipDataset({"frames": split.frames, "flow": split.flow})


def music_data(split: SplitFeatures, more: np.ndarray | None = None) -> ClipDataset:
    """Tokens of a split, and of `more` music without pictures, int16 [n,K,t_a]."""
    codes = _tokens(split)
    return ClipDataset({"codes": codes if more is None else np.concatenate([codes, more])})


def vmas_data(split: SplitFeatures, profile: Profile, rows: np.ndarray | None = None) -> ClipDataset:
    weights = clip_weights(split.flow, split.beats, profile)
    return ClipDataset({"frames": split.frames, "codes": _tokens(split), "weights": weights}, rows)


class MotionTask(nn.Module):
    """Regress motion and a thumbnail from X_v (stands for pretrained Hiera: masked pictures, then Kinetics).

    Token j of X_v is centred on frame 2j. It answers for the log flow magnitude of the pairs (2j-1, 2j) and
    (2j, 2j+1), and for frame 2j at 4x4 pixels: with motion alone, what tells one scene from another keeps a small
    part of the variance of X_v. Flow is also what MV Align looks at: said wherever the mini results are shown.
    """

    def __init__(self, encoder: VideoEncoder, mean: float, std: float):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, 2)
        self.picture = nn.Linear(encoder.dim, 3 * THUMBNAIL**2)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    @staticmethod
    def statistics(flow: np.ndarray) -> tuple[float, float]:
        x = np.log(np.asarray(flow) + FLOW_FLOOR)
        return float(x.mean()), float(x.std() + 1e-6)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        target = ((batch["flow"] + FLOW_FLOOR).log() - self.mean) / self.std
        pixels = normalise(batch["frames"])
        X_v = self.encoder(pixels)
        guess = self.head(X_v).flatten(1)[:, 1 : target.shape[1] + 1]
        motion = F.mse_loss(guess, target)
        seen = F.adaptive_avg_pool2d(pixels[:, :, ::2].transpose(1, 2).flatten(0, 1), THUMBNAIL)
        picture = F.mse_loss(self.picture(X_v).flatten(0, 1), seen.flatten(1))
        return {"loss": motion + picture, "r2": 1 - motion.detach() / target.var(), "picture": picture.detach()}


class MusicTask(nn.Module):
    """Next-token prediction on music alone, without a condition (stands for pretrained MusicGen)."""

    def __init__(self, decoder: MusicDecoder, cond_dim: int, video_tokens: int):
        super().__init__()
        self.decoder = decoder
        self.cond_dim, self.video_tokens = cond_dim, video_tokens

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        codes = batch["codes"]
        b = len(codes)
        X_v = torch.zeros(b, self.video_tokens, self.cond_dim, device=codes.device)
        keep = torch.zeros(b, dtype=torch.bool, device=codes.device)
        logits = self.decoder.codec_time_logits(codes, X_v, keep)
        return {"loss": losses.weighted_cross_entropy(logits, codes)}


class VMAsTask(nn.Module):
    """The paper's objective; drops the condition of a whole batch with probability `cfg_dropout`."""

    def __init__(self, model: VMAs):
        super().__init__()
        self.model = model
        cfg = model.profile.train
        self.cfg_dropout = cfg.cfg_dropout
        model.decoder.gradient_checkpointing = cfg.activation_checkpointing
        freeze(model, cfg.freeze)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        drop = generator is not None and float(torch.rand((), generator=generator)) < self.cfg_dropout
        return self.model(batch["frames"], batch["codes"], batch["weights"], conditioned=not drop)

    def param_groups(self, lr: float) -> list[dict]:
        """The optimizer's groups: the encoder with its share of `lr`, the rest with `lr`."""
        encoder = set(self.model.encoder.parameters())
        rest = [p for p in self.model.parameters() if p not in encoder and p.requires_grad]
        own = [p for p in self.model.encoder.parameters() if p.requires_grad]
        groups = [{"params": rest, "lr": lr}, {"params": own, "lr": lr * self.model.profile.train.encoder_lr_scale}]
        return [g for g in groups if g["params"]]

    def sample(self, batch: dict[str, Tensor], seed: int = 0) -> tuple[np.ndarray, int]:
        """Music [B,N] for the batch's frames, and its sample rate."""
        return self.model.generate_waveform(batch["frames"], seed), self.model.profile.clip.sample_rate
