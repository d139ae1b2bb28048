"""Similarities and gradients of eq. 2 on a small random model."""

import math

import numpy as np
import pytest
import torch

from vmas import config, losses
from vmas.codec import build_codec
from vmas.corpus import clip_id
from vmas.experiments import contrast
from vmas.model import VMAs


@pytest.fixture(scope="module")
def model():
    p = config.load("smoke")
    torch.manual_seed(0)
    codec = build_codec(p.codec).eval()
    with torch.no_grad():
        codec.E.normal_()
    return VMAs(p, codec).eval()


@pytest.fixture(scope="module")
def batch(model, tmp_path_factory):
    names = [clip_id("val", i) for i in (2, 0, 1)]
    return contrast.render(model.profile, model.codec, names, tmp_path_factory.mktemp("clips"))


def test_rendered_clips_have_the_shapes_of_training(model, batch):
    p = model.profile
    assert batch.frames.shape == (3, p.clip.num_frames, p.clip.img_size, p.clip.img_size, 3)
    assert batch.codes.shape == (3, p.codec.n_q, p.num_tokens)
    assert batch.weights.shape == (3, p.num_tokens)
    assert set(batch.weights.unique().tolist()) <= {1.0, np.float32(p.align.alpha)}
    assert len(batch.genres) == 3


def test_rendered_clips_keep_the_order_of_the_ids(model, batch, tmp_path):
    alone = contrast.render(model.profile, model.codec, [clip_id("val", 2)], tmp_path)
    assert torch.equal(alone.frames[0], batch.frames[0])
    assert torch.equal(alone.codes[0], batch.codes[0])
    assert alone.genres == batch.genres[:1]


def test_similarities_are_those_of_the_loss(model, batch):
    found = contrast.similarities(model, batch)
    assert found.shape == (3, 3)
    assert np.abs(found).max() <= 1 + 1e-9
    x, m, _ = contrast.pooled(model, batch)
    by_hand = -np.mean([found[i, i] - np.log(np.exp(found[i]).sum()) for i in range(3)])
    assert float(losses.contrastive_loss(x, m).detach()) == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_pull_is_the_slope_of_the_losses(model, batch, temperature):
    """Moving the logits a little down the contrast's gradient changes L_g by its scalar product with ∂L_g."""
    got = contrast.pull(model, batch, temperature)
    assert -1 <= got.cosine <= 1
    assert got.generation > 0
    with torch.no_grad():
        x, _, logits = contrast.pooled(model, batch)
    a = model.profile.align
    logits = logits.double().requires_grad_()

    def both(z):
        nll = losses.token_nll(z, batch.codes)
        L_g = losses.weighted_mean(nll, None, batch.weights if a.beat_weighting else None, a.normalise)
        L_c = losses.contrastive_loss(x.double(), losses.music_embedding(z, model.E.double()), temperature=temperature)
        return L_g, a.beta * L_c

    L_g, L_c = both(logits)
    assert float(L_g.detach()) == pytest.approx(got.L_g, rel=1e-4)
    direction = torch.autograd.grad(L_c, logits)[0]
    eps = 1e-3 / float(direction.norm())
    with torch.no_grad():
        moved = both(logits - eps * direction)
    slope = -got.cosine * got.generation * float(direction.norm()) * eps
    assert float(moved[0] - L_g) == pytest.approx(slope, rel=0.05, abs=1e-9)
    assert float(moved[1]) < float(L_c)


def test_contrast_of_equal_videos_is_chance(model, batch):
    same = contrast.Batch(batch.genres, batch.frames[:1].repeat(3, 1, 1, 1, 1), batch.codes[:1].repeat(3, 1, 1),
                          batch.weights)  # fmt: skip
    got = contrast.pull(model, same, 1.0)
    assert got.L_c == pytest.approx(math.log(3), abs=1e-5)
