"""Parity with audiocraft and transformers, and published MusicGen files in the layouts of both."""

import sys

import pytest
import torch

from vmas import decoder_weights, paths, patterns
from vmas.decoder import MusicDecoder
from vmas.errors import CheckpointError, WeightsUnavailable

sys.path.append(str(paths.ROOT / "benchmarks"))
from decoder_references import audiocraft_lm, transformers_lm

K, CARD, DIM, LAYERS, HEADS, COND = 4, 48, 64, 3, 4, 24


def build() -> MusicDecoder:
    torch.manual_seed(7)
    return MusicDecoder(K, CARD, DIM, LAYERS, HEADS, 4, COND).eval()


def as_audiocraft(decoder: MusicDecoder) -> dict[str, torch.Tensor]:
    """The tensors of `decoder` under audiocraft's names."""
    out = {}
    for name, value in decoder.state_dict().items():
        name = name.replace("cond_proj.", "condition_provider.conditioners.description.output_proj.")
        if name.startswith("layers."):
            name = "transformer." + name
            name = name.replace("qkv.weight", "self_attn.in_proj_weight").replace(".out.", ".self_attn.out_proj.")
            name = name.replace(".out_cross.", ".cross_attention.out_proj.")
        if name.endswith("q_cross.weight"):
            layer = name.removesuffix("q_cross.weight")
            kv = decoder.state_dict()[layer.removeprefix("transformer.") + "kv_cross.weight"]
            out[layer + "cross_attention.in_proj_weight"] = torch.cat([value, kv])
        elif not name.endswith("kv_cross.weight"):
            out[name] = value
    return out


def inputs():
    g = torch.Generator().manual_seed(0)
    X_v, codes = torch.randn(3, 6, COND, generator=g), torch.randint(0, CARD, (3, K, 20), generator=g)
    return X_v, patterns.delay(codes, CARD)[..., :-1]


@pytest.mark.slow
@torch.no_grad()
def test_equals_audiocraft():
    torch.manual_seed(0)
    lm, conditions = audiocraft_lm(K, CARD, DIM, LAYERS, HEADS, COND)
    state, layout = decoder_weights.convert(lm.state_dict())
    decoder = build()
    decoder.load_state_dict(state)  # strict: every tensor of either has its place
    assert layout == "audiocraft"
    X_v, seq = inputs()
    given = lm.condition_provider(lm.condition_provider.tokenize(conditions(X_v)))
    torch.testing.assert_close(decoder(seq, X_v), lm(seq, [], given), atol=1e-5, rtol=0)

    from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

    dropped = ClassifierFreeGuidanceDropout(p=1.0)(conditions(X_v))
    null = lm.condition_provider(lm.condition_provider.tokenize(dropped))
    none = torch.zeros(3, dtype=torch.bool)
    torch.testing.assert_close(decoder(seq, X_v, none), lm(seq, [], null), atol=1e-5, rtol=0)

    codes = lm.generate(conditions=conditions(X_v), max_gen_len=20, use_sampling=False, cfg_coef=3.0)
    for engine in ("torch", "float32"):
        assert torch.equal(decoder.generate(X_v, 20, temperature=0.0, guidance=3.0, engine=engine), codes)


@pytest.mark.slow
@torch.no_grad()
def test_equals_transformers():
    torch.manual_seed(0)
    lm = transformers_lm(K, CARD, DIM, LAYERS, HEADS)
    state, layout = decoder_weights.convert(lm.state_dict())
    decoder = build()
    absent = decoder.load_state_dict(state, strict=False)
    assert layout == "transformers"
    assert not absent.unexpected_keys
    assert absent.missing_keys == ["cond_proj.weight", "cond_proj.bias"]  # outside MusicgenForCausalLM
    X_v, seq = inputs()
    theirs = lm(input_ids=seq.flatten(0, 1), encoder_hidden_states=decoder.project_condition(X_v)).logits
    torch.testing.assert_close(decoder(seq, X_v), theirs.view(3, K, -1, CARD), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_published_file(tmp_path, half):
    source, target = build(), MusicDecoder(K, CARD, DIM, LAYERS, HEADS, 4, COND)
    state = {k: v.half() if half else v for k, v in as_audiocraft(source).items()}
    path = tmp_path / "state_dict.bin"
    torch.save({"best_state": state, "xp.cfg": "a: 1"}, path)
    projection = target.cond_proj.weight.clone()
    loaded = decoder_weights.load_musicgen(target, path)
    assert loaded.layout == "audiocraft"
    assert loaded.initialised == ("cond_proj.bias", "cond_proj.weight")
    assert torch.equal(target.cond_proj.weight, projection)
    assert target.layers[0].qkv.weight.dtype == torch.float32
    decoder_weights.load_musicgen(target, path, condition=True)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value, atol=1e-3 if half else 0, rtol=0)


def test_other_sizes_and_broken_files_change_nothing(tmp_path):
    source = build()
    path = tmp_path / "state_dict.bin"
    torch.save({"best_state": as_audiocraft(source)}, path)
    for other in (
        MusicDecoder(K, CARD, DIM, LAYERS + 1, HEADS, 4, COND),
        MusicDecoder(K, CARD, DIM, LAYERS - 1, HEADS, 4, COND),
        MusicDecoder(K, CARD, 2 * DIM, LAYERS, HEADS, 4, COND),
    ):
        before = {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"state_dict\.bin"):
            decoder_weights.load_musicgen(other, path)
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    whole = path.read_bytes()
    for content in (b"", b"not weights", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            decoder_weights.load_musicgen(source, path)
    with pytest.raises(CheckpointError, match="no such file"):
        decoder_weights.load_musicgen(source, tmp_path / "absent.bin")


def test_absent_weights_say_what_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable) as e:
        decoder_weights.load_musicgen(build())
    assert all(part in str(e.value) for part in ("musicgen-medium-state_dict.bin", "huggingface.co", "CC-BY-NC 4.0"))
