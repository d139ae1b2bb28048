"""VMAs: the video encoder, the music decoder and the alignment objective, put together (Figure 1).

    L = β·L_c + L_g                                             (section 4.4)

L_g is the beat-weighted cross-entropy (eq. 4), L_c the contrast of pooled video features X̄_v with
pooled music features M̄, M = Ŷ E (eq. 2). What the paper leaves open is an option of
`vmas.config.AlignConfig` with the literal reading as default.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vmas import checkpoint, config, losses
from vmas.config import Profile
from vmas.decoder import MusicDecoder
from vmas.encoder import VideoEncoder, normalise
from vmas.encoder_sampled import make_encoder
from vmas.errors import CheckpointError, ConfigError, UsageError

KIND = "vmas"
CACHE_BYTES = 2**31  # of a GPU's memory for the keys and values of self-attention
ROW_TIMES = ("evenly", "frames")
ARCHITECTURE = ("clip", "codec", "encoder", "decoder", "align")  # what a checkpoint fixes; sampling stays free


def build_encoder(profile: Profile) -> VideoEncoder:
    """The video encoder of a profile: [B,3,t_v,H,W] → X_v [B,t_v/2,d] (other rows for the encoders of Table 6)."""
    return make_encoder(profile.encoder, profile.clip.num_frames, profile.clip.img_size)


def build_decoder(profile: Profile) -> MusicDecoder:
    """The music decoder of a profile; it holds the projection from the encoder's width to its own.

    Raises ConfigError for unknown `decoder.row_times`.
    """
    if profile.decoder.row_times not in ROW_TIMES:
        raise ConfigError(f"decoder.row_times must be {' or '.join(ROW_TIMES)}, got {profile.decoder.row_times!r}")
    d, clip, e = profile.decoder, profile.clip, profile.encoder
    fps = clip.fps * e.frames / clip.num_frames if e.frames else clip.fps  # of the frames that the encoder sees
    return MusicDecoder(
        n_q=profile.codec.n_q,
        card=profile.codec.bins,
        dim=d.dim,
        layers=d.layers,
        heads=d.heads,
        ff_mult=d.ff_mult,
        cond_dim=e.out_dim,
        dropout=d.dropout,
        time_bias_s=d.time_bias_s,
        frame_rate=profile.codec.frame_rate,
        cond_rate=fps / e.patch_stride[0],
        cond_start=_first_row_s(profile) if d.row_times == "frames" else None,
    )


def _first_row_s(profile: Profile) -> float:
    """Time in seconds of the frame that row 0 of X_v is centred on."""
    with torch.device("meta"):  # its places, without its weights
        return build_encoder(profile).rows_at[0] / profile.clip.fps


def _profile(saved: dict, folder: Path) -> Profile:
    """The profile of a checkpoint: its architecture, and for a named profile the options that stay free as now set."""
    name = saved.get("name")
    if name in config.PROFILES:
        return config.load(name, {k: saved[k] for k in ARCHITECTURE})
    return config.from_dict(Profile, saved, source=str(folder / checkpoint.MANIFEST))


class VMAs(nn.Module):
    """The model of the paper for one profile.

    Args:
        profile: sizes and the alignment's options.
        codec: the frozen codec. It is used for E (the contrast) and to turn tokens into sound; its
            weights are not part of this module's state.
    """

    E: Tensor
    codec: Any

    def __init__(self, profile: Profile, codec: Any):
        super().__init__()
        self.profile = profile
        self.encoder = build_encoder(profile)
        self.decoder = build_decoder(profile)
        # X̄_v has the encoder's width and M̄ the codec's: one learned linear joins them (open in the paper).
        self.video_to_music = nn.Linear(profile.encoder.out_dim, profile.codec.dim)
        # Without eq. 2 nothing reads it, and it is not trained: DDP would wait for its gradient in vain, and with a
        # gradient of 0 AdamW would let the unused weights decay.
        self.video_to_music.requires_grad_(profile.align.contrastive)
        self.register_buffer("E", codec.codebooks().detach().float().clone(), persistent=False)
        object.__setattr__(self, "codec", codec)  # not a submodule: frozen, saved on its own

    @property
    def device(self) -> torch.device:
        return self.E.device

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.codec._apply(fn)
        return self

    def encode_video(self, frames: Tensor) -> Tensor:
        """X_v [B,t_v/2,d] of uint8 frames [B,t_v,H,W,3]."""
        return self.encoder(normalise(frames))

    def forward(
        self,
        frames: Tensor | None,
        codes: Tensor,
        weights: Tensor | None = None,
        conditioned: bool = True,
        pieces: int = 1,
        start: int = 0,
        X_v: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            frames: uint8 [B,t_v,H,W,3]; None where X_v is given.
            codes: int64 [B,K,t_a], the codec's tokens of the training audio.
            weights: P_av float [B,t_a] (eq. 3), or None for uniform weights.
            conditioned: False drops the condition of the whole batch (guidance training); L_c is then skipped.
            pieces, start: codes and weights begin at token `start` of the clip and are cut into `pieces` that do
                not hear each other (see `MusicDecoder.codec_time_logits`).
            X_v: float [B,t_v/2,d], the encoder's answer to `frames` where it is known already.

        Returns: "loss" (L), "L_g", "L_c" (0 when skipped), "ce" (unweighted cross-entropy), all scalars.
        """
        a = self.profile.align
        if X_v is None:
            if frames is None:
                raise UsageError("the model needs frames, or X_v of them")
            X_v = self.encode_video(frames)
        keep = None if conditioned else torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        logits = self.decoder.codec_time_logits(codes, X_v, keep, pieces, start)
        nll = losses.token_nll(logits, codes)
        L_g = losses.weighted_mean(nll, None, weights if a.beat_weighting else None, a.normalise)
        ce = losses.weighted_mean(nll.detach())
        L_c = logits.new_zeros(())
        if a.contrastive and conditioned:
            M = losses.music_embedding(logits, self.E)
            L_c = losses.contrastive_loss(
                self.video_to_music(X_v.mean(1)), M, temperature=a.temperature, symmetric=a.symmetric, gather=a.gather
            )
        else:
            # Keeps every trained parameter in the graph, so that distributed reduction sees the same set each step.
            L_g = L_g + 0.0 * (self.video_to_music(X_v.mean(1)).sum() if a.contrastive else X_v.sum())
        return {"loss": L_g + a.beta * L_c, "L_g": L_g.detach(), "L_c": L_c.detach(), "ce": ce}

    def clips_at_once(self) -> int:
        """Clips that are generated together: the profile's number; on a GPU, where a step of many takes as long as one
        of few, as many as `CACHE_BYTES` of keys and values allow."""
        n, d = self.profile.sampling.batch_size, self.profile.decoder
        if self.device.type != "cuda":
            return n
        steps, rows = (
            self.profile.num_tokens + self.profile.codec.n_q - 1,
            1 if self.profile.sampling.guidance == 1 else 2,
        )
        return max(n, CACHE_BYTES // (d.layers * 2 * rows * d.dim * steps * self.E.element_size()))

    @torch.inference_mode()
    def generate_tokens(
        self, frames: Tensor, seed: int = 0, first: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Sample codes [B,K,t_a] for frames uint8 [B,t_v,H,W,3].

        A clip's result depends on `seed` and on its index (`first` + its row), never on its batch.
        """
        s = self.profile.sampling
        return self.decoder.generate(
            torch.cat([self.encode_video(some) for some in frames.split(s.batch_size)]),
            self.profile.num_tokens,
            top_k=s.top_k,
            top_p=s.top_p,
            temperature=s.temperature,
            guidance=s.guidance,
            seed=seed,
            first=first,
            progress=progress,
        )

    @torch.inference_mode()
    def generate_waveform(self, frames, seed: int = 0, first: int = 0, progress=None):
        """Music float32 numpy [B,samples] at the profile's sample rate for frames uint8 [B,t_v,H,W,3]."""
        self.eval()
        n, total = self.clips_at_once(), len(frames)
        out = []
        for i in range(0, total, n):
            part = frames[i : i + n]
            # a copy: memory-mapped frames are read-only, which tensors cannot be
            part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            part = part.to(self.device)
            done = None
            if progress is not None:

                def done(step, steps, i=i, part=part):
                    progress(i * steps + step * len(part), total * steps)

            codes = self.generate_tokens(part, seed, first + i, done)
            for some in codes.split(self.profile.sampling.batch_size):
                out.append(self.codec.decode(some)[:, 0, : self.profile.clip.num_samples].float().cpu())
        return torch.cat(out).numpy()

    def save_pretrained(
        self, folder, seed: int = 0, training: dict | None = None, half: bool = False, state: dict | None = None
    ) -> Path:
        """Write the weights and the manifest; the codec is named by the sha256 of its weights.

        `state` are the weights to write where the module's own are spread over processes.
        """
        sha = getattr(self.codec, "sha256", "")
        about = {**(training or {}), "codec_sha256": sha}
        return checkpoint.save(
            folder, state or self.state_dict(), KIND, dataclasses.asdict(self.profile), seed, about, half=half
        )

    @classmethod
    def from_pretrained(cls, folder, device: str | torch.device = "cpu", codec: nn.Module | None = None) -> "VMAs":
        """Load a checkpoint folder; its codec lies in `codec/` inside it or beside it.

        Raises CheckpointError when either is missing, altered, of another architecture, or when the codec
        is not the one that the model was trained with.
        """
        from vmas.codec import load_codec

        folder = Path(folder)
        state, manifest = checkpoint.load(folder, KIND)
        profile = _profile(manifest["config"], folder)
        if codec is None:
            places = [folder / "codec", folder.parent / "codec"]
            place = next((p for p in places if (p / checkpoint.MANIFEST).is_file()), None)
            if place is None:
                raise CheckpointError(folder, "its codec is missing", "put the codec's checkpoint in codec/ beside it")
            wanted = manifest["training"].get("codec_sha256")
            if wanted and checkpoint.read_manifest(place)["sha256"] != wanted:
                raise CheckpointError(place, f"this is not the codec that {folder.name} was trained with")
            codec = load_codec(place)
        model = cls(profile, codec)
        checkpoint.load_into(model, state, folder)
        return model.to(device).eval()
