"""Eq. 2 and eq. 4: golden numbers, gradients, masking, several processes."""

import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from vmas.errors import DataError, UsageError
from vmas.losses import contrastive_loss, music_embedding, token_nll, weighted_cross_entropy


def golden_pair():
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 16, generator=g), torch.randn(8, 16, generator=g)


def batch(B=3, K=4, T=7, card=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, T, card, generator=g, dtype=torch.float64).float().requires_grad_()
    codes = torch.randint(card, (B, K, T), generator=g)
    mask = torch.rand(K, T, generator=g) > 0.3
    weights = torch.where(torch.rand(B, T, generator=g) > 0.8, 1.0, 0.05)
    return logits, codes, mask, weights


def test_golden_eq_2():
    X, M = golden_pair()
    assert contrastive_loss(X, M).item() == pytest.approx(2.1196389, abs=1e-6)
    assert contrastive_loss(M, X).item() == pytest.approx(2.1208959, abs=1e-6)
    assert contrastive_loss(X, M, 0.07).item() == pytest.approx(6.4987192, abs=1e-5)
    assert contrastive_loss(X, M, symmetric=True).item() == pytest.approx((2.1196389 + 2.1208959) / 2, abs=1e-6)


def test_floor_and_chance_of_the_literal_loss():
    """Without a temperature the best that 8 pairs can reach is 1.1732 (own cosine 1, the others -1/7 at best)."""
    assert contrastive_loss(torch.ones(8, 4), torch.ones(8, 4)).item() == pytest.approx(math.log(8), abs=1e-6)
    own = torch.eye(8)
    simplex = own - 1 / 8
    assert contrastive_loss(own, own).item() == pytest.approx(math.log(1 + 7 / math.e), abs=1e-6)
    floor = math.log(1 + 7 * math.exp(-8 / 7))
    assert contrastive_loss(simplex, simplex).item() == pytest.approx(floor, abs=1e-6)


def test_scale_does_not_matter_and_temperature_learns():
    X, M = golden_pair()
    tau = torch.tensor(0.5, requires_grad=True)
    loss = contrastive_loss(3 * X, 0.1 * M, tau)
    assert loss.item() == pytest.approx(contrastive_loss(X, M, 0.5).item(), abs=1e-6)
    loss.backward()
    assert tau.grad.abs() > 0


def test_zero_features_give_finite_gradients():
    X = torch.zeros(4, 8, requires_grad=True)
    contrastive_loss(X, torch.randn(4, 8)).backward()
    assert X.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((8, 16), (8, 12)), ((8, 16), (7, 16)), ((8, 2, 16), (8, 2, 16))])
def test_eq_2_refuses_other_shapes(shapes):
    with pytest.raises(DataError, match=r"eq\. 2"):
        contrastive_loss(*(torch.zeros(s) for s in shapes))


