"""Published MusicGen weights for `vmas.decoder.MusicDecoder` (appendix B starts from MusicGen-medium).

The two published layouts hold the same numbers under other names:

    here                        audiocraft (state_dict.bin)              transformers (Musicgen…)
    emb.K                       emb.K                                    decoder.embed_tokens.K
    layers.L.qkv                self_attn.in_proj_weight                 self_attn.{q,k,v}_proj, stacked
    layers.L.q_cross, kv_cross  cross_attention.in_proj_weight, cut      encoder_attn.q_proj; {k,v}_proj, stacked
    layers.L.out, out_cross     self_attn.out_proj, cross_attention.…    self_attn.out_proj, encoder_attn.out_proj
    layers.L.linear1, linear2   linear1, linear2                         fc1, fc2
    layers.L.norm1, norm_cross, norm2   the same                         self_attn_layer_norm, encoder_attn_…, final_…
    out_norm, linears.K         the same                                 decoder.layer_norm, lm_heads.K
    cond_proj (text, optional)  conditioners.description.output_proj     enc_to_dec_proj

The weights are licensed CC-BY-NC 4.0 (no commercial use), unlike this code. MusicGen's condition is text, ours is
X_v: its projection is left as initialised unless asked for (both are 768 wide, so that it fits).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vmas import weights
from vmas.decoder import MusicDecoder
from vmas.errors import CheckpointError

LICENCE = "CC-BY-NC 4.0"
_NORMS = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm_cross", "final_layer_norm": "norm2"}


@dataclass(frozen=True)
class Loaded:
    """What `load_musicgen` did: layout "audiocraft" or "transformers"; names left as initialised; names unused."""

    path: Path
    layout: str
    initialised: tuple[str, ...]
    unused: tuple[str, ...]
    licence: str = LICENCE


def from_audiocraft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an audiocraft `LMModel`; those that the decoder does not know keep their names."""
    out = {}
    for name, value in state.items():
        name = name.replace(".mha.", ".")
        name = re.sub(r"^condition_provider\.conditioners\.\w+\.output_proj\.", "cond_proj.", name)
        name = name.removeprefix("transformer.")
        if name.endswith("self_attn.in_proj_weight"):
            name = name.replace("self_attn.in_proj_weight", "qkv.weight")
        elif name.endswith("cross_attention.in_proj_weight"):
            layer = name.removesuffix("cross_attention.in_proj_weight")
            dim = value.shape[1]
            out[layer + "q_cross.weight"], out[layer + "kv_cross.weight"] = value[:dim], value[dim:]
            continue
        name = name.replace("self_attn.out_proj", "out").replace("cross_attention.out_proj", "out_cross")
        out[name] = value
    return out


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' `MusicgenForCausalLM` or `MusicgenForConditionalGeneration`."""
    out = {}
    for name, value in state.items():
        name = name.replace("enc_to_dec_proj.", "cond_proj.")
        name = re.sub(r"^(decoder\.)?(model\.decoder\.)?", "", name, count=1)
        name = re.sub(r"^embed_tokens\.", "emb.", name)
        name = re.sub(r"^lm_heads\.", "linears.", name)
        name = re.sub(r"^layer_norm\.", "out_norm.", name)
        for theirs, mine in _NORMS.items():
            name = name.replace(f".{theirs}.", f".{mine}.")
        name = name.replace(".fc1.", ".linear1.").replace(".fc2.", ".linear2.")
        name = name.replace("self_attn.out_proj", "out").replace("encoder_attn.out_proj", "out_cross")
        out[name] = value
    for name in [n for n in out if n.endswith("self_attn.q_proj.weight")]:
        layer = name.removesuffix("self_attn.q_proj.weight")
        own = [out.pop(f"{layer}self_attn.{part}_proj.weight") for part in "qkv"]
        q, k, v = (out.pop(f"{layer}encoder_attn.{part}_proj.weight") for part in "qkv")
        out[layer + "qkv.weight"] = torch.cat(own)
        out[layer + "q_cross.weight"], out[layer + "kv_cross.weight"] = q, torch.cat([k, v])
    return out


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a published file: safetensors, or torch's format (audiocraft keeps them under `best_state`).

    Raises CheckpointError when the file cannot be read; nothing in it is ever executed.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch and safetensors raise many kinds for a broken file
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise CheckpointError(path, f"cannot be read as weights: {reason}") from e
    state = state.get("best_state", state) if isinstance(state, dict) else {}
    state = state.get("model", state)
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Tensors under this package's names, and the layout that they came in."""
    if any("self_attn.q_proj" in name for name in state):
        return from_transformers(state), "transformers"
    return from_audiocraft(state), "audiocraft"


def load_musicgen(decoder: MusicDecoder, path: Path | str | None = None, condition: bool = False) -> Loaded:
    """Put MusicGen's weights into `decoder`, in place.

    Args:
        path: the published file; None finds `musicgen_medium` through `vmas.weights` (VMAS_WEIGHTS or the cache).
        condition: also take the projection of MusicGen's text condition as `cond_proj`.

    Raises: WeightsUnavailable when the file is absent (it says where from and under which licence),
    CheckpointError when it is broken or of another architecture; the decoder is then unchanged.
    """
    path = weights.locate("musicgen_medium") if path is None else Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such file", "run 'vmas weights fetch musicgen_medium'")
    state, layout = convert(read(path))
    own = decoder.state_dict()
    wanted = {n for n in own if condition or not n.startswith("cond_proj.")}
    absent = sorted(wanted - state.keys())
    if absent:
        raise CheckpointError(path, f"is not a MusicGen of this size: {len(absent)} tensors missing, as {absent[0]}")
    layers = [n for n in state if n.startswith("layers.") and n not in own]
    if layers:
        raise CheckpointError(path, f"is not a MusicGen of this size: {len(layers)} tensors too many, as {layers[0]}")
    for name in sorted(wanted):
        if state[name].shape != own[name].shape:
            raise CheckpointError(
                path, f"{name} has shape {list(state[name].shape)}, this decoder needs {list(own[name].shape)}"
            )
    decoder.load_state_dict({n: state[n].float() for n in wanted}, strict=False)
    return Loaded(path, layout, tuple(sorted(own.keys() - wanted)), tuple(sorted(state.keys() - wanted)))
