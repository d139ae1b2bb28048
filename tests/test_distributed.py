"""Two processes on CPU compute what one does: losses, gradients, trained weights, sharded or not; and exact resume."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import OBJECTIVES, SHARDED
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vmas import checkpoint
from vmas.training import demo
from vmas.training.state import Checkpoints, load_state

WORKER = str(Path(__file__).with_name("distributed_worker.py"))
pytestmark = pytest.mark.slow


def command(case: str, out: Path, processes: int, **options) -> list[str]:
    python = [sys.executable]
    if processes > 1:
        # what `accelerate launch --config_file examples/launch/cpu2.yaml` starts, without its start-up time
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*python, WORKER, case, str(out), *(f"{k}={v}" for k, v in options.items())]


def start(case: str, out: Path, processes: int = 1, **options) -> subprocess.Popen:
    out.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    line = command(case, out, processes, **options)
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(case: str, out: Path, processes: int = 1, **options) -> None:
    p = start(case, out, processes, **options)
    said, _ = p.communicate(timeout=300)
    assert p.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    root = tmp_path_factory.mktemp("gradients")
    run("gradients", root / "one")
    run("gradients", root / "two", 2)
    return root


def near(a: dict, b: dict) -> float:
    """Largest difference of two sets of gradients, relative to the largest gradient."""
    assert a.keys() == b.keys()
    scale = max(float(g.abs().max()) for g in a.values())
    assert scale > 1e-3
    return max(float((a[k] - b[k]).abs().max()) for k in a) / scale


def assert_equal(root: Path, a: str, b: str, tolerance: float = 1e-6) -> dict:
    """Losses and the gradients of every trained parameter; returns the first's."""
    one, two = load_state(root / a), load_state(root / b)
    assert all(g is not None for g in one["grads"].values())
    assert one["loss"] == pytest.approx(two["loss"], abs=tolerance)
    assert near(one["grads"], two["grads"]) <= tolerance
    return one


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if not o.startswith("False")])
def test_two_processes_equal_the_whole_batch(gradients, objective):
    """With the gathered contrast, without, without beats, with the condition dropped, with recomputed activations."""
    found = assert_equal(gradients, f"two/whole/{objective}", f"one/whole/{objective}")["grads"]
    head = found.get("model.video_to_music.weight")
    assert (head is None) == (OBJECTIVES[objective][0].get("contrastive") is False)
    if head is not None and objective != "dropped":
        assert head.abs().max() > 1e-3, "the contrast has a gradient to be gathered"


def test_two_processes_with_the_local_contrast_equal_two_halves(gradients):
    """An L_c over fewer clips has fewer candidates: it is another loss, in two processes as in two halves."""
    two = assert_equal(gradients, "two/whole/False-count", "one/halves/False-count")
    whole = load_state(gradients / "one" / "whole" / "False-count")
    assert abs(whole["loss"] - two["loss"]) > 1e-3
    assert near(whole["grads"], two["grads"]) > 1e-2


@pytest.mark.parametrize("processes", ["one", "two"])
@pytest.mark.parametrize("objective", ["no contrast", "baseline"])
def test_accumulation_equals_the_large_batch(gradients, processes, objective):
    """L_g only: what L_c compares a clip with is its own pass (over all processes), and passes are not gathered."""
    assert_equal(gradients, f"{processes}/halves/{objective}", f"{processes}/whole/{objective}")


@pytest.mark.parametrize("objective", SHARDED)
def test_sharded_gradients_equal_replicated_ones(gradients, objective):
    assert_equal(gradients, f"two/sharded/{objective}", f"two/whole/{objective}")


@pytest.mark.parametrize("layout", ["one/whole", "two/whole", "two/sharded"])
def test_recomputed_activations_change_no_gradient(gradients, layout):
    assert_equal(gradients, f"{layout}/recomputed", f"{layout}/True-count")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four updates: in one process, in two."""
    root = tmp_path_factory.mktemp("trained")
    run("train", root, name="one")
    run("train", root, 2, name="two")
    return root


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Runs under FSDP (version 2, full shard) in two processes."""
    root = tmp_path_factory.mktemp("sharded")
    run("sharded", root, 2)
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(folder / "end")["weights"]


def state(folder: Path) -> dict:
    """The run's newest state whole (weights, optimizer, average, schedule, curve), but for the time that it took."""
    found = Checkpoints(folder / "states").load()
    assert found is not None
    return {k: v for k, v in found.items() if k != "seconds"}


def furthest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through dicts and lists; a tuple in a state may come back as a list from FSDP's."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_training_in_two_processes_ends_where_one_does(trained):
    """Adam divides by the size of the gradient, so entries near zero turn rounding into a step of lr: hence 1e-4."""
    assert furthest(weights(trained / "one"), weights(trained / "two")) < 1e-4


def test_sharded_training_and_its_state_taken_up_again_equal_replicated(trained, split):
    assert furthest(weights(trained / "two"), weights(split / "through")) < 1e-6
    assert same(state(split / "through"), state(split / "again"))


