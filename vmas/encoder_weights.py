"""Pretrained Hiera-Base weights for `vmas.encoder.VideoEncoder`.

Pooling and windows hold no parameters, so the weights of the published model fit the encoder of Table 2:

    file                                    as they are   changed
    hiera_base_16x224, original (Kinetics)  299 of 300    pos_embed_temporal 8 → 48, head dropped
    hiera_base_224, original (ImageNet)     297           positions and patch convolution inflated, head dropped
    hiera_base_224, timm                    295 + 2       the same; head.norm.* renamed norm.*

Sources: github.com/facebookresearch/hiera and timm's hiera_base_224. The weights are licensed
CC-BY-NC 4.0 (no commercial use), unlike this code. Which file the paper used, and how it stretched the
temporal positions, is open; both are chosen here.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vmas import checkpoint, weights
from vmas.encoder import VideoEncoder
from vmas.errors import CheckpointError

LICENCE = "CC-BY-NC 4.0"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What `load_pretrained` did.

    layout: "video", "image" or "image (timm)". as_is, renamed, changed, dropped: names of tensors, those of
    the encoder except for `dropped`. statistics: pixel statistics that fit (`vmas.encoder.normalise`).
    """

    path: Path
    layout: str
    as_is: tuple[str, ...]
    renamed: tuple[str, ...]
    changed: tuple[str, ...]
    dropped: tuple[str, ...]
    statistics: str
    licence: str = LICENCE


def stretch_time(positions: Tensor, steps: int) -> Tensor:
    """Temporal positions [1,T,C] → [1,steps,C] by linear interpolation between the centres of the steps."""
    return F.interpolate(positions.mT, size=steps, mode="linear", align_corners=False).mT.contiguous()


def inflate(kernel: Tensor, depth: int) -> Tensor:
    """A 2-D kernel [O,I,h,w] as a 3-D one [O,I,depth,h,w] that looks at the middle frame only.

    On a still video it equals the 2-D convolution at every step. Spreading the kernel over the frames (mean/3)
    would not: at the first step one of them is zero padding.
    """
    out = kernel.new_zeros(*kernel.shape[:2], depth, *kernel.shape[2:])
    out[:, :, depth // 2] = kernel
    return out


def convert(state: dict[str, Tensor], encoder: VideoEncoder, path: Path) -> tuple[dict[str, Tensor], Loaded]:
    """Published tensors → the encoder's state, and what was done.

    Raises CheckpointError when the tensors are of none of the three layouts or do not fit the encoder.
    """
    if "pos_embed_spatial" in state and "pos_embed_temporal" in state:
        layout = "video"
    elif "pos_embed" in state and "pos_embed_win" not in state:
        layout = "image (timm)" if "head.norm.weight" in state else "image"
    else:
        raise CheckpointError(path, "not a Hiera checkpoint", "known: hiera_base_16x224, hiera_base_224, timm's")
    own = encoder.state_dict()
    new, renamed, changed, dropped = {}, [], [], []
    for name, value in state.items():
        if name.startswith("head.norm."):
            name = name.removeprefix("head.")
            renamed.append(name)
        elif name.startswith("head."):
            dropped.append(name)
            continue
        new[name] = value
    if layout == "video":
        steps = own["pos_embed_temporal"].shape[1]
        if new["pos_embed_temporal"].shape[1] != steps:
            new["pos_embed_temporal"] = stretch_time(new["pos_embed_temporal"], steps)
            changed.append("pos_embed_temporal")
    else:
        new["pos_embed_spatial"] = new.pop("pos_embed")
        new["pos_embed_temporal"] = torch.zeros_like(own["pos_embed_temporal"], device="cpu")
        kernel = new.get("patch_embed.proj.weight")
        if kernel is not None and kernel.ndim == 4:
            new["patch_embed.proj.weight"] = inflate(kernel, own["patch_embed.proj.weight"].shape[2])
        changed += ["pos_embed_spatial", "pos_embed_temporal", "patch_embed.proj.weight"]
    as_is = tuple(n for n in new if n not in renamed and n not in changed)
    statistics = "kinetics" if layout == "video" else "imagenet"
    return new, Loaded(path, layout, as_is, tuple(renamed), tuple(changed), tuple(dropped), statistics)


def read(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a PyTorch file of plain tensors (nothing is unpickled).

    The original repository keeps them under "model_state". Raises CheckpointError for anything else.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        else:
            with warnings.catch_warnings(action="ignore"):  # of a foreign pickle protocol, before it is refused
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # on stray bytes the restricted reader fails in any way (KeyError, IndexError, ...)
        raise CheckpointError(path, "not readable as plain tensors", "remove the file and fetch it again") from e
    if isinstance(state, dict):
        state = state.get("model_state", state)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(path, "holds something else than named tensors")
    return state


def load_pretrained(encoder: VideoEncoder, source: str | Path) -> Loaded:
    """Load published Hiera weights into `encoder`, strictly.

    Args:
        source: a name in `vmas.weights` ("hiera_base_16x224", "hiera_base_224"), or the path of a local file.

    Raises WeightsUnavailable (which file, from where, under which licence) when a named file is not on this
    machine, CheckpointError when a file is damaged or of another size. The encoder is untouched then.
    """
    path = weights.locate(str(source)) if str(source) in weights.REGISTRY else Path(source)
    state, loaded = convert(read(path), encoder, path)
    checkpoint.load_into(encoder, state, path)
    log.warning("%s: Hiera weights, licence %s: no commercial use", path.name, LICENCE)
    return loaded
