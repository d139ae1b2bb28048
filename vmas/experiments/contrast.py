"""What the contrastive term of eq. 2 sees and what it pulls on: similarities of a batch, and gradients at the logits.

M = ŶE reads the decoder's own output under teacher forcing, so that L_c can fall in two ways: X̄_v can learn what the
music is, or Ŷ can be bent until its mean tells the video. The second way is paid for in L_g. For notebook 05.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmas import losses
from vmas.config import Profile


@dataclass(frozen=True)
class Batch:
    """B clips as stage 2 has them: frames uint8 [B,t_v,H,W,3], codes int64 [B,K,t_a], weights P_av float [B,t_a]."""

    genres: list[str]
    frames: Tensor
    codes: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Pull:
    """Gradients at the logits: norms of ∂L_g and ∂βL_c, and the cosine between them.

    A negative cosine says that a step down L_c is a step up L_g: the contrast costs the music its likelihood.
    """

    temperature: float
    L_g: float
    L_c: float
    generation: float
    contrast: float
    cosine: float


def render(profile: Profile, codec: Any, names: Sequence[str], folder) -> Batch:
    """Clips of the procedural corpus by their ids, made in `folder` as files and read back. Raises UsageError."""
    from vmas import corpus
    from vmas.beats import BeatOptions, align
    from vmas.features import clip_features

    table = corpus.load_manifest(corpus.make(folder, profile, ids=names, workers=1, progress=False).parent)
    rows = table.set_index("id").loc[list(names)]
    got = [clip_features(Path(folder) / p, profile, dense=False) for p in rows.path]
    wav = torch.from_numpy(np.stack([g["waveforms"] for g in got]).astype(np.float32) / 32767.0)
    with torch.inference_mode():
        codes = codec.encode(wav[:, None])[..., : profile.num_tokens]
    option = BeatOptions.from_config(profile.align)
    rate, fps = profile.codec.frame_rate, profile.clip.fps
    P_av = [align(g["flow"], g["beats"], fps, rate, option).P_av for g in got]
    frames = torch.from_numpy(np.stack([g["frames"] for g in got]))
    return Batch(rows.genre.tolist(), frames, codes.clone().long(), torch.from_numpy(np.stack(P_av)))


def pooled(model, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(video [B,D], M̄ [B,D], logits [B,K,t_a,card]) of a batch; the video side joined to E's space as in training."""
    X_v = model.encode_video(batch.frames)
    logits = model.decoder.codec_time_logits(batch.codes, X_v)
    return model.video_to_music(X_v.mean(1)), losses.music_embedding(logits, model.E), logits


@torch.no_grad()
def similarities(model, batch: Batch) -> np.ndarray:
    """g(X̄_v(i), M̄(j)) of eq. 2, cosines [B,B], videos down and music across."""
    x, m, _ = pooled(model, batch)
    x, m = (torch.nn.functional.normalize(v.double(), dim=-1) for v in (x, m))
    return (x @ m.T).numpy()


def pull(model, batch: Batch, temperature: float) -> Pull:
    """What L_g (eq. 4) and βL_c (eq. 2 at this temperature) ask of the logits of one batch."""
    a = model.profile.align
    with torch.no_grad():
        x, _, logits = pooled(model, batch)
    logits = logits.detach().requires_grad_()
    nll = losses.token_nll(logits, batch.codes)
    L_g = losses.weighted_mean(nll, None, batch.weights if a.beat_weighting else None, a.normalise)
    L_c = losses.contrastive_loss(
        x, losses.music_embedding(logits, model.E), temperature=temperature, symmetric=a.symmetric
    )
    g, c = (torch.autograd.grad(loss, logits)[0].double() for loss in (L_g, a.beta * L_c))
    norms = float(g.norm()), float(c.norm())
    cosine = float((g * c).sum()) / (norms[0] * norms[1])
    return Pull(temperature, float(L_g.detach()), float(L_c.detach()), *norms, cosine)
