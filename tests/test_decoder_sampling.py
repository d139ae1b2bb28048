"""Sampling: what top-k, top-p and temperature keep, and that the draws belong to the clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmas import sampling
from vmas.errors import DataError

logits_of = st.integers(0, 2**31).map(lambda s: 2 * torch.randn(5, 40, generator=torch.Generator().manual_seed(s)))
unit = st.floats(0, 0.999999)


@given(logits_of, st.integers(1, 60), unit)
def test_top_k_draws_among_the_k_largest(logits, k, u):
    tokens = sampling.sample(logits, torch.full((5,), u), top_k=k)
    rank = (logits > logits.gather(-1, tokens[:, None])).sum(-1)
    assert (rank < k).all()
    assert (sampling.keep_mask(logits, top_k=k).sum(-1) == min(k, 40)).all()


@given(logits_of, st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    keep = sampling.keep_mask(logits, top_p=p)
    prob = torch.softmax(logits, -1)
    mass = (prob * keep).sum(-1)
    assert (mass >= p - 1e-5).all()
    smallest = torch.where(keep, prob, torch.inf).amin(-1)
    assert (mass - smallest <= p + 1e-5).all()
    assert (torch.where(keep, 0.0, prob).amax(-1) <= smallest).all()


@given(logits_of, st.integers(0, 60))
def test_greedy_options_pick_the_largest(logits, k):
    best = logits.argmax(-1)
    u = torch.rand(5, generator=torch.Generator().manual_seed(k))
    assert torch.equal(sampling.sample(logits, u, top_k=1), best)
    assert torch.equal(sampling.sample(logits, u, top_k=k, temperature=0.0), best)
    assert torch.equal(sampling.sample(logits, u, top_k=k, temperature=1e-4), best)


def test_frequencies_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    tokens = sampling.sample(logits.expand(20000, 5), u, top_k=3, temperature=2.0)
    share = torch.bincount(tokens, minlength=5) / 20000
    expected = torch.softmax(torch.tensor([-torch.inf, 0.5, 1.0, -torch.inf, 0.25]), -1)
    assert (share - expected).abs().max() < 0.01
    assert share[0] == share[3] == 0


def test_draws_belong_to_seed_and_clip():
    whole = sampling.uniforms(3, 0, 6, 10, 4)
    assert whole.shape == (6, 10, 4)
    assert 0 <= whole.min()
    assert whole.max() < 1
    assert torch.equal(sampling.uniforms(3, 4, 2, 10, 4), whole[4:])
    assert torch.equal(sampling.uniforms(3, 0, 6, 5, 4), whole[:, :5])
    assert not torch.equal(sampling.uniforms(4, 0, 6, 10, 4), whole)
    # the seed of one clip is not the neighbouring clip of another seed
    seeds = {sampling._mix(seed, clip) for seed in range(50) for clip in range(50)}
    assert len(seeds) == 2500


def test_guidance():
    logits = torch.randn(6, 4, 8)
    mixed = sampling.guide(logits, 3, 3.0)
    torch.testing.assert_close(mixed, 3 * logits[:3] - 2 * logits[3:])
    torch.testing.assert_close(sampling.guide(logits, 3, 1.0), logits[:3])
    assert sampling.guide(logits, 6, 3.0) is logits


def test_infinite_logits_are_an_error():
    logits = torch.zeros(1, 4)
    logits[0, 2] = torch.inf
    for k in (0, 1, 3):
        with pytest.raises(DataError, match="not finite"):
            sampling.sample(logits, torch.tensor([0.5]), top_k=k)
