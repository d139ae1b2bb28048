"""The training loop: schedule, data order, averaging, exact resume, clear failures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vmas import config
from vmas.errors import CheckpointError, ConfigError, DataError
from vmas.training import loop, optim
from vmas.training.data import ClipDataset, StepSampler
from vmas.training.state import load_state, save_state

CFG = replace(config.load("smoke").train, val_every=4, checkpoint_every=4, ema_every=2, ema_decay=0.5, weight_decay=0.0)


class Line(nn.Module):
    """y = w·x with dropout, so that the random state matters."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Linear(3, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, batch, generator=None):
        loss = (self.w(self.drop(batch["x"])).squeeze(1) - batch["y"]).square().mean()
        return {"loss": loss}


def data(n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return ClipDataset({"x": x, "y": x @ np.array([1, -2, 0.5], np.float32)})


def run(folder, steps=10, cfg=CFG, batch=8, dropout=0.2, **kw):
    task = Line(dropout)
    stage = loop.Stage("line", steps, batch, 0.05, 2)
    got = loop.fit(task, data(), data(16), cfg, stage, folder, seed=3, device="cpu", progress=False, **kw)
    return task, got


def test_schedule_golden():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = optim.build_schedule(opt, 4000, 10000)
    seen = {}
    for step in range(10001):
        seen[step] = schedule.get_last_lr()[0]
        opt.step()
        schedule.step()
    expected = {0: 0.0, 1: 0.00025, 2000: 0.5, 4000: 1.0, 7000: 0.5, 10000: 0.0}
    assert {s: seen[s] for s in expected} == pytest.approx(expected, abs=1e-12)


def test_sampler_shows_every_clip_once_an_epoch_and_splits_ranks_without_overlap():
    whole = list(StepSampler(24, 8, 5, 0, 6))
    for epoch in (whole[:3], whole[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(24))
    assert whole[:3] != whole[3:]
    halves = [list(StepSampler(24, 4, 5, 0, 6, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_sampler_continues_where_it_stopped():
    assert list(StepSampler(24, 8, 5, 0, 7))[4:] == list(StepSampler(24, 8, 5, 4, 7))


def test_sampler_refuses_too_few_clips():
    with pytest.raises(DataError, match="do not fill one batch"):
        StepSampler(7, 8, 0, 0, 1)


def test_training_learns_and_logs(tmp_path):
    _, got = run(tmp_path, steps=60)
    assert got["steps"] == 60
    first, last = got["curve"][0]["loss"], got["curve"][-1]["loss"]
    assert last < 0.3 * first
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [c["step"] for c in got["curve"]]
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_resume_is_bit_identical(tmp_path):
    through, a = run(tmp_path / "a")
    run(tmp_path / "b", stop_after=3)
    resumed, b = run(tmp_path / "b")
    for p, q in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    assert a["curve"] == b["curve"]


@pytest.mark.parametrize("optimizer", ["adamw", "dadapt_adam"])
def test_resume_with_every_optimizer(tmp_path, optimizer):
    cfg = replace(CFG, optimizer=optimizer)
    through, _ = run(tmp_path / "a", cfg=cfg)
    run(tmp_path / "b", cfg=cfg, stop_after=5)
    resumed, _ = run(tmp_path / "b", cfg=cfg)
    assert all(torch.equal(p, q) for p, q in zip(through.parameters(), resumed.parameters(), strict=True))


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path, steps=11)


def test_result_is_the_moving_average(tmp_path):
    """With decay 0 the average is the last weights; with decay 1 it stays where it began."""
    last, _ = run(tmp_path / "last", cfg=replace(CFG, ema_decay=0.0, ema_every=10))
    each, _ = run(tmp_path / "each", cfg=replace(CFG, ema_decay=0.0, ema_every=1))
    kept, _ = run(tmp_path / "kept", cfg=replace(CFG, ema_decay=1.0))
    assert torch.equal(last.w.weight, each.w.weight)
    assert torch.equal(kept.w.weight, Line().w.weight)
    assert not torch.equal(last.w.weight, kept.w.weight)


def test_nan_loss_stops_with_a_line(tmp_path):
    bad = data()
    bad.arrays["y"][:] = np.nan
    stage = loop.Stage("line", 4, 8, 0.05, 2)
    with pytest.raises(DataError, match="the loss is nan at step 1"):
        loop.fit(Line(), bad, data(16), CFG, stage, tmp_path, device="cpu", progress=False)


def test_the_batch_of_a_nan_is_kept(tmp_path):
    bad = data()
    bad.arrays["y"][:] = np.nan
    with pytest.raises(DataError, match="bad-batch-0"):
        loop.fit(Line(), bad, data(16), CFG, loop.Stage("line", 4, 8, 0.05, 2), tmp_path, device="cpu", progress=False)
    kept = load_state(tmp_path / "bad-batch-0")
    rows = kept["batch"]["rows"].numpy()
    assert kept["step"] == 1
    assert len(set(rows.tolist())) == 8
    np.testing.assert_array_equal(kept["batch"]["x"].numpy(), bad.arrays["x"][rows])


def test_accumulation_equals_the_large_batch(tmp_path):
    whole, _ = run(tmp_path / "whole", dropout=0.0)
    parts, _ = run(tmp_path / "parts", dropout=0.0, cfg=replace(CFG, grad_accum=2), batch=4)
    assert torch.allclose(whole.w.weight, parts.w.weight, atol=1e-6)


def test_loader_workers_change_nothing(tmp_path):
    alone, _ = run(tmp_path / "alone")
    run(tmp_path / "helped", cfg=replace(CFG, num_workers=2), stop_after=5)
    helped, _ = run(tmp_path / "helped", cfg=replace(CFG, num_workers=1))
    assert torch.equal(alone.w.weight, helped.w.weight)


def test_last_states_and_the_best_are_kept(tmp_path):
    _, got = run(tmp_path, steps=20, cfg=replace(CFG, keep_last=2))
    assert [p.name for p in sorted((tmp_path / "states").iterdir())] == ["step-00000016", "step-00000020"]
    best = min(got["curve"], key=lambda c: c["loss"])
    kept = load_state(tmp_path / "best")
    assert kept["step"] == best["step"]
    assert [t.shape for t in kept["ema"]] == [p.shape for p in Line().parameters()]


def test_freezing_by_name(tmp_path):
    task = Line()
    optim.freeze(task, ["w.bias"])
    before = task.w.bias.clone()
    loop.fit(task, data(), data(16), CFG, loop.Stage("line", 4, 8, 0.05, 2), tmp_path, device="cpu", progress=False)
    assert torch.equal(task.w.bias, before)
    with pytest.raises(ConfigError, match="no parameter begins with 'v'; the groups are w"):
        optim.freeze(Line(), ["v"])
    with pytest.raises(ConfigError, match="nothing to train"):
        optim.freeze(Line(), ["w"])


def test_average_golden():
    """θ jumps from 0 to 1 and stays: after n updates with decay γ the average is 1 - γⁿ."""
    line = Line()
    with torch.no_grad():
        line.w.weight.zero_()
    ema = optim.EMA(line, 0.99)
    with torch.no_grad():
        line.w.weight.fill_(1.0)
    for _ in range(10):
        ema.update()
    with ema.applied():
        assert line.w.weight[0, 0].item() == pytest.approx(1 - 0.99**10, abs=1e-6)
    assert line.w.weight[0, 0].item() == 1.0


def test_d_adaptation_golden():
    """One step by the method's own formulas (Defazio and Mishchenko 2023, algorithm for Adam with d_0 = 1e-6)."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    opt = optim.build_optimizer([p], replace(CFG, optimizer="dadapt_adam"), 1.0)
    p.grad = torch.tensor([0.5, 0.25])
    opt.step()
    beta_1, beta_2, d = *CFG.betas, 1e-6
    g = torch.tensor([0.5, 0.25])
    m, v = d * (1 - beta_1) * g, (1 - beta_2) * g**2
    assert torch.allclose(p.detach(), torch.tensor([1.0, -2.0]) - m / (v.sqrt() + 1e-8), atol=1e-9)
    assert opt.param_groups[0]["d"] >= d


def test_sampling_hook_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = Line()
    task.sample = lambda batch, seed: (np.sin(np.arange(8000) / 9.0)[None].repeat(2, 0).astype(np.float32), 8000)
    cfg = replace(CFG, sample_every=4)
    loop.fit(task, data(), data(16), cfg, loop.Stage("line", 4, 8, 0.05, 2), tmp_path, device="cpu", progress=False)
    events = EventAccumulator(str(next(tmp_path.rglob("line")).resolve()))
    events.Reload()
    assert events.Tags()["audio"] == ["line/music-0", "line/music-1"]
    assert events.Tags()["images"] == ["line/spectrogram-0", "line/spectrogram-1"]
    assert events.Audio("line/music-0")[0].sample_rate == 8000


def test_unknown_optimizer():
    with pytest.raises(ConfigError, match="adamw or dadapt_adam"):
        optim.build_optimizer([torch.zeros(1, requires_grad=True)], replace(CFG, optimizer="sgdd"), 1.0)


def test_state_round_trip_keeps_types(tmp_path):
    state = {"a": torch.arange(3), "b": {0: (1, 2.5, None), "x": [True, "s"]}, "t": torch.zeros(0)}
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s")
    assert torch.equal(back["a"], state["a"])
    assert back["b"] == state["b"]
    assert isinstance(back["b"][0], tuple)


def test_damaged_state_is_reported(tmp_path):
    save_state(tmp_path / "s", {"a": torch.arange(3)})
    (tmp_path / "s" / "state.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path / "s")


def test_state_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_state(tmp_path / "s", {"a": object()})
    assert not (tmp_path / "s").exists()
