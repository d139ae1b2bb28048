"""Profiles: YAML files read into frozen dataclasses; derived lengths are properties.

`load("mini")` reads `vmas/configs/mini.yaml`. An unknown key, a missing key or a value of the
wrong kind is a `ConfigError` that names the file, the key and its nearest neighbour. Overrides
(`load("mini", {"train": {"steps": 10}})`) go through the same checks.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmas import paths
from vmas.errors import ConfigError, UsageError, nearest

PROFILES = ("smoke", "mini", "paper")


def _later(default: Any) -> Any:
    """A key that came after the first records: it may be missing, and at its default it stays out of every hash."""
    return dataclasses.field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class ClipConfig:
    """One training or test clip. Appendix B: 10 s, 9.6 fps, 224x224, 32 kHz."""

    seconds: float
    fps: float
    img_size: int
    sample_rate: int
    flow_size: int
    flow_method: str
    dense_fps: float  # MV Align is also printed at this rate, since chance falls with it

    @property
    def num_frames(self) -> int:
        """t_v, frames per clip (paper: 96)."""
        return round(self.seconds * self.fps)

    @property
    def num_samples(self) -> int:
        return round(self.seconds * self.sample_rate)


@dataclass(frozen=True)
class CorpusConfig:
    """The procedural corpus (see docs of `vmas.corpus`); counts per split and the knobs of its difficulty."""

    seed: int
    train: int
    val: int
    test: int
    shifted: int
    music: int  # clips of music alone, for the decoder's first stage
    fps: float
    size: int
    crf: int
    beat_share: float  # share of music beats that the picture shows
    jitter_s: float  # standard deviation of picture against music, seconds
    spurious_per_s: float  # video events without a music beat
    silent_note_share: float  # notes without a picture
    cut_share: float  # clips that cut on the beats instead of pulsing
    genre_mix: float  # how much neighbouring genres share instruments, tempo and palette
    static_share: float
    near_static_share: float
    vocal_share: float
    mismatched_share: float
    duplicate_share: float
    varies: float = _later(-1.0)  # spurious_per_s of the corpus that this is a variation of, its pictures else the same


@dataclass(frozen=True)
class CodecConfig:
    """`kind: frame` is the mini frame codec, `kind: encodec` is audiocraft's EncodecModel."""

    kind: str
    sample_rate: int
    hop: int  # stride 640 at 32 kHz: 50 Hz (appendix B)
    n_q: int
    bins: int
    dim: int
    width: int
    blocks: int
    n_mels: int
    train_steps: int
    batch_size: int
    segment_s: float
    lr: float
    weights: str | None  # name in vmas.weights for pretrained ones

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop


@dataclass(frozen=True)
class EncoderConfig:
    """Arguments of `vmas.encoder.VideoEncoder` (Table 2)."""

    embed_dim: int
    num_heads: int
    depths: tuple[int, ...]
    pool: tuple[tuple[int, int], ...]
    windows: tuple[tuple[int, int] | None, ...]
    patch_kernel: tuple[int, int, int]
    patch_stride: tuple[int, int, int]
    patch_padding: tuple[int, int, int]
    drop_path_rate: float
    motion_steps: int  # steps of pretraining on motion and thumbnails (mini: stands for Hiera's weights), 0 = none
    motion_batch: int
    motion_lr: float
    weights: str | None
    frames: int = _later(0)  # pictures that the encoder sees, taken evenly of the clip's; 0 = all of them (the paper)
    mean_space: bool = _later(False)  # mean over the places that the last stage leaves (Hiera, ViT)
    width: int = _later(0)  # of X_v, by a linear layer at the end (as CLIP's); 0 = the last stage's

    @property
    def out_dim(self) -> int:
        """Width d of X_v."""
        return self.width or self.embed_dim * 2 ** (len(self.depths) - 1)


@dataclass(frozen=True)
class DecoderConfig:
    """Arguments of `vmas.decoder.MusicDecoder` (appendix B: width 1536, 48 layers, 24 heads)."""

    dim: int
    layers: int
    heads: int
    ff_mult: int
    dropout: float
    time_bias_s: float | None  # width w of the cross-attention bias -((t_a-t_v)/w)^2; null = none (the paper)
    weights: str | None
    # t_v of row j: "evenly", the middle of part j of the clip, or "frames", the time of the frame it is centred on
    row_times: str = _later("evenly")


@dataclass(frozen=True)
class AlignConfig:
    """Section 4.4: eq. 2, 3 and 4 and their open choices."""

    alpha: float
    beta: float
    delta: int  # tokens
    contrastive: bool
    beat_weighting: bool
    temperature: float  # 1 = literal eq. 2
    symmetric: bool
    gather: bool
    normalise: str  # "count" (literal) or "weight"
    place: str  # "video" (literal), "onset" or "dilated"
    require_positive: bool  # guard against O = 0
    flow_time: str  # "end" or "mid"
    lead: int = _later(0)  # tokens by which the weights of eq. 3 are moved earlier

    def __post_init__(self):
        if self.lead < 0:
            raise ConfigError(f"align.lead must be 0 or more tokens, got {self.lead}")


