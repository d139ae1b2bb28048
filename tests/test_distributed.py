"""Two processes on CPU compute what one does: losses, gradients, trained weights, sharded or not; and exact resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vmas.training.state import Checkpoints, load_state

WORKER = str(Path(__file__).with_name("distributed_worker.py"))
pytestmark = pytest.mark.slow


def command(case: str, out: Path, processes: int, **options) -> list[str]:
    python = [sys.executable]
    if processes > 1:
        # what `accelerate launch --config_file examples/launch/cpu2.yaml` starts, without its start-up time
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    options.setdefault("world", processes)
    return [*python, WORKER, case, str(out), *(f"{k}={v}" for k, v in options.items())]


def start(case: str, out: Path, processes: int = 1, env: dict | None = None, **options) -> subprocess.Popen:
    out.mkdir(parents=True, exist_ok=True)
    full = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **(env or {})}
    line = command(case, out, processes, **options)
    return subprocess.Popen(line, env=full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(case: str, out: Path, processes: int = 1, env: dict | None = None, **options) -> None:
    p = start(case, out, processes, env, **options)
    said, _ = p.communicate(timeout=300)
    assert p.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    root = tmp_path_factory.mktemp("gradients")
    run("gradients", root / "two", 2)
    run("gradients", root / "whole")
    run("gradients", root / "halves", parts=2)
    return root


def near(a: dict, b: dict) -> float:
    """Largest difference of two sets of gradients, relative to the largest gradient."""
    assert a.keys() == b.keys()
    scale = max(float(g.abs().max()) for g in a.values())
    assert scale > 1e-3
    return max(float((a[k] - b[k]).abs().max()) for k in a) / scale


@pytest.mark.parametrize("normalise", ["count", "weight"])
def test_two_processes_with_the_gathered_contrast_equal_the_whole_batch(gradients, normalise):
    two, one = (load_state(gradients / which / f"True-{normalise}") for which in ("two", "whole"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert near(two["grads"], one["grads"]) < 1e-6


def test_two_processes_with_the_local_contrast_equal_two_halves(gradients):
    two, one = (load_state(gradients / which / "False-count") for which in ("two", "halves"))
    whole = load_state(gradients / "whole" / "False-count")
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert near(two["grads"], one["grads"]) < 1e-6
    assert abs(whole["loss"] - one["loss"]) > 1e-3, "the local contrast has fewer candidates: another loss"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four updates: in one process, in two, accumulated, sharded."""
    root = tmp_path_factory.mktemp("trained")
    run("train", root / "one")
    run("train", root / "two", 2)
    return root


def weights(folder: Path, name: str = "end") -> dict[str, torch.Tensor]:
    return load_state(folder / name)["weights"]


def furthest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_in_two_processes_ends_where_one_does(trained):
    """Adam divides by the size of the gradient, so entries near zero turn rounding into a step of lr: hence 1e-4."""
    assert furthest(weights(trained / "one"), weights(trained / "two")) < 1e-4


def test_sharded_equals_replicated(trained, tmp_path):
    """FSDP (version 2, full shard) on two processes, and its checkpoint taken up again, equal DDP."""
    env = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block,EncoderBlock",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    run("train", tmp_path / "through", 2, env, sharded=1)
    run("train", tmp_path / "again", 2, env, sharded=1, stop=2)
    run("train", tmp_path / "again", 2, env, sharded=1)
    assert load_state(tmp_path / "through" / "end")["sharded"] is True
    assert load_state(trained / "two" / "end")["sharded"] is False
    assert furthest(weights(trained / "two"), weights(tmp_path / "through")) < 1e-4
    assert furthest(weights(tmp_path / "through"), weights(tmp_path / "again")) < 1e-6


def test_resume_in_two_processes_is_bit_identical(trained, tmp_path):
    run("train", tmp_path, 2, stop=1)
    run("train", tmp_path, 2, workers=1)
    assert same(weights(trained / "two"), weights(tmp_path))
    assert load_state(tmp_path / "end")["curve"] == load_state(trained / "two" / "end")["curve"]


def test_another_number_of_processes_says_what_stays_equal(trained, tmp_path):
    run("train", tmp_path, 2, stop=2)
    run("train", tmp_path)
    (line,) = load_state(tmp_path / "end")["said"]
    assert "1 processes, 4 batch_size" in line
    assert "instead of 2 processes, 2 batch_size" in line
    assert "stay equal" in line
    assert furthest(weights(trained / "one"), weights(tmp_path)) < 1e-4


def test_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    run("train", tmp_path / "through", steps=12)
    states = Checkpoints(tmp_path / "killed" / "run" / "states")
    for kill_at in (2, 6):
        p = start("train", tmp_path / "killed", steps=12)
        deadline = time.monotonic() + 120
        while not any(s >= kill_at for s in states.steps()) and p.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        p.kill()
        p.communicate()
    run("train", tmp_path / "killed", steps=12)
    assert same(weights(tmp_path / "through"), weights(tmp_path / "killed"))


def test_sigterm_saves_and_exits_with_0(tmp_path):
    run("train", tmp_path / "through", steps=40)
    p = start("train", tmp_path / "stopped", steps=40)
    states = Checkpoints(tmp_path / "stopped" / "run" / "states")
    while not states.steps() and p.poll() is None:
        time.sleep(0.01)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=120)
    assert p.returncode == 0
    assert 2 <= max(states.steps()) < 40
    assert not (tmp_path / "stopped" / "end").exists()
    run("train", tmp_path / "stopped", steps=40)
    assert same(weights(tmp_path / "through"), weights(tmp_path / "stopped"))
