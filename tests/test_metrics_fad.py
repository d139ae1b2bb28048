"""FAD: golden numbers, streaming, an independent formula, bias, extrapolation, intervals, broken input."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from vmas.errors import DataError
from vmas.metrics.fad import GaussianStats, bootstrap_fad, fad, fad_from_embeddings, fad_inf, frechet


def golden_sets():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((512, 8))
    return X, 1.5 * rng.standard_normal((384, 8)) + 0.5


def normal(n, d=32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_golden_embeddings():
    assert fad_from_embeddings(*golden_sets()) == pytest.approx(4.616845124971, abs=1e-10)


@pytest.mark.parametrize(
    ("mean1", "cov1", "mean2", "cov2", "expected"),
    [
        ([0.0], [[1.0]], [1.0], [[4.0]], 2.0),
        ([1.0, 2.0], np.diag([1.0, 4.0]), [0.0, 0.0], np.diag([9.0, 16.0]), 13.0),
        ([0.0, 0.0], [[2.0, 1.0], [1.0, 3.0]], [0.0, 0.0], [[1.0, -0.5], [-0.5, 2.0]], 0.81221041401472),
    ],
)
def test_golden_gaussians(mean1, cov1, mean2, cov2, expected):
    mean1, cov1, mean2, cov2 = map(np.asarray, (mean1, cov1, mean2, cov2))
    assert frechet(mean1, cov1, mean2, cov2) == pytest.approx(expected, abs=1e-12)
    assert frechet(mean2, cov2, mean1, cov1) == pytest.approx(expected, abs=1e-12)


def test_statistics_are_numpys():
    X, _ = golden_sets()
    s = GaussianStats.of(X)
    np.testing.assert_allclose(s.mean, X.mean(0), atol=1e-14)
    np.testing.assert_allclose(s.cov, np.cov(X, rowvar=False), atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_streaming_and_merging_do_not_change_the_result(sizes, seed):
    X, Y = golden_sets()
    cuts = np.cumsum(sizes)
    order = np.random.default_rng(seed).permutation(len(X))
    parts = np.split(X[order], cuts[cuts < len(X)])
    streamed = GaussianStats()
    for p in parts:
        streamed.add(p)
    merged = GaussianStats()
    for p in reversed(parts):
        merged.merge(GaussianStats.of(p))
    for s in (streamed, merged):
        assert s.n == len(X)
        assert fad(s, GaussianStats.of(Y)) == pytest.approx(4.616845124971, abs=1e-9)


def test_merging_does_not_touch_the_other():
    a, b = GaussianStats(), GaussianStats.of(normal(10, 3))
    before = b.scatter.copy()
    a.merge(b)
    a.add(normal(5, 3, 1))
    np.testing.assert_array_equal(b.scatter, before)
    assert b.n == 10


def test_far_from_the_origin_in_float32():
    """Σxxᵀ - nμμᵀ would lose everything here."""
    X, Y = golden_sets()
    got = fad_from_embeddings((X + 1000).astype(np.float32), (Y + 1000).astype(np.float32))
    assert got == pytest.approx(4.6168, abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_against_the_product_formula(d, seed):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((d + 5, d)) @ rng.standard_normal((d, d)), rng.standard_normal((d + 9, d))
    S1, S2 = np.atleast_2d(np.cov(A, rowvar=False)), np.atleast_2d(np.cov(B, rowvar=False))
    trace = np.sqrt(np.abs(scipy.linalg.eigvals(S1 @ S2).real)).sum()
    expected = ((A.mean(0) - B.mean(0)) ** 2).sum() + np.trace(S1) + np.trace(S2) - 2 * trace
    scale = 1 + np.trace(S1)
    assert abs(fad_from_embeddings(A, B) - expected) < 1e-6 * scale
    assert abs(fad_from_embeddings(A, B) - fad_from_embeddings(B, A)) < 1e-6 * scale


def test_invariant_under_rotation_and_shift():
    X, Y = golden_sets()
    Q, _ = np.linalg.qr(normal(8, 8, 5))
    assert fad_from_embeddings(X @ Q + 3, Y @ Q + 3) == pytest.approx(4.616845124971, abs=1e-9)


def test_itself_is_zero_also_when_rank_deficient():
    few = normal(10, 64)
    assert fad_from_embeddings(few, few) == pytest.approx(0, abs=1e-6)
    assert fad_from_embeddings(few, few) >= 0
    constant = np.ones((5, 3))
    assert fad_from_embeddings(constant, constant + 2) == pytest.approx(12)


@pytest.mark.parametrize(("n", "bias"), [(150, 32.9), (500, 9.20), (1000, 4.53), (5000, 1.07), (20000, 0.43)])
def test_small_samples_are_biased_as_published(n, bias):
    """N(0,I) of 128 dimensions against itself, reference 20000: true FAD 0."""
    reference = GaussianStats.of(normal(20000, 128, 1))
    assert fad(GaussianStats.of(normal(n, 128, 2)), reference) == pytest.approx(bias, rel=0.05)


def test_monotone_in_damage():
    X = normal(2000, 16)
    scores = [fad_from_embeddings(X[:1000] + s * normal(1000, 16, 9), X[1000:]) for s in (0, 0.3, 0.6, 1.0)]
    assert scores == sorted(scores)
    assert scores[-1] > 5 * scores[0]


def test_fad_inf_takes_the_bias_out():
    reference = normal(20000, 64, 1)
    x = normal(2000, 64, 2)
    got = fad_inf(x, reference, repeats=3, seed=0)
    plain = fad_from_embeddings(x, reference)
    assert plain > 0.5
    assert abs(got.value) < 0.1 * plain
    assert got.slope > 0
    assert got.scores[-1] == pytest.approx(plain, abs=1e-9)  # without replacement the last subset is everything
    assert got.value == fad_inf(x, GaussianStats.of(reference), repeats=3, seed=0).value


def test_bootstrap_holds_the_point_and_plain_percentiles_do_not():
    reference, x = normal(3000, 64, 1), normal(300, 64, 2)
    point = fad_from_embeddings(x, reference)
    lo, hi = bootstrap_fad(x, reference, n=100, seed=0)
    assert 0 <= lo < point < hi
    assert (lo, hi) == bootstrap_fad(x, reference, n=100, seed=0)
    assert bootstrap_fad(x, reference, n=100, seed=0, method="percentile")[0] > point


def test_bootstrap_width_is_the_spread_over_fresh_samples():
    """What an interval is for: it is as wide as FAD moves between new samples of the same size."""
    reference = normal(4000, 8, 1)
    fresh = [fad_from_embeddings(normal(200, 8, 100 + s) * 1.3, reference) for s in range(200)]
    lo, hi = bootstrap_fad(normal(200, 8, 3) * 1.3, reference, n=400, seed=0)
    q = np.quantile(fresh, [0.025, 0.975])
    assert 0.6 < (hi - lo) / (q[1] - q[0]) < 1.6


def test_bootstrap_resamples_whole_clips():
    reference = normal(1000, 4, 1)
    clips = normal(50, 4, 2)
    copies = np.repeat(clips[:, None], 6, axis=1)  # six equal rows a clip carry no more than one
    one = bootstrap_fad(clips, reference, n=200, seed=0)
    six = bootstrap_fad(copies, reference, n=200, seed=0)
    by_label = bootstrap_fad(copies.reshape(-1, 4), reference, n=200, seed=0, groups=np.repeat(np.arange(50), 6))
    assert six == by_label
    np.testing.assert_allclose(six, one, rtol=0.15)
    as_if_independent = bootstrap_fad(copies.reshape(-1, 4), reference, n=200, seed=0)
    assert as_if_independent[1] - as_if_independent[0] < 0.7 * (six[1] - six[0])


@pytest.mark.parametrize(
    ("generated", "reference", "words"),
    [
        (np.ones((1, 4)), np.ones((9, 4)), "at least 2"),
        (np.zeros((0, 4)), np.ones((9, 4)), "at least 2"),
        (np.ones((9, 4)), np.ones((9, 5)), "width"),
        (np.full((9, 4), np.nan), np.ones((9, 4)), "NaN"),
        (np.ones((9, 4)), np.full((9, 4), np.inf), "NaN"),
        (np.ones((9, 4, 2)), np.ones((9, 4)), r"\[N,D\]"),
        (np.ones((9, 0)), np.ones((9, 0)), r"\[N,D\]"),
    ],
)
def test_broken_embeddings(generated, reference, words):
    with pytest.raises(DataError, match=words):
        fad_from_embeddings(generated, reference)


def test_broken_intervals():
    x, y = normal(20, 4), normal(30, 4, 1)
    with pytest.raises(DataError, match="2 clips"):
        bootstrap_fad(x[None], y)
    with pytest.raises(DataError, match="labels"):
        bootstrap_fad(x, y, groups=np.arange(3))
    with pytest.raises(DataError, match="method"):
        bootstrap_fad(x, y, method="normal")
    with pytest.raises(DataError, match="subset sizes"):
        fad_inf(x, y, smallest=20)