@dataclass(frozen=True)
class TrainConfig:
    """Appendix B where it speaks; `steps` and `freeze` are open in the paper."""

    steps: int
    pretrain_steps: int  # decoder on music alone (mini: stands for MusicGen's weights)
    batch_size: int
    grad_accum: int
    optimizer: str  # "dadapt_adam" or "adamw"
    lr: float
    pretrain_lr: float  # of the decoder on music alone
    encoder_lr_scale: float  # of stage 2: the encoder's learning rate over lr
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    grad_clip: float
    ema_decay: float
    ema_every: int
    cfg_dropout: float
    calibrate: bool  # stage 2 begins with X_v standardised over training clips (folded into cond_proj)
    pieces_s: tuple[float, ...]  # stage 2: lengths in seconds of which each update draws one; () = whole clips
    freeze: tuple[str, ...]  # groups of parameters that stay as they are: "encoder", "decoder.emb", ...
    precision: str  # "auto", "fp32" or "bf16"
    activation_checkpointing: bool  # of stage 2: recompute every encoder and decoder block in the backward pass
    compile: bool  # torch.compile of every block, see vmas.training.regional
    val_every: int
    sample_every: int  # steps between short generations for TensorBoard, 0 = none
    checkpoint_every: int
    keep_last: int  # states kept on disk
    num_workers: int


@dataclass(frozen=True)
class SamplingConfig:
    top_k: int
    top_p: float
    temperature: float
    guidance: float
    batch_size: int


@dataclass(frozen=True)
class EvalConfig:
    clips: int  # test clips per dataset, 0 = all
    sampling_seeds: int
    sweep_sampling_seeds: int  # of every run of a sweep
    bootstrap: int
    mv_align_version: str
    tagger_steps: int
    tagger_width: int


@dataclass(frozen=True)
class Profile:
    name: str
    status: str  # status of the numbers: reproduced, scaled_down or smoke
    note: str
    clip: ClipConfig
    corpus: CorpusConfig
    codec: CodecConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    align: AlignConfig
    train: TrainConfig
    sampling: SamplingConfig
    eval: EvalConfig

    @property
    def piece_tokens(self) -> tuple[int, ...]:
        """`train.pieces_s` in tokens, none longer than the clip."""
        return tuple(max(1, min(round(s * self.codec.frame_rate), self.num_tokens)) for s in self.train.pieces_s)

    @property
    def num_tokens(self) -> int:
        """t_a, token steps per clip before the delay pattern (paper: 500)."""
        return math.ceil(self.clip.num_samples / self.codec.hop)

    @property
    def num_video_tokens(self) -> int:
        """t_v/2, rows of X_v (paper: 48)."""
        stride, pad, kernel = (
            self.encoder.patch_stride[0],
            self.encoder.patch_padding[0],
            self.encoder.patch_kernel[0],
        )
        frames = self.encoder.frames or self.clip.num_frames
        return (frames + 2 * pad - kernel) // stride + 1


def plain(cfg: Any) -> dict[str, Any]:
    """A dataclass as nested plain data for a key, without the later fields that stand at their default."""
    out = {}
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if not (f.metadata.get("later") and value == f.default):
            out[f.name] = plain(value) if dataclasses.is_dataclass(value) else value
    return out


def sha256(*parts: Any) -> str:
    """Stable hash of dataclasses and plain data, used as a cache key."""

    def data(x):
        return plain(x) if dataclasses.is_dataclass(x) and not isinstance(x, type) else x

    text = json.dumps([data(p) for p in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load(profile: str, overrides: dict | None = None) -> Profile:
    """Read a profile by name (`smoke`, `mini`, `paper`) or by the path of a YAML file.

    Raises UsageError for an unknown profile and ConfigError for a bad key or value.
    """
    import yaml

    path = paths.CONFIGS / f"{profile}.yaml"
    if not path.is_file():
        path = Path(profile)
        if path.suffix not in (".yaml", ".yml"):
            raise UsageError(f"unknown profile {profile!r}: {nearest(profile, PROFILES)}")
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such config file; name one of {', '.join(PROFILES)} or an existing YAML file"
            )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not a text file that can be read: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the file must hold a mapping of sections")
    return from_dict(Profile, _merge(data, overrides or {}), source=str(path.name))


def changed(profile: Profile, overrides: dict) -> Profile:
    """`profile` with `overrides` as `load` takes them. Raises ConfigError for a bad key or value."""
    return from_dict(Profile, _merge(dataclasses.asdict(profile), overrides), source=profile.name)


def _merge(base: dict, over: dict) -> dict:
    out = dict(base)
    for key, value in over.items():
        out[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return out


def from_dict(cls, data: dict, source: str = "config", where: str = "") -> Any:
    """Build the frozen dataclass `cls` from plain data, checking keys and kinds."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: {where.rstrip('.') or 'top level'} must be a mapping, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {where}{key}: {nearest(key, hints)}")
    later = {f.name for f in dataclasses.fields(cls) if f.metadata.get("later")}
    missing = [k for k in hints if k not in data and k not in later]
    if missing:
        raise ConfigError(f"{source}: missing key {where}{missing[0]}; copy it from another profile")
    return cls(**{k: _convert(hints[k], data[k], source, f"{where}{k}") for k in hints if k in data})


def _convert(hint, value, source: str, where: str):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, source, where + ".")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, source, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{source}: {where} must be a list, got {value!r}")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, source, where) for v in value)
        if len(value) != len(args):
            raise ConfigError(f"{source}: {where} must have {len(args)} entries, got {len(value)}")
        return tuple(_convert(a, v, source, where) for a, v in zip(args, value, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{source}: {where} must be finite, got {value!r}")
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{source}: {where} must be {hint.__name__}, got {value!r}")
