"""D-Adaptation and the moving average against their formulas; the sharded step against the package's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vmas import config
from vmas.errors import CheckpointError
from vmas.training import loop, optim, sharded
from vmas.training.data import ClipDataset
from vmas.training.state import Checkpoints

CFG = replace(config.load("smoke").train, val_every=10, checkpoint_every=100)


def test_ten_steps_of_d_adaptation_by_the_paper_with_weight_decay():
    """Defazio and Mishchenko 2023, "Learning-Rate-Free Learning by D-Adaptation", the algorithm for Adam, in doubles:

        m ← β₁ m + (1-β₁) d γ g        v ← β₂ v + (1-β₂) g²        A = diag(√v + ε)
        s ← √β₂ s + (1-√β₂) d γ g      r ← √β₂ r + (1-√β₂) d γ ⟨g, s⟩ by A⁻¹, with the s of before
        d ← max(d, r / ((1-√β₂) |s|₁))        x ← x - A⁻¹ m

    The package takes the A of before in r as well. The decay is decoupled: x ← (1 - λ d γ) x first.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=6)
    curvature, middle, decay, eps = np.geomspace(0.3, 3, 6), rng.normal(size=6) * 5, 0.1, 1e-8
    p = nn.Parameter(torch.tensor(x, dtype=torch.float64))
    cfg = replace(CFG, optimizer="dadapt_adam", betas=(0.9, 0.95), weight_decay=decay)
    opt = optim.build_optimizer([p], cfg, 1.0)
    beta1, beta2 = cfg.betas
    root, d, r = np.sqrt(beta2), 1e-6, 0.0
    m, v, s = np.zeros(6), np.zeros(6), np.zeros(6)
    for k in range(12):
        rate = 3.0 * min(1.0, (k + 1) / 4)
        opt.param_groups[0]["lr"] = rate
        p.grad = torch.tensor(curvature * (p.detach().numpy() - middle))
        opt.step()

        g = curvature * (x - middle)
        r = root * r + (1 - root) * d * rate * float(g @ (s / (np.sqrt(v) + eps)))
        m = beta1 * m + (1 - beta1) * d * rate * g
        v = beta2 * v + (1 - beta2) * g**2
        s = root * s + (1 - root) * d * rate * g
        x = (1 - decay * d * rate) * x - m / (np.sqrt(v) + eps)
        d = max(d, r / ((1 - root) * np.abs(s).sum()))
        np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-9, atol=0)
        assert opt.param_groups[0]["d"] == pytest.approx(d, rel=1e-9)
    assert d > 3e-6, "it grew from 1e-6"


@pytest.mark.parametrize("seed", range(3))
def test_the_sharded_step_is_the_packages_to_the_bit_where_nothing_is_sharded(seed):
    cfg = replace(CFG, optimizer="dadapt_adam", weight_decay=0.1)
    ends = []
    for split in (False, True):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 5))
        model[3].requires_grad_(False)
        x, y = torch.randn(64, 7), torch.randn(64, 5)
        opt = optim.build_optimizer(model.parameters(), cfg, 1.0, split)
        schedule = optim.build_schedule(opt, 2, 60)
        for _ in range(60):
            opt.zero_grad()
            (model(x) - y).square().mean().backward()
            opt.step()
            schedule.step()
        state = opt.state_dict()["state"]
        ends.append(
            [*model.parameters(), *(t for s in state.values() for t in (s["s"], s["exp_avg"], s["exp_avg_sq"]))]
        )
        ends[-1].append(torch.tensor([opt.param_groups[0][k] for k in ("d", "numerator_weighted", "k")]).double())
    assert ends[0][-1][0] > 1e-3, "d grew"
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Line(nn.Module):
    """y = w·x; remembers the weights that every update began with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Linear(3, 1, bias=False)
        self.seen: list[np.ndarray] = []

    def forward(self, batch, generator=None):
        if self.training:
            self.seen.append(self.w.weight.detach().double().numpy().copy())
        return {"loss": (self.w(batch["x"]).squeeze(1) - batch["y"]).square().mean()}


def data(n: int) -> ClipDataset:
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return ClipDataset({"x": x, "y": x @ np.array([1, -2, 0.5], np.float32)})


def test_a_run_ends_with_the_average_of_every_tenth_update(tmp_path):
    """Appendix B: γ = .99, every 10 updates; the last update counts as well."""
    task = Line()
    cfg = replace(CFG, ema_decay=0.99, ema_every=10)
    stage = loop.Stage("line", 45, 8, 0.05, 2)
    loop.fit(task, data(40), data(16), cfg, stage, tmp_path, device="cpu", progress=False, say=lambda _: None)
    last = Checkpoints(tmp_path / "states").load()["model"]["w.weight"].double().numpy()
    after = [*task.seen[1:], last]  # update n, counted from 1, at n - 1
    average = task.seen[0]
    for n in (10, 20, 30, 40, 45):
        average = 0.99 * average + 0.01 * after[n - 1]
    assert len(after) == 45
    np.testing.assert_allclose(task.w.weight.detach().numpy(), average, atol=2e-7, rtol=0)
    assert np.abs(average - task.seen[0]).max() > 1e-3
    assert np.abs(average - last).max() > 1e-1


def test_a_state_of_other_trained_parameters_is_refused_with_a_line(tmp_path):
    line = Line()
    opt = optim.build_optimizer(line.parameters(), CFG, 0.1)
    saved = {"model": {}, "optimizer": {}, "ema": [torch.zeros(1, 3), torch.zeros(1)]}
    with pytest.raises(CheckpointError, match=r"trains 2 tensors, this one 1.*remove the folder"):
        sharded.scatter(line, opt, optim.EMA(line, 0.9), saved, tmp_path)
