"""The CPU engine's inner loops against numpy, and what the engine promises: rows and threads change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmas import decode_cpu, sampling
from vmas import decode_kernels as kernels
from vmas.decoder import MusicDecoder, make_engine
from vmas.errors import UsageError


@given(st.integers(1, 14), st.integers(1, 9), st.integers(1, 70), st.booleans(), st.booleans())
def test_linear_equals_numpy_for_any_rows(rows, panels, inner, add, half):
    rng = np.random.default_rng(rows * 1000 + panels * 100 + inner)
    x = rng.normal(size=(rows, inner)).astype(np.float32)
    weight = torch.from_numpy(rng.normal(size=(16 * panels, inner)).astype(np.float32))
    if half:
        weight = weight.to(torch.bfloat16)
    w = decode_cpu.panels(weight).contiguous()
    w = (w.view(torch.uint16) if half else w).numpy()
    y = rng.normal(size=(rows, 16 * panels)).astype(np.float32)
    expected = x.astype(np.float64) @ weight.double().numpy().T + (y if add else 0)
    one_by_one = y.copy()
    kernels.linear(x.ravel(), 0, inner, w, 0, 16 * inner, y.reshape(-1), 0, 16 * panels, inner, panels, rows, add)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for r in range(rows):
        out = one_by_one[r]
        kernels.linear(x[r].copy(), 0, inner, w, 0, 16 * inner, out, 0, 16 * panels, inner, panels, 1, add)
    np.testing.assert_array_equal(one_by_one, y)


def test_vector_functions_equal_torch():
    x = torch.linspace(-12, 12, 4001)
    h = x.numpy().copy()
    kernels.gelu_(h)
    np.testing.assert_allclose(h, torch.nn.functional.gelu(x).numpy(), atol=2e-6)
    s = (5 * torch.randn(83, generator=torch.Generator().manual_seed(0))).numpy()
    expected = torch.softmax(0.3 * torch.from_numpy(s[:70].copy()), 0).numpy()
    kernels.softmax_(s, 70, np.float32(0.3))
    np.testing.assert_allclose(s[:70], expected, rtol=2e-6, atol=1e-9)
    weight, bias, row = (torch.randn(3, 96, generator=torch.Generator().manual_seed(1)) + 2).unbind(0)
    out = np.empty(96, np.float32)
    kernels.layer_norm(row.numpy(), weight.numpy(), bias.numpy(), out)
    np.testing.assert_allclose(out, torch.nn.functional.layer_norm(row, (96,), weight, bias).numpy(), atol=2e-6)


@given(st.integers(0, 2**31), st.integers(0, 70), st.floats(0.2, 3.0), st.floats(0, 0.999999))
def test_choose_equals_the_torch_sampler(seed, top_k, temperature, u):
    logits = 3 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
    u = np.float32(u)
    expected = sampling.sample(logits, torch.tensor(u), top_k, 0.0, temperature).item()
    got = kernels.choose(logits.numpy().copy(), np.zeros(64, np.int32), u, top_k, temperature)
    if got != expected:  # u may fall on the border between two tokens: then both are right
        p = torch.softmax(logits / temperature, -1)
        p = p * sampling.keep_mask(logits / temperature, top_k)
        border = (p.double().cumsum(0) / p.double().sum())[min(got, expected)].item()
        assert abs(border - u) < 1e-5


def test_choose_keeps_ties_and_reports_nan():
    z, keys = np.array([1.0, 3.0, 3.0, -2.0] * 4, np.float32), np.zeros(16, np.int32)
    picked = {kernels.choose(z.copy(), keys, np.float32(u), 1 + 1, 1.0) for u in np.linspace(0, 0.999, 64)}
    assert picked == {i for i in range(16) if i % 4 in (1, 2)}
    assert kernels.choose(z.copy(), keys, np.float32(0.5), 1, 1.0) == 1
    z[5] = np.inf
    assert kernels.choose(z, keys, np.float32(0.5), 0, 1.0) == -1


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_threads_and_other_rows_change_nothing(half):
    torch.manual_seed(0)
    decoder = MusicDecoder(2, 32, 64, 2, 4, 2, 16, time_bias_s=0.5).eval()
    cond, tokens = decoder.project_condition(torch.randn(7, 3, 16)), torch.randint(0, 33, (20, 7, 2))
    runs = []
    for threads in (1, 3):
        engine = decode_cpu.CpuEngine(decoder, cond, 20, True, half=half, threads=threads)
        runs.append(torch.stack([engine.step(t) for t in tokens]))
    assert torch.equal(*runs)
    alone = decode_cpu.CpuEngine(decoder, cond[2:3], 20, True, half=half, threads=2)
    alone = torch.stack([alone.step(t[2:3]) for t in tokens])
    assert torch.equal(alone, runs[0][:, [2, 9]])


def test_odd_widths_use_torch_or_say_so():
    decoder = MusicDecoder(2, 30, 24, 1, 2, 2, 16).eval()
    X_v = torch.randn(1, 3, 16)
    assert not decode_cpu.supported(decoder)
    assert decoder.generate(X_v, 3).shape == (1, 2, 3)
    with pytest.raises(UsageError, match="multiples of 16"):
        decoder.generate(X_v, 3, engine="float32")


@torch.no_grad()
def test_the_cache_has_an_end():
    decoder = MusicDecoder(2, 32, 32, 1, 2, 2, 16).eval()
    engine = make_engine(decoder, "float32", decoder.project_condition(torch.randn(1, 3, 16)), 2, False)
    tokens = torch.full((1, 2), 32)
    for _ in range(2):
        engine.step(tokens)
    with pytest.raises(UsageError, match="2 positions"):
        engine.step(tokens)
