"""What is trained, and on which arrays: the three stages of the mini recipe behind one interface.

A task is a module whose `forward(batch)` returns a dict with "loss" and anything worth logging; a
dataset gives batches from memory-mapped features. `motion` stands for Hiera's Kinetics weights and
`music` for MusicGen's; at paper scale both are loaded instead and only `vmas` is trained.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmas import losses
from vmas.beats import BeatOptions, align
from vmas.config import Profile
from vmas.decoder import MusicDecoder
from vmas.encoder import VideoEncoder, normalise
from vmas.errors import ConfigError, DataError
from vmas.features import SplitFeatures
from vmas.model import VMAs
from vmas.training.data import ClipDataset
from vmas.training.optim import freeze

THUMBNAIL = 4  # pixels a side
SCENE_WEIGHT = 0.3  # of the cross-entropy of the names: at 1 it drowns the motion
FLOW_FLOOR = 0.05  # pixels per frame; log(flow + floor) spreads still and moving frames alike


def clip_weights(flow: np.ndarray, beats: np.ndarray, profile: Profile) -> np.ndarray:
    """P_av float32 [N,t_a] (eq. 3) from flow [N,t_v-1] and music beats P_a [N,t_a]."""
    options = BeatOptions.from_config(profile.align)
    out = np.empty(beats.shape, np.float32)
    for i, (one, P_a) in enumerate(zip(flow, beats, strict=True)):
        out[i] = align(one, P_a, profile.clip.fps, profile.codec.frame_rate, options).P_av
    return out


def _tokens(split: SplitFeatures) -> np.ndarray:
    if split.tokens is None:
        raise DataError("the split was loaded without a codec: it has no tokens to train on")
    return split.tokens


def motion_data(split: SplitFeatures) -> ClipDataset:
    return ClipDataset({"frames": split.frames, "flow": split.flow, "scene": split.scenes})


def music_data(split: SplitFeatures, more: np.ndarray | None = None) -> ClipDataset:
    """Tokens of a split, and of `more` music without pictures, int16 [n,K,t_a]."""
    codes = _tokens(split)
    return ClipDataset({"codes": codes if more is None else np.concatenate([codes, more])})


def vmas_data(split: SplitFeatures, profile: Profile, rows: np.ndarray | None = None) -> ClipDataset:
    weights = clip_weights(split.flow, split.beats, profile)
    return ClipDataset({"frames": split.frames, "codes": _tokens(split), "weights": weights}, rows)


def span(frames: int, rows: int) -> int:
    """Frames of the clip that one row of X_v answers for. Raises ConfigError when they are not whole."""
    if frames % rows:
        raise ConfigError(f"encoder: {rows} rows of X_v cannot share {frames} frames evenly")
    return frames // rows


class MotionTask(nn.Module):
    """Regress motion and a thumbnail from X_v and name the scene (stands for Hiera: masked pictures, then Kinetics).

    Token j of X_v is centred on frame 2j. It answers for the log flow magnitude of the pairs (2j-1, 2j) and
    (2j, 2j+1), and for frame 2j at 4x4 pixels; an encoder with fewer rows (Table 6) answers for more pairs with
    each, seen or not. With motion alone, what tells one scene from another keeps a small part of the variance of
    X_v. Flow is also what MV Align looks at: said wherever the mini results are shown.
    `classes` are the numbers of names of each kind that a batch's "scene" int [B,kinds] holds (ground texture and
    figure; labels of the picture, not of the music); () where the clips have none.
    """

    def __init__(self, encoder: VideoEncoder, mean: float, std: float, classes: Sequence[int] = ()):
        super().__init__()
        self.encoder = encoder
        self.middles = encoder.rows_at
        self.head = nn.Linear(encoder.width, span(encoder.video_shape[1], len(self.middles)))
        self.picture = nn.Linear(encoder.width, 3 * THUMBNAIL**2)
        self.scene = nn.ModuleList(nn.Linear(encoder.width, n) for n in classes)
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
        seen = F.adaptive_avg_pool2d(pixels[:, :, self.middles].transpose(1, 2).flatten(0, 1), THUMBNAIL)
        picture = F.mse_loss(self.picture(X_v).flatten(0, 1), seen.flatten(1))
        out = {"loss": motion + picture, "r2": 1 - motion.detach() / target.var(), "picture": picture.detach()}
        for kind, linear in enumerate(self.scene):  # every token names the scene: its label, once per token
            label = batch["scene"][:, kind, None].expand(-1, X_v.shape[1])
            named = linear(X_v)
            out["loss"] = out["loss"] + SCENE_WEIGHT * F.cross_entropy(named.flatten(0, 1), label.flatten())
            out[f"scene{kind}"] = (named.detach().argmax(-1) == label).float().mean()
        return out


def draw_pieces(T: int, lengths: Sequence[int], generator: torch.Generator) -> tuple[int, int, int]:
    """One of `lengths`, in tokens, and where the first piece begins: (pieces, start, stop) within T tokens."""
    if not lengths:
        return 1, 0, T
    L = lengths[int(torch.randint(len(lengths), (), generator=generator))]
    start = int(torch.randint(min(L, T - L + 1), (), generator=generator))
    pieces = (T - start) // L
    return pieces, start, start + pieces * L


class MusicTask(nn.Module):
    """Next-token prediction on music alone, without a condition (stands for pretrained MusicGen).

    `lengths`: of the pieces that a training step hears, see `draw_pieces`; () = whole clips.
    """

    def __init__(self, decoder: MusicDecoder, lengths: Sequence[int] = ()):
        super().__init__()
        self.decoder, self.lengths = decoder, lengths

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        codes, pieces = batch["codes"], 1
        if generator is not None:
            pieces, start, stop = draw_pieces(codes.shape[-1], self.lengths, generator)
            codes = codes[..., start:stop]
        logits = self.decoder.codec_time_logits(codes, None, pieces=pieces)
        # gradients of zero and not none: weight decay acts on these parameters, too
        idle = torch.stack([p.sum() for p in self.decoder.conditioning()]).sum()
        return {"loss": losses.weighted_cross_entropy(logits, codes) + 0 * idle}


class VMAsTask(nn.Module):
    """The paper's objective; drops the condition of a whole batch with probability `cfg_dropout`.

    With `pieces_s` an update cuts its clips into pieces of one length drawn from it. Once the decoder has heard a
    second of music, it needs no picture to go on, so whole clips say little about the picture; the beginning of
    every piece does. Not in the paper, which has 2.2M clips.
    """

    def __init__(self, model: VMAs):
        super().__init__()
        self.model = model
        cfg = model.profile.train
        self.cfg_dropout = cfg.cfg_dropout
        self.lengths = model.profile.piece_tokens
        model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = cfg.activation_checkpointing
        freeze(model, cfg.freeze)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        codes, weights = batch["codes"], batch["weights"]
        frames, X_v = batch.get("frames"), batch.get("X_v")
        if generator is None:
            return self.model(frames, codes, weights, X_v=X_v)
        drop = float(torch.rand((), generator=generator)) < self.cfg_dropout
        pieces, start, stop = draw_pieces(codes.shape[-1], self.lengths, generator)
        part = codes[..., start:stop], weights[..., start:stop]
        return self.model(frames, *part, conditioned=not drop, pieces=pieces, start=start, X_v=X_v)

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
