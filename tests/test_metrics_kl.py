"""KL of tagger outputs: golden numbers of each variant, an independent formula, broken input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vmas.errors import DataError, UsageError
from vmas.metrics.kl import VARIANTS, classifier_kl, kl, kl_probabilities

GEN = np.array([[2, 0.5, -1, 0], [0, 0, 0, 0]])
REF = np.array([[1, 1, -2, 0.5], [3, -1, 0, 1]])

logits = hnp.arrays(np.float64, (3, 5), elements=st.floats(-20, 20))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("softmax", 0.5319005), ("softmax_reverse", 0.6508151), ("bernoulli_sum", 0.4652767), ("l1_sigmoid", 0.0657780)],
)
def test_golden(variant, expected):
    assert kl(GEN, REF, variant).mean() == pytest.approx(expected, abs=5e-7)
    assert set(VARIANTS) == {"softmax", "softmax_reverse", "bernoulli_sum", "l1_sigmoid"}


def test_golden_rows():
    np.testing.assert_allclose(kl(GEN, REF), [0.2725973, 0.7912037], atol=5e-7)


def test_against_torch():
    import torch
    import torch.nn.functional as F

    p, q = (torch.from_numpy(x).log_softmax(-1) for x in (GEN, REF))
    expected = F.kl_div(p, q, reduction="none", log_target=True).sum(-1)  # without the 1e-6
    np.testing.assert_allclose(kl(GEN, REF), expected.numpy(), atol=1e-4)


@given(logits, logits, st.sampled_from(sorted(VARIANTS)))
def test_finite_and_zero_only_for_equal_tags(gen, ref, variant):
    got = kl(gen, ref, variant)
    assert got.shape == (3,)
    assert np.isfinite(got).all()
    assert (got > -1e-5).all()  # 1e-6 in the denominator lets it dip below 0
    np.testing.assert_allclose(kl(ref, ref, variant), 0, atol=1e-5)


@given(logits, logits, st.floats(-50, 50))
def test_softmax_does_not_see_a_shift(gen, ref, shift):
    np.testing.assert_allclose(kl(gen + shift, ref, "softmax"), kl(gen, ref), atol=1e-9)


def test_extreme_logits_do_not_overflow():
    far = np.array([[1000.0, -1000.0, 0.0]])
    for variant in VARIANTS:
        assert np.isfinite(kl(-far, far, variant)).all()


def test_windows_of_a_clip_are_averaged():
    windows = np.stack([GEN + 1, GEN - 1], axis=1)
    np.testing.assert_allclose(kl(windows, REF[:, None]), kl(GEN, REF))


def test_probabilities_and_an_injected_classifier():
    def softmax(x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    np.testing.assert_allclose(kl_probabilities(softmax(GEN), softmax(REF)), kl(GEN, REF), atol=1e-12)
    np.testing.assert_allclose(classifier_kl(softmax, GEN, REF), kl(GEN, REF), atol=1e-12)
    sure = np.eye(3)
    np.testing.assert_allclose(kl_probabilities(sure, sure), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("gen", "ref"),
    [
        (GEN, REF[:1]),
        (GEN[:, :3], REF),
        (GEN[0], REF[0]),
        (GEN * np.nan, REF),
        (GEN, REF + np.inf),
        (GEN[:, :0], REF[:, :0]),
    ],
)
def test_broken_logits(gen, ref):
    with pytest.raises(DataError):
        kl(gen, ref)


def test_broken_probabilities_and_variant():
    with pytest.raises(DataError, match="distributions"):
        kl_probabilities(GEN, REF)
    with pytest.raises(DataError, match="pairs"):
        kl_probabilities(np.eye(2), np.eye(3))
    with pytest.raises(UsageError, match="softmax_reverse"):
        kl(GEN, REF, "softmax_revers")