def _gather_worker(rank, world, port, symmetric, X, M, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    rows = slice(rank * len(X) // world, (rank + 1) * len(X) // world)
    x, m = X[rows].clone().requires_grad_(), M[rows].clone().requires_grad_()
    loss = contrastive_loss(x, m, 0.2, symmetric=symmetric, gather=True)
    loss.backward()
    queue.put((rank, loss.item(), x.grad.tolist(), m.grad.tolist()))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_gather_equals_one_process_with_the_whole_batch(symmetric):
    X, M = golden_pair()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ctx = torch.multiprocessing.get_context("spawn")
    queue = ctx.Queue()
    workers = [ctx.Process(target=_gather_worker, args=(r, 2, port, symmetric, X, M, queue)) for r in range(2)]
    for w in workers:
        w.start()
    got = sorted(queue.get(timeout=120) for _ in workers)
    for w in workers:
        w.join()
    x, m = X.clone().requires_grad_(), M.clone().requires_grad_()
    whole = contrastive_loss(x, m, 0.2, symmetric=symmetric)
    whole.backward()
    assert sum(loss for _, loss, _, _ in got) / 2 == pytest.approx(whole.item(), abs=1e-6)
    # data-parallel training averages gradients over processes
    for side, grad in ((2, x.grad), (3, m.grad)):
        parts = torch.cat([torch.tensor(g[side]) for g in got]) / 2
        torch.testing.assert_close(parts, grad, atol=1e-6, rtol=1e-5)


def test_gather_alone_is_local():
    X, M = golden_pair()
    assert contrastive_loss(X, M, gather=True) == contrastive_loss(X, M)


def test_weights_of_one_are_plain_cross_entropy():
    logits, codes, _, _ = batch()
    plain = F.cross_entropy(logits.flatten(0, 2), codes.flatten())
    (expected,) = torch.autograd.grad(plain, logits)
    for normalise in ("count", "weight"):
        for weights in (None, torch.ones(3, 7)):
            loss = weighted_cross_entropy(logits, codes, None, weights, normalise)
            (grad,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(loss, plain)
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("normalise", ["count", "weight"])
def test_eq_4_word_by_word(normalise):
    logits, codes, mask, weights = batch()
    log_p = logits.log_softmax(-1)
    per_codebook = []
    for k in range(4):
        total, size = 0.0, 0.0
        for b in range(3):
            for t in range(7):
                if mask[k, t]:
                    total = total - weights[b, t] * log_p[b, k, t, codes[b, k, t]]
                    size += 1.0 if normalise == "count" else weights[b, t].item()
        per_codebook.append(total / size)
    got = weighted_cross_entropy(logits, codes, mask, weights, normalise)
    torch.testing.assert_close(got, torch.stack(per_codebook).mean())


def test_masked_cross_entropy_is_audiocrafts():
    """audiocraft's MusicGen solver: per codebook the mean over its valid tokens, then the mean over codebooks."""
    logits, codes, mask, _ = batch()
    per_codebook = [
        F.cross_entropy(logits[:, k][:, mask[k]].flatten(0, 1), codes[:, k][:, mask[k]].flatten()) for k in range(4)
    ]
    torch.testing.assert_close(weighted_cross_entropy(logits, codes, mask), torch.stack(per_codebook).mean())


@pytest.mark.parametrize("normalise", ["count", "weight"])
def test_masked_nan_reaches_neither_loss_nor_gradient(normalise):
    logits, codes, mask, weights = batch()
    clean = weighted_cross_entropy(logits, codes, mask, weights, normalise)
    (clean_grad,) = torch.autograd.grad(clean, logits)
    dirty = torch.where(mask[..., None], logits.detach(), math.nan).requires_grad_()
    special = torch.where(mask, codes, 9999)
    loss = weighted_cross_entropy(dirty, special, mask, weights, normalise)
    (grad,) = torch.autograd.grad(loss, dirty)
    torch.testing.assert_close(loss, clean)
    torch.testing.assert_close(grad, clean_grad)
    assert (grad[:, ~mask] == 0).all()

    E = torch.randn(4, 11, 5)
    (grad,) = torch.autograd.grad(music_embedding(dirty, E, mask).square().sum(), dirty)
    assert grad.isfinite().all()
    torch.testing.assert_close(music_embedding(dirty, E, mask), music_embedding(logits, E, mask))


def test_nothing_valid_is_zero():
    logits, codes, mask, weights = batch()
    loss = weighted_cross_entropy(logits, codes, torch.zeros_like(mask), weights)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_normalisation_by_weight_is_free_of_their_scale():
    logits, codes, mask, weights = batch()
    by = {
        n: [weighted_cross_entropy(logits, codes, mask, w, n).item() for w in (weights, weights / 10)]
        for n in ("count", "weight")
    }
    assert by["count"][1] == pytest.approx(by["count"][0] / 10, rel=1e-5)
    assert by["weight"][1] == pytest.approx(by["weight"][0], rel=1e-5)


def test_gradients_in_float64():
    g = torch.Generator().manual_seed(3)
    x, m = (torch.randn(4, 6, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    _, codes, mask, weights = batch(2, 2, 3, 4)
    logits = torch.randn(2, 2, 3, 4, generator=g, dtype=torch.float64).requires_grad_()
    E = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    mask[:, 0] = True
    assert torch.autograd.gradcheck(lambda x, m: contrastive_loss(x, m, 0.3, symmetric=True), (x, m))
    assert torch.autograd.gradcheck(lambda z: weighted_cross_entropy(z, codes, mask, weights, "weight"), (logits,))
    assert torch.autograd.gradcheck(lambda z: music_embedding(z, E, mask).square().sum(), (logits,))


def test_token_nll_is_minus_log_p_and_takes_bfloat16():
    logits, codes, mask, _ = batch()
    nll = token_nll(logits.to(torch.bfloat16), codes, mask)
    assert nll.dtype == torch.float32
    assert (nll[:, ~mask] == 0).all()
    expected = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(nll[:, mask], expected[:, mask], atol=0.05, rtol=0.05)


def test_music_embedding_word_by_word():
    logits, _, mask, _ = batch()
    E = torch.randn(4, 11, 5, requires_grad=True)
    M = torch.einsum("bktc,kcd->btd", logits.softmax(-1), E)
    torch.testing.assert_close(music_embedding(logits, E), M.mean(1).detach() + 0 * M.mean(1))
    both = mask.all(0)
    same = both.expand(4, 7)
    torch.testing.assert_close(music_embedding(logits, E, same), M[:, both].mean(1))
    assert torch.autograd.grad(music_embedding(logits, E).sum(), E, allow_unused=True)[0] is None  # E is frozen
    torch.testing.assert_close(
        music_embedding(logits, E, output="logits"), torch.einsum("bktc,kcd->btd", logits, E).mean(1)
    )


def test_certain_predictions_give_the_codecs_own_embedding():
    codes = torch.randint(11, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    E = torch.randn(4, 11, 5)
    logits = 1e4 * F.one_hot(codes, 11).float()
    quantised = torch.stack([E[k][codes[:, k]] for k in range(4)]).sum(0)
    torch.testing.assert_close(music_embedding(logits, E), quantised.mean(1))


def test_refused():
    logits, codes, mask, weights = batch()
    with pytest.raises(UsageError, match="normalise"):
        weighted_cross_entropy(logits, codes, mask, weights, "mean")
    with pytest.raises(DataError, match="beat weights"):
        weighted_cross_entropy(logits, codes, mask, weights[:, :-1])
    with pytest.raises(DataError, match="do not fit"):
        weighted_cross_entropy(logits, codes[:, :2], None)
    with pytest.raises(DataError, match="codebooks"):
        music_embedding(logits, torch.zeros(4, 12, 5))
    with pytest.raises(UsageError, match="output"):
        music_embedding(logits, torch.zeros(4, 11, 5), output="argmax")
