"""The cost of a training run: counted FLOPs and bytes against what torch really does, and `vmas train --dry-run`."""

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vmas import config
from vmas.cli import main
from vmas.codec import build_codec
from vmas.errors import UsageError
from vmas.model import VMAs
from vmas.training import cost, cost_report
from vmas.training.activations import activations
from vmas.training.tasks import VMAsTask

CLIPS = 2


def task_and_batch(profile: config.Profile) -> tuple[VMAsTask, dict[str, torch.Tensor]]:
    """What stage 2 trains, with random weights, and a random batch for it."""
    torch.manual_seed(0)
    c, T = profile.clip, profile.num_tokens
    size = (CLIPS, c.num_frames, c.img_size, c.img_size, 3)
    batch = {
        "frames": torch.randint(0, 256, size, dtype=torch.uint8),
        "codes": torch.randint(0, profile.codec.bins, (CLIPS, profile.codec.n_q, T)),
        "weights": torch.ones(CLIPS, T),
    }
    return VMAsTask(VMAs(profile, build_codec(profile.codec))).train(), batch


def saved_bytes(profile: config.Profile, bf16: bool) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, without the parameters themselves."""
    task, batch = task_and_batch(profile)
    own = {t.untyped_storage().data_ptr() for t in [*task.parameters(), *task.buffers()]}
    kept = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), t)  # t keeps its address from being used again
        return t

    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        task(batch)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    "freeze",
    [[], ["encoder"], ["decoder"], ["encoder.patch_embed", "encoder.blocks.0", "decoder.layers.0"]],
    ids=["all trained", "encoder frozen", "decoder frozen", "some blocks frozen"],
)
def test_flops_of_mini_are_those_that_torch_counts(freeze):
    profile = config.load("mini", {"train": {"freeze": freeze}})
    task, batch = task_and_batch(profile)
    # the counter does not see a CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)["loss"].backward()
    counted = cost.count_flops(cost.Skeleton(profile), profile, CLIPS, False)
    assert counted.model == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert counted.recomputed == 0


def test_recomputed_flops_are_those_that_torch_counts_under_checkpointing():
    totals = []
    for on in (False, True):
        profile = config.load("smoke", {"train": {"activation_checkpointing": on}})
        task, batch = task_and_batch(profile)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            task(batch)["loss"].backward()
        totals.append(counter.get_total_flops())
    counted = cost.count_flops(cost.Skeleton(profile), profile, CLIPS, True)
    assert totals[0] == counted.model
    # torch stops recomputing a block at the last tensor it needs, before its last product
    assert 0.75 < (totals[1] - totals[0]) / counted.recomputed <= 1


@pytest.mark.parametrize("name", ["smoke", "mini"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "train",
    [
        {"freeze": []},
        {"freeze": ["encoder"]},
        {"freeze": [], "activation_checkpointing": True},
        {"freeze": ["encoder"], "activation_checkpointing": True},
    ],
    ids=["plain", "encoder frozen", "checkpointing", "both"],
)
def test_bytes_for_the_backward_pass_are_those_that_autograd_saves(name, bf16, train):
    profile = config.load(name, {"train": train, "decoder": {"dropout": 0.0}})
    model = cost.Skeleton(profile)
    on = profile.train.activation_checkpointing
    counted = activations(model.encoder, model.decoder, profile, CLIPS, 2 if bf16 else 4)
    expected = counted.stored(on)  # after the forward pass nothing is recomputed yet
    if bf16:  # autograd also keeps autocast's copies of the weights, which the plan lists on their own
        expected += cost.count_memory(model, bf16_profile(profile), counted, 1, "ddp", on).compute
        if on:  # but not of the blocks that it recomputes
            inside = [*model.decoder.blocks, *(b for b in model.encoder.blocks if next(b.parameters()).requires_grad)]
            weights = (m.weight for b in inside for m in b.modules() if isinstance(m, torch.nn.Linear))
            expected -= 2 * sum(w.numel() for w in weights)
    assert expected == pytest.approx(saved_bytes(profile, bf16), rel=0.15 if bf16 else 0.02)


def bf16_profile(profile: config.Profile) -> config.Profile:
    return dataclasses.replace(profile, train=dataclasses.replace(profile.train, precision="bf16"))


def test_dropout_adds_its_masks():
    without, with_ = (config.load("smoke", {"decoder": {"dropout": p}}) for p in (0.0, 0.1))
    kept = []
    for p in (without, with_):
        model = cost.Skeleton(p)
        kept.append(sum(activations(model.encoder, model.decoder, p, CLIPS, 2).decoder.blocks))
    d, positions = with_.decoder, CLIPS * (with_.num_tokens + with_.codec.n_q - 1)
    assert kept[1] - kept[0] == d.layers * positions * (3 + d.ff_mult) * d.dim


def test_parameters_are_those_of_the_model():
    profile = config.load("mini", {"train": {"freeze": []}})
    model = VMAs(profile, build_codec(profile.codec))
    counted = cost.count_parameters(cost.Skeleton(profile))
    assert counted.total == counted.trained == sum(p.numel() for p in model.parameters())
    assert [g.name for g in counted.groups] == [name for name, _ in model.named_children()]
    frozen = cost.count_parameters(cost.Skeleton(config.load("mini", {"train": {"freeze": ["encoder"]}})))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert (frozen.total - frozen.trained, frozen.groups[0].frozen) == (encoder, encoder)


@pytest.fixture(scope="module")
def paper() -> config.Profile:
    return config.load("paper")


def test_golden_numbers_of_the_paper_model(paper):
    p = cost.plan(paper, 32, "a100", "ddp")
    sizes = {g.name: g.trained for g in p.parameters.groups}
    # MusicGen-medium with its cross-attention, K = 4 codebooks, and the projection of X_v
    D = 1536
    blocks = 48 * (16 * D * D + 3 * 2 * D)
    assert sizes["decoder"] == blocks + 4 * (2049 + 2048) * D + 2 * D + 768 * D + D == 1_838_737_920
    assert sizes["encoder"] == 50_788_800
    assert sizes["video_to_music"] == 768 * 128 + 128
    # the encoder's forward pass is that of tests/test_encoder_cost.py, 76.2 GMACs a clip with 8x8 windows
    encoder = [x for x in cost.products(cost.Skeleton(paper), paper, 1) if x.part == "encoder"]
    assert sum(x.forward_flops for x in encoder) / 1e9 == pytest.approx(152.5, abs=0.05)
    # 6·N·tokens for every weight on the positions that it sees, three passes over both attentions
    seen, rows, codes = 8 * 503, 8 * 48, 8 * 500
    linear = 6 * D * (48 * 14 * D * seen + 48 * 2 * D * rows + 768 * rows + 4 * 2048 * codes)
    attention = 3 * 4 * 48 * D * seen * (503 + 48)
    assert p.flops.model - p.flops.encoder == pytest.approx(linear + attention, rel=1e-4)
    assert (p.clips_per_step, p.tokens * p.clips_per_step) == (256, 512_000)


def test_bytes_of_each_gpu(paper):
    n = cost.count_parameters(cost.Skeleton(paper)).total
    ddp, fsdp = (cost.plan(paper, 8, "h200", s).memory for s in cost.SHARDING)
    assert (ddp.weights, ddp.gradients, ddp.buckets, ddp.optimizer, ddp.ema) == (4 * n, 4 * n, 4 * n, 12 * n, 4 * n)
    assert fsdp.weights == 4 * n // 8
    assert (fsdp.optimizer, fsdp.buckets) == (12 * n // 8, 0)
    assert ddp.activations == fsdp.activations
    assert fsdp.compute < ddp.compute / 10
    assert ddp.total == sum(dataclasses.astuple(ddp))
    adamw = dataclasses.replace(paper, train=dataclasses.replace(paper.train, optimizer="adamw"))
    assert cost.plan(adamw, 8, "h200", "ddp").memory.optimizer == 8 * n
    alone = cost.plan(paper, 1, "h200", "fsdp").memory
    assert (alone.weights, alone.compute) == (4 * n, 0)


def test_freezing_the_encoder_saves_its_backward_pass_and_its_states(paper):
    free = cost.plan(paper, 8, "h200", "ddp")
    part = dataclasses.replace(paper, train=dataclasses.replace(paper.train, freeze=("encoder",)))
    held = cost.plan(part, 8, "h200", "ddp")
    encoder = free.parameters.groups[0].trained
    assert held.flops.forward == free.flops.forward
    assert held.flops.encoder < free.flops.encoder * 0.36
    assert free.memory.optimizer - held.memory.optimizer == 12 * encoder
    assert held.memory.weights == free.memory.weights
    assert held.activations.encoder.stored(False) == 0 < free.activations.encoder.stored(False)


def test_checkpointing_trades_bytes_for_flops(paper):
    off = dataclasses.replace(paper, train=dataclasses.replace(paper.train, activation_checkpointing=False))
    with_, without = cost.plan(paper, 8, "h200", "ddp"), cost.plan(off, 8, "h200", "ddp")
    assert with_.memory == without.memory_other
    assert with_.memory.activations < without.memory.activations / 4  # 5.3 of 27.7 GB
    assert with_.flops.recomputed > without.flops.recomputed == 0
    assert with_.flops.model == without.flops.model


def test_time_scales_as_it_must(paper):
    one, many = cost.plan(paper, 1, "a100", "ddp"), cost.plan(paper, 32, "a100", "ddp")
    assert many.step_seconds == pytest.approx(one.step_seconds)
    assert many.flops_per_step == 32 * one.flops_per_step
    assert cost.plan(paper, 1, "a100", "ddp", mfu=0.9).days == pytest.approx(one.days / 2)
    assert one.days == pytest.approx(paper.train.steps * one.flops.model / (0.45 * 312e12) / 86_400)
    assert cost.utilisation(many, many.step_seconds) == pytest.approx(0.45)
    assert cost.plan(paper, 1, "h100", "ddp").days / one.days == pytest.approx(312 / 989)
    twice = dataclasses.replace(paper, train=dataclasses.replace(paper.train, grad_accum=2))
    assert cost.plan(twice, 1, "a100", "ddp").flops_per_step == 2 * one.flops_per_step


def test_bytes_moved_in_closed_form(paper):
    """N GPUs: DDP sends 2(N-1)/N of the fp32 gradients; FSDP gathers bf16 weights twice and scatters bf16 gradients."""
    n = cost.count_parameters(cost.Skeleton(paper))
    ddp, fsdp = (cost.plan(paper, 32, "a100", s).traffic for s in ("ddp", "fsdp"))
    assert ddp.network == pytest.approx(2 * 31 / 32 * 4 * n.trained, rel=1e-6)
    assert fsdp.network == pytest.approx(31 / 32 * 2 * (2 * n.total + n.trained), rel=1e-6)
    assert cost.plan(paper, 1, "a100", "ddp").traffic.network == 0
    states = cost.OPTIMIZER_STATES[paper.train.optimizer]
    each = 4 * (3 + 2 * states + 3 / paper.train.ema_every)  # bytes a parameter
    assert ddp.optimizer == pytest.approx(each * n.trained, rel=1e-6)
    assert fsdp.optimizer == pytest.approx(each * n.trained / 32, rel=1e-6)
    assert ddp.input == fsdp.input == 8 * (96 * 224 * 224 * 3 + 500 * (4 * 8 + 4))


def test_without_eq_2_its_projection_is_not_trained(paper):
    off = dataclasses.replace(paper, align=dataclasses.replace(paper.align, contrastive=False))
    group = {g.name: g for g in cost.count_parameters(cost.Skeleton(off)).groups}["video_to_music"]
    assert group.trained == 0 < group.frozen


def test_budget_of_the_paper(paper):
    p = cost.plan(paper, 32, "a100", "ddp")
    b = cost.budget(p)
    assert b.flops == pytest.approx(32 * 4 * 86_400 * 312e12 * 0.45)
    assert b.steps == pytest.approx(4 / p.days * paper.train.steps)
    assert b.epochs == pytest.approx(b.steps * 256 / 2_200_000)
    assert b.mfu_of_plan == pytest.approx(0.45 * p.days / 4)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"gpus": 0}, "at least one GPU"),
        ({"gpu": "h20"}, "h200"),
        ({"sharding": "fdsp"}, "fsdp"),
        ({"mfu": 0.0}, "above 0"),
        ({"mfu": 1.1}, "at most 1"),
    ],
)
def test_wrong_options_are_usage_errors(wrong, word):
    with pytest.raises(UsageError, match=word):
        cost_report.dry_run(config.load("smoke"), **wrong)


def test_command_line(capsys):
    given = ["train", "--profile", "paper", "--dry-run", "--gpus", "8", "--gpu", "H200", "--sharding", "fsdp"]
    assert main([*given, "--set", "train.freeze=[encoder]"]) == 0
    out = capsys.readouterr().out
    assert "1,889.6M, trained 1,838.8M" in out
    assert "8 H200 141 GB (FSDP)" in out
    assert "fits H200" in out
    assert "with DDP instead" in out
    assert "sent over the network" in out
    assert "2.2M clips" in out
    assert max(len(line) for line in out.splitlines()) <= 120
    assert main(["train", "--profile", "mini", "--dry-run", "--gpus", "1"]) == 0
    assert "The paper:" not in capsys.readouterr().out
    assert main(["train", "--profile", "mini", "--dry-run", "--gpus", "1", "--mfu", "0.3"]) == 0
    assert "at 30% of the peak" in capsys.readouterr().out
    assert main(["train", "--dry-run", "--gpu", "v100"]) == 2
    assert "unknown GPU 'v100'" in capsys.readouterr().err


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory of a process is read from Linux's /proc"
)
def test_paper_model_costs_little_time_and_memory_to_plan(tmp_path):
    script = (
        "import time, torch; from vmas.cli import main; start = time.process_time();"
        "assert main(['train', '--profile', 'paper', '--dry-run']) == 0; print(time.process_time() - start);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    seconds, kilobytes = map(float, done.stdout.split()[-2:])
    assert seconds < 5  # under 1 s on an idle core, after torch is imported
    assert kilobytes < 1e6
    assert list(tmp_path.iterdir()) == []


def test_skeleton_holds_no_memory(paper):
    assert {p.device.type for p in cost.Skeleton(paper).parameters()} == {"meta"}
    assert isinstance(cost.Skeleton(paper), nn.Module)