def test_validation_and_samples_change_no_bit_of_sharded_training(split):
    """The average stays where it began, far from the weights: a pass that still saw it would show."""
    rarely, often = state(split / "rarely"), state(split / "often")
    assert len(often["curve"]) == 4 > len(rarely["curve"])
    assert furthest(dict(enumerate(often["ema"])), dict(enumerate(often["model"].values()))) > 1e-3
    for part in ("model", "optimizer", "ema"):
        assert same(rarely[part], often[part]), part


def test_sharded_d_adaptation_equals_replicated(split):
    """No sum over shards is lost, also where a first dimension is odd (65 rows of `emb`) or 1 (`pos_embed_*`)."""
    shapes = [p.shape[0] for p in weights(split / "adapted ddp").values()]
    assert {1, 65} <= set(shapes)
    ddp, fsdp = state(split / "adapted ddp"), state(split / "adapted fsdp")
    a, b = (s["optimizer"]["param_groups"][0] for s in (ddp, fsdp))
    assert a["d"] > 3e-6, "it grew from 1e-6"
    assert b["d"] == pytest.approx(a["d"], rel=1e-6)
    assert b["numerator_weighted"] == pytest.approx(a["numerator_weighted"], rel=1e-6)
    assert furthest(weights(split / "adapted ddp"), weights(split / "adapted fsdp")) < 1e-6
    assert same(fsdp, state(split / "adapted again")), "a resumed run goes on with the sum, not with a share of it"


def test_d_adaptation_in_two_processes_equals_one(split, tmp_path):
    run("train", tmp_path, name="one", optimizer="dadapt_adam", steps=5)
    one, two = state(tmp_path / "one"), state(split / "adapted ddp")
    a, b = (s["optimizer"]["param_groups"][0] for s in (one, two))
    assert b["d"] == pytest.approx(a["d"], rel=1e-4)
    assert furthest(weights(tmp_path / "one"), weights(split / "adapted ddp")) < 1e-5


def audio(folder: Path) -> list[bytes]:
    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent))
    events.Reload()
    return [e.encoded_audio_string for e in events.Audio("train/music-0")]


def test_sharded_samples_are_the_replicated_ones(split):
    assert len(audio(split / "often")) == 2
    assert audio(split / "often") == audio(split / "often ddp")


def test_resume_in_two_processes_is_bit_identical(trained, tmp_path):
    """Once stopped, once with the process that is not the first killed within a step; other numbers of workers."""
    run("train", tmp_path, 2, name="two", stop=1)
    p = start("train", tmp_path, 2, name="two", num_workers=1, kill="step:3", kill_rank=1)
    said, _ = p.communicate(timeout=300)
    assert p.returncode != 0
    assert "SIGKILL" in said
    assert Checkpoints(tmp_path / "two" / "states").steps()[-1] == 2
    run("train", tmp_path, 2, name="two")
    assert same(weights(trained / "two"), weights(tmp_path / "two"))
    assert same(state(trained / "two"), state(tmp_path / "two"))


def test_another_number_of_processes_says_what_stays_equal(trained, tmp_path):
    run("train", tmp_path, 2, name="run", stop=2)
    run("train", tmp_path, name="run")
    (line,) = [t for t in load_state(tmp_path / "run" / "end")["said"] if "instead" in t]
    assert "1 processes, 4 batch_size" in line
    assert "instead of 2 processes, 2 batch_size" in line
    assert "stay equal" in line
    assert furthest(weights(trained / "one"), weights(tmp_path / "run")) < 1e-4


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_moment_ends_with_the_same_bits(tmp_path, seed):
    """Within steps, half-way through writing a state and before its renaming, with 0 to 2 loader workers."""
    rng = random.Random(seed)
    places = ["step", "save", "step", "rename", "step"]
    plan = ",".join(f"{p}:{rng.randint(1, 3 if p == 'step' else 2)}:{rng.randint(0, 2)}" for p in places)
    run("killed", tmp_path, plan=plan)
    assert same(weights(tmp_path / "through"), weights(tmp_path / "killed"))
    assert same(state(tmp_path / "through"), state(tmp_path / "killed"))
    assert all(p.name.startswith("step-") for p in (tmp_path / "killed" / "states").iterdir()), "nothing is left over"


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_one_process_saves_and_exits_with_0(tmp_path, processes):
    p = start("train", tmp_path, processes, name="stopped", steps=1000)
    folder = tmp_path / "stopped"
    states, pid = Checkpoints(folder / "states"), folder / f"pid-{processes - 1}"
    deadline = time.monotonic() + 120
    while not states.steps() and p.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(pid.read_text()), signal.SIGTERM)
    said, _ = p.communicate(timeout=120)
    assert p.returncode == 0, said[-3000:]
    assert 2 <= max(states.steps()) < 1000
    assert len(list(folder.glob("preempted-*"))) == processes, "every process stopped in order"
    assert not (folder / "end").exists()


def test_stage_1_of_two_processes_is_told_apart_by_its_bits(tmp_path):
    """Runs whose stage 1 has other bits are no pair (`vmas.experiments.assemble`): also those of several processes."""
    demo.run(tmp_path, 2)
    (model,) = tmp_path.glob("model-2")
    training = checkpoint.read_manifest(model)["training"]
    assert training["processes"] == 2
    shas = [training[stage]["state_sha256"] for stage in ("motion", "music")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in shas)
    assert len(set(shas)) == 2
