"""The training loop: schedule, data order, averaging, exact resume, clear failures."""

import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vmas import config
from vmas.errors import CheckpointError, ConfigError, DataError
from vmas.training import loop, optim
from vmas.training.data import ClipDataset, StepSampler
from vmas.training.state import load_state, remove_leftovers, save_state

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


def test_an_epoch_that_fills_no_batch_loses_no_clip():
    """Clips are counted on: 20 clips in batches of 8 are 2 epochs in 5 steps, each clip once in either."""
    seen = [row for batch in StepSampler(20, 8, 5, 0, 5) for row in batch]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]
    halves = [list(StepSampler(20, 4, 5, 0, 5, rank, 2)) for rank in (0, 1)]
    assert [r for a, b in zip(*halves, strict=True) for r in a + b] == seen


@pytest.mark.parametrize("n", [24, 21])
def test_sampler_continues_where_it_stopped(n):
    assert list(StepSampler(n, 8, 5, 0, 7))[4:] == list(StepSampler(n, 8, 5, 4, 7))


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
    with pytest.raises(DataError, match="in step 1 the loss is nan"):
        loop.fit(Line(), bad, data(16), CFG, stage, tmp_path, device="cpu", progress=False)


def test_the_batch_of_a_nan_is_kept(tmp_path):
    bad = data()
    bad.arrays["y"][:] = np.nan
    with pytest.raises(DataError, match="bad-batch-0"):
        loop.fit(Line(), bad, data(16), CFG, loop.Stage("line", 4, 8, 0.05, 2), tmp_path, device="cpu", progress=False)
    kept = load_state(tmp_path / "bad-batch-0")
    (batch,) = kept["batches"]
    rows = batch["rows"].numpy()
    assert kept["step"] == 1
    assert len(set(rows.tolist())) == 8
    np.testing.assert_array_equal(batch["x"].numpy(), bad.arrays["x"][rows])


class Overflows(Line):
    """A loss that is finite while its gradient is not, in micro-batch `at`."""

    at = 5

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, batch, generator=None):
        out = super().forward(batch, generator)
        if self.training:
            self.calls += 1
            if self.calls == self.at:
                zero = self.w.weight.sum() * 0
                out["loss"] = out["loss"] + zero.sqrt() * 0  # the derivative of a root at 0 is infinite: 0 · inf
        return out


@pytest.mark.parametrize("accum", [1, 2])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_reaches_no_state(tmp_path, accum):
    cfg = replace(CFG, grad_accum=accum, checkpoint_every=1)
    task = Overflows()
    step = -(-Overflows.at // accum)
    with pytest.raises(DataError, match=rf"in step {step} the loss is .* and the gradient's norm nan"):
        loop.fit(task, data(), data(16), cfg, loop.Stage("line", 8, 8, 0.05, 2), tmp_path, device="cpu", progress=False)
    kept = load_state(tmp_path / "bad-batch-0")
    assert kept["step"] == step
    assert len(kept["batches"]) == accum
    assert all(np.isfinite(kept["losses"]))
    states = loop.Checkpoints(tmp_path / "states")
    assert states.steps()[-1] == step - 1, "the last state is the one before"
    assert all(torch.isfinite(v).all() for v in states.load()["model"].values())
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_sigterm_in_the_last_step_ends_with_0_and_a_finished_stage(tmp_path):
    class Killed(Line):
        def forward(self, batch, generator=None):
            if self.training and float(self.steps_seen.add_(1)) == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch, generator)

    task = Killed()
    task.steps_seen = torch.zeros(())
    stage = loop.Stage("line", 10, 8, 0.05, 2)
    with pytest.raises(loop.Preempted) as stopped:
        loop.fit(task, data(), data(16), CFG, stage, tmp_path, seed=3, device="cpu", progress=False)
    assert stopped.value.code == 0
    through, _ = run(tmp_path / "through", steps=10)
    resumed, _ = run(tmp_path, steps=10)
    assert all(torch.equal(p, q) for p, q in zip(through.parameters(), resumed.parameters(), strict=True))


def test_sigterm_outside_of_the_steps_ends_with_0():
    def work():
        with loop.preemptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.Preempted) as stopped:
        work()
    assert stopped.value.code == 0
    assert "give the command again" in stopped.value.message
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_kill_left_is_removed_and_the_only_state_kept(tmp_path):
    for name in (
        "step-00000002",
        ".step-00000002.old",
        ".step-00000004.x1",
        ".step-00000006.old",
        ".best.x1",
        ".other.x",
    ):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    # step 6 was killed between the two renames of its replacement; what is not the loop's own stays
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.x", ".step-00000006.old", "step-00000002"]


def test_a_damaged_newest_state_is_passed_over_and_named(tmp_path):
    through, a = run(tmp_path / "a", cfg=replace(CFG, checkpoint_every=2))
    run(tmp_path / "b", cfg=replace(CFG, checkpoint_every=2), stop_after=6)
    states = loop.Checkpoints(tmp_path / "b" / "states")
    assert len(states.steps()) == 2
    (states.path(states.steps()[-1]) / "state.safetensors").write_bytes(b"cut off")
    said = []
    resumed, b = run(tmp_path / "b", cfg=replace(CFG, checkpoint_every=2), say=said.append)
    assert "step-00000006 damaged; continued from the state of step 4" in said[0]
    assert all(torch.equal(p, q) for p, q in zip(through.parameters(), resumed.parameters(), strict=True))
    assert a["curve"] == b["curve"]


def test_the_log_holds_every_step_once_after_a_kill(tmp_path):
    """Validated after 3 updates, killed before the next state: those lines are written again."""
    cfg = replace(CFG, val_every=1, checkpoint_every=2)
    run(tmp_path, cfg=cfg, stop_after=4)
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps({"step": 5, "loss": 0.0}) + "\n")
    run(tmp_path, cfg=cfg)
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 11))


def test_accumulation_draws_one_condition_for_an_update(tmp_path):
    """What is drawn for an update (dropped condition, pieces) is the same in all its passes, as in a large batch."""
    drawn = []

    class Draws(Line):
        def forward(self, batch, generator=None):
            if generator is not None:
                drawn.append(float(torch.rand((), generator=generator)))
            return super().forward(batch, generator)

    cfg = replace(CFG, grad_accum=2)
    loop.fit(Draws(), data(), data(16), cfg, loop.Stage("line", 4, 4, 0.05, 2), tmp_path, device="cpu", progress=False)
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 4


def test_the_share_of_waiting_for_data_is_measured_and_told(tmp_path):
    class Slow(type(data())):
        def __getitems__(self, indices):
            time.sleep(0.02)
            return super().__getitems__(indices)

    slow, said = Slow(data().arrays), []
    stage = loop.Stage("line", 10, 8, 0.05, 2)
    got = loop.fit(Line(), slow, data(16), CFG, stage, tmp_path, device="cpu", progress=False, say=said.append)
    assert 0.5 < got["loader_share"] < 1
    assert f"{got['loader_share']:.1%} of a step's time waiting for data" in said[-1]


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
