"""The reference decoders at the shape of ours, conditioned on X_v: audiocraft's LMModel and transformers' MusicGen.

Used by `bench_decode.py` and by the parity tests. Importing either library takes seconds, so it happens inside.
"""

import torch
from torch import Tensor


def audiocraft_lm(n_q: int, card: int, dim: int, layers: int, heads: int, cond_dim: int):
    """A random `LMModel` with MusicGen's settings, and the function that makes its conditions out of X_v.

    `conditions(X_v [B,T_v,cond_dim])` gives what `LMModel.generate` takes; the null condition is audiocraft's own
    (the mask zeroes the projected embedding).
    """
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import (
        ConditionFuser,
        ConditioningAttributes,
        ConditioningProvider,
        TextConditioner,
    )

    class VideoConditioner(TextConditioner):
        """Reads rows of X_v by number in place of text; None is the dropped condition."""

        X_v: Tensor

        def tokenize(self, numbers):
            rows = torch.stack([self.X_v[int(i or 0)] for i in numbers])
            mask = torch.tensor([[float(i is not None)] for i in numbers]).expand(-1, rows.shape[1])
            return rows, mask

        def forward(self, inputs):
            rows, mask = inputs
            return self.output_proj(rows) * mask[..., None], mask

    conditioner = VideoConditioner(cond_dim, dim)
    lm = LMModel(
        DelayedPatternProvider(n_q),
        ConditioningProvider({"description": conditioner}),
        ConditionFuser({"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}),
        n_q=n_q,
        card=card,
        dim=dim,
        num_heads=heads,
        hidden_scale=4,
        num_layers=layers,
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        causal=True,
        custom=True,
        cross_attention=True,
        activation="gelu",
        dropout=0.0,
        weight_init="gaussian",
        depthwise_init="current",
        zero_bias_init=True,
    ).eval()

    def conditions(X_v: Tensor):
        conditioner.X_v = X_v
        return [ConditioningAttributes(text={"description": str(i)}) for i in range(len(X_v))]

    return lm, conditions


def transformers_lm(n_q: int, card: int, dim: int, layers: int, heads: int):
    """A random `MusicgenForCausalLM` of the same shape; it takes the projected condition as encoder states."""
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = MusicgenDecoderConfig(
        vocab_size=card,
        num_hidden_layers=layers,
        ffn_dim=4 * dim,
        num_attention_heads=heads,
        hidden_size=dim,
        num_codebooks=n_q,
        dropout=0.0,
        pad_token_id=card,
        bos_token_id=card,
        is_decoder=True,
        add_cross_attention=True,
    )
    config._attn_implementation = "sdpa"
    lm = MusicgenForCausalLM(config).eval()
    lm.generation_config.update(
        pad_token_id=card, bos_token_id=card, decoder_start_token_id=card, num_return_sequences=1
    )
    return lm
