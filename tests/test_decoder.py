"""The music decoder: shapes, causality, the null condition, the time bias, cached against uncached decoding."""

import pytest
import torch

from vmas import patterns
from vmas.decoder import ENGINES, MusicDecoder, make_engine, sin_positions
from vmas.errors import DataError, UsageError

K, CARD, DIM, COND, T_V = 4, 48, 64, 24, 5


def build(seed: int = 0, **options) -> MusicDecoder:
    torch.manual_seed(seed)
    return MusicDecoder(K, CARD, DIM, 2, 4, 4, COND, **options).eval()


@pytest.fixture(scope="module")
def decoder() -> MusicDecoder:
    return build()


@pytest.fixture
def X_v() -> torch.Tensor:
    return torch.randn(3, T_V, COND, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def seq() -> torch.Tensor:
    codes = torch.randint(0, CARD, (3, K, 20), generator=torch.Generator().manual_seed(2))
    return patterns.delay(codes, CARD)[..., :-1]


def test_number_of_parameters(decoder):
    def expected(card: int, d: int, layers: int) -> int:
        """16 d² and 3 norms per block, embeddings with the special token, heads, the last norm."""
        return layers * (16 * d * d + 6 * d) + K * (card + 1) * d + K * card * d + 2 * d

    own = sum(p.numel() for n, p in decoder.named_parameters() if not n.startswith("cond_proj"))
    assert own == expected(CARD, DIM, 2)
    assert round(expected(2048, 512, 12) / 1e6, 1) == 58.8  # the benchmarked shape


def test_positions_are_cosines_then_sines():
    p = sin_positions(torch.tensor([0, 1, 7]), 8)
    torch.testing.assert_close(p[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    rates = 10000.0 ** (-torch.arange(4) / 3)
    torch.testing.assert_close(p[2], torch.cat([(7 * rates).cos(), (7 * rates).sin()]))


@torch.no_grad()
def test_logits_are_causal(decoder, X_v, seq):
    logits = decoder(seq, X_v)
    assert logits.shape == (3, K, seq.shape[-1], CARD)
    changed = seq.clone()
    changed[:, :, 9] = (changed[:, :, 9] + 1) % CARD
    after = decoder(changed, X_v)
    torch.testing.assert_close(after[:, :, :9], logits[:, :, :9])
    assert (after[:, :, 9:] - logits[:, :, 9:]).abs().amax((0, 1, 3)).min() > 1e-3


@torch.no_grad()
def test_the_condition_matters_and_the_null_condition_is_zero(decoder, X_v, seq):
    null = torch.zeros(3, dtype=torch.bool)
    assert (decoder(seq, X_v) - decoder(seq, X_v.flip(0))).abs().max() > 1e-3
    unconditioned = decoder(seq, X_v, null)
    torch.testing.assert_close(unconditioned, decoder(seq, torch.randn_like(X_v), null))
    mixed = decoder(seq, X_v, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[1], unconditioned[1])
    torch.testing.assert_close(mixed[0], decoder(seq, X_v)[0])


@torch.no_grad()
def test_null_condition_removes_the_cross_attention_entirely(decoder, X_v, seq):
    without = build()
    for block in without.layers:
        block.out_cross.weight.zero_()
    torch.testing.assert_close(without(seq, X_v), decoder(seq, X_v, torch.zeros(3, dtype=torch.bool)))


@torch.no_grad()
def test_time_bias(decoder, X_v, seq):
    plain, biased = decoder(seq, X_v), build(time_bias_s=0.25)
    assert not torch.allclose(biased(seq, X_v), plain, atol=1e-3)
    torch.testing.assert_close(build(time_bias_s=1e6)(seq, X_v), plain)
    bias = biased.time_bias(0, 100, 10)
    assert bias.shape == (100, 10)
    # position 50 predicts the first codebook at 1.0 s; the middle of row 4 is 4.5/4.8 s
    assert bias[50, 4].item() == pytest.approx(-(((1.0 - 4.5 / 4.8) / 0.25) ** 2), abs=1e-5)
    assert bias[50].argmax() == 4
    torch.testing.assert_close(biased.time_bias(37, 5, 10), bias[37:42])
    assert decoder.time_bias(0, 100, 10) is None


def test_checkpointed_gradients_are_equal(X_v, seq):
    grads = []
    for recompute in (False, True):
        d = build(gradient_checkpointing=recompute).train()
        d(seq, X_v).square().mean().backward()
        grads.append([p.grad for p in d.parameters()])
    assert all(g is not None for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize("time_bias_s", [None, 0.25])
@pytest.mark.parametrize(("engine", "tolerance"), [("torch", 1e-5), ("float32", 1e-5), ("bfloat16", 2e-2)])
def test_cached_equals_uncached(X_v, seq, engine, tolerance, time_bias_s):
    d = build(time_bias_s=time_bias_s)
    null = torch.zeros(3, dtype=torch.bool)
    whole = torch.cat([d(seq, X_v), d(seq, X_v, null)])
    for guided, expected in ((True, whole), (False, whole[:3])):
        run = make_engine(d, engine, d.project_condition(X_v), seq.shape[-1], guided)
        got = torch.stack([run.step(seq[:, :, s]) for s in range(seq.shape[-1])], 2)
        assert (got - expected).abs().max() < tolerance


@torch.no_grad()
@pytest.mark.slow
def test_half_precision_weights_at_the_size_of_the_benchmark():
    """Width 512, 12 layers, 4x2048 entries: the logits stay within 2e-2 of float32 (benchmarks/bench_decode.py)."""
    torch.manual_seed(0)
    d = MusicDecoder(4, 2048, 512, 12, 8, 4, 512).eval()
    seq, X_v = torch.randint(0, 2049, (1, 4, 12)), torch.randn(1, 48, 512)
    run = make_engine(d, "bfloat16", d.project_condition(X_v), seq.shape[-1], False)
    got = torch.stack([run.step(seq[:, :, s]) for s in range(seq.shape[-1])], 2)
    assert 0 < (got - d(seq, X_v)).abs().max() < 2e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_generate_is_seeded_and_in_range(decoder, X_v, engine):
    codes = decoder.generate(X_v, 12, top_k=20, seed=5, engine=engine)
    assert codes.shape == (3, K, 12)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min()
    assert codes.max() < CARD
    assert torch.equal(codes, decoder.generate(X_v, 12, top_k=20, seed=5, engine=engine))
    assert not torch.equal(codes, decoder.generate(X_v, 12, top_k=20, seed=6, engine=engine))


@pytest.mark.parametrize("engine", ["torch", "float32"])
def test_a_clip_does_not_depend_on_its_batch(decoder, engine):
    X_v = torch.randn(11, T_V, COND, generator=torch.Generator().manual_seed(3))
    whole = decoder.generate(X_v, 12, seed=1, engine=engine)
    for start, stop in ((0, 1), (4, 6), (6, 11)):
        part = decoder.generate(X_v[start:stop], 12, seed=1, first=start, engine=engine)
        assert torch.equal(part, whole[start:stop])


def test_engines_draw_the_same_tokens(decoder, X_v):
    for options in ({}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.0}, {"guidance": 1.0}, {"temperature": 0.7}):
        expected = decoder.generate(X_v, 12, engine="torch", **options)
        assert torch.equal(decoder.generate(X_v, 12, engine="float32", **options), expected), options


@torch.no_grad()
def test_generated_tokens_are_the_argmax_of_the_uncached_logits(decoder, X_v):
    """Greedy decoding without guidance, checked against the teacher-forced model in the delay pattern."""
    codes = decoder.generate(X_v, 10, temperature=0.0, guidance=1.0)
    logits, mask = patterns.revert_logits(decoder(patterns.delay(codes, CARD)[..., :-1], X_v), 10)
    assert mask.all()
    assert torch.equal(logits.argmax(-1), codes)


@torch.no_grad()
def test_guidance_mixes_given_and_null_logits(decoder, X_v):
    codes = decoder.generate(X_v, 10, temperature=0.0, guidance=3.0)
    seq = patterns.delay(codes, CARD)[..., :-1]
    null = decoder(seq, X_v, torch.zeros(3, dtype=torch.bool))
    logits, _ = patterns.revert_logits(null + 3.0 * (decoder(seq, X_v) - null), 10)
    assert torch.equal(logits.argmax(-1), codes)
    assert not torch.equal(codes, decoder.generate(X_v, 10, temperature=0.0, guidance=1.0))


def test_generate_keeps_the_mode_and_reports_progress(X_v):
    d = build(dropout=0.5).train()
    seen = []
    first = d.generate(X_v, 6, temperature=0.0, engine="torch", progress=lambda done, steps: seen.append((done, steps)))
    assert d.training
    assert seen == [(i, 6 + K - 1) for i in range(1, 6 + K)]
    assert torch.equal(first, d.eval().generate(X_v, 6, temperature=0.0, engine="torch"))


def test_wrong_input_is_refused(decoder, X_v, seq):
    with pytest.raises(DataError, match=r"X_v must have shape \[B,T_v,24\], got \[3, 5, 23\]"):
        decoder(seq, X_v[..., :-1])
    with pytest.raises(DataError, match=r"tokens must have shape \[B,4,S\]"):
        decoder(seq[:, :3], X_v)
    with pytest.raises(DataError, match="3 token sequences but 2 clips"):
        decoder(seq, X_v[:2])
    with pytest.raises(DataError, match="tokens must be integers"):
        decoder(seq.float(), X_v)
    with pytest.raises(DataError, match="cond_mask"):
        decoder(seq, X_v, torch.ones(2, dtype=torch.bool))
    for options in ({"top_k": -1}, {"top_p": 1.5}, {"temperature": -1.0}, {"guidance": float("nan")}, {"engine": "x"}):
        with pytest.raises(UsageError):
            decoder.generate(X_v, 4, **options)
    with pytest.raises(UsageError, match="num_tokens"):
        decoder.generate(X_v, 0)
    with pytest.raises(UsageError, match="divisible by heads"):
        MusicDecoder(K, CARD, 64, 1, 5, 4, COND)
    with pytest.raises(UsageError, match="time_bias_s"):
        build(time_bias_s=0.0)


@pytest.mark.parametrize("engine", ["torch", "float32"])
def test_infinite_features_are_an_error(decoder, X_v, engine):
    X_v[1, 2, 3] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        decoder.generate(X_v, 4, engine=engine)
