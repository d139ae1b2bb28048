"""Encoders that see few frames of a clip and leave more than one place a time step: those of Table 6.

The paper compares its encoder with CLIP [37] and Hiera [39] on 16 frames, all "incorporated into our pipeline", and
does not say how. Here all three are the same class with other sizes behind one interface, frames [B,3,t_v,H,W] → X_v:

    per-frame ViT (CLIP's)  one stage, one window a frame: no token sees another frame
    Hiera                   pools of 2 throughout, mask-unit windows, then attention over all tokens; 2x2 places left
    the paper's             stronger pools, every frame, one place left

What is left in space is averaged (Hiera's own head averages too, CLIP takes a class token), and the embedding of time
is kept, since it is all that tells the decoder when a row was.
"""

from torch import Tensor, nn

from vmas.config import EncoderConfig
from vmas.encoder import VideoEncoder
from vmas.errors import ConfigError


def frame_indices(total: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `total` frames; all of them when the numbers are equal."""
    if not 0 < count <= total:
        raise ConfigError(f"encoder: frames must lie between 1 and the clip's {total}, got {count}")
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


class SampledEncoder(VideoEncoder):
    """A `VideoEncoder` on `frames` of the clip's `num_frames`, evenly taken.

    Args:
        num_frames: t_v of the videos that it is given.
        frames: how many of them it looks at.
        mean_space: average the places that the last stage leaves; without it the last stage must leave one.
        width: of X_v, by a last linear layer; 0 = none, the last stage's width.
        sizes: the rest of `VideoEncoder`'s arguments.

    Raises ConfigError as `VideoEncoder`, and when `frames` does not lie in 1 … num_frames.
    """

    def __init__(self, num_frames: int, frames: int, mean_space: bool = False, width: int = 0, **sizes):
        index = frame_indices(num_frames, frames)
        super().__init__(num_frames=frames, single_output=not mean_space, **sizes)
        self.index = index
        self.num_frames = num_frames
        if width:
            self.proj = nn.Linear(self.dim, width)
            nn.init.xavier_uniform_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)
            self.width = width

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the videos that the encoder is given."""
        channels, _, height, width = self.input_shape
        return channels, self.num_frames, height, width

    @property
    def rows_at(self) -> list[int]:
        """The frame of the whole clip that each row of X_v is centred on."""
        return [self.index[i] for i in super().rows_at]

    def forward(self, video: Tensor, return_stages: bool = False):
        """X_v [B,T',width] of a normalised video [B,in_chans,num_frames,H,W]; stages as `VideoEncoder`'s."""
        if tuple(video.shape[1:]) != self.video_shape:
            want = ",".join(map(str, self.video_shape))
            raise ConfigError(f"encoder: the video is {list(video.shape)}, this encoder takes [B,{want}]")
        found = super().forward(video[:, :, self.index], return_stages)
        tokens, stages = found if isinstance(found, tuple) else (found, None)
        X_v = tokens.unflatten(1, (self.grid[0], -1)).mean(2)
        if hasattr(self, "proj"):
            X_v = self.proj(X_v)
        return X_v if stages is None else (X_v, stages)


def make_encoder(cfg: EncoderConfig, num_frames: int, img_size: int | tuple[int, int]) -> VideoEncoder:
    """The encoder of a profile: the paper's, or one that sees fewer frames (`cfg.frames`, Table 6)."""
    if not (cfg.frames or cfg.mean_space or cfg.width):
        return VideoEncoder.from_config(cfg, num_frames, img_size)
    sizes = {
        k: getattr(cfg, k)
        for k in (
            "embed_dim", "num_heads", "depths", "pool", "windows", "patch_kernel", "patch_stride", "patch_padding",
            "drop_path_rate",
        )
    }  # fmt: skip
    return SampledEncoder(num_frames, cfg.frames or num_frames, cfg.mean_space, cfg.width, img_size=img_size, **sizes)
