"""What a target finds and what it makes again: checkpoints of other settings or altered, impossible sizes, Ctrl-C."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vmas import checkpoint, cli, config, paths, pipeline
from vmas.errors import CheckpointError, ConfigError, UsageError
from vmas.experiments import evaluate
from vmas.pools import processes

MINI = config.load("mini")
NAMES = ("codec", "tagger", "vmas-seed0")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The committed checkpoints of mini in a cache of their own, and an empty corpus."""
    root = tmp_path / "checkpoints" / "mini"
    for name in NAMES:
        shutil.copytree(paths.checkpoints("mini") / name, root / name)
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(paths, "checkpoints", lambda _: root)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_checkpoints_are_those_of_the_profile(name):
    assert pipeline.stale(paths.checkpoints("mini") / name, MINI) == ""


@pytest.mark.parametrize(
    ("section", "change", "whose"),
    [
        ("train", {"steps": 7}, {"vmas-seed0"}),
        ("train", {"val_every": 7, "checkpoint_every": 3}, set()),
        ("sampling", {"guidance": 1.0}, set()),
        ("corpus", {"seed": 7}, {"vmas-seed0"}),
        ("codec", {"train_steps": 7}, {"codec", "vmas-seed0"}),
        ("eval", {"tagger_steps": 7}, {"tagger"}),
        ("eval", {"bootstrap": 7}, set()),
    ],
)
def test_other_settings_make_what_depends_on_them_stale(section, change, whose):
    other = dataclasses.replace(MINI, **{section: dataclasses.replace(getattr(MINI, section), **change)})
    found = {n for n in NAMES if pipeline.stale(paths.checkpoints("mini") / n, other)}
    assert found == whose


def test_another_codec_makes_what_was_trained_on_its_tokens_stale(copied):
    state, manifest = checkpoint.load(copied / "codec")
    checkpoint.save(copied / "codec", {k: v + 1 for k, v in state.items()}, "codec", manifest["config"])
    assert pipeline.stale(copied / "codec", MINI) == ""
    for name in ("tagger", "vmas-seed0"):
        assert "another codec" in pipeline.stale(copied / name, MINI)


def test_a_stale_one_is_made_again_in_the_cache_and_refused_among_the_committed(copied, monkeypatch):
    other = dataclasses.replace(MINI, train=dataclasses.replace(MINI.train, steps=7))
    said = []
    assert pipeline._to_make(copied / "vmas-seed0", other, said.append)
    assert "other settings" in said[0]
    monkeypatch.setenv("VMAS_CACHE", str(copied / "elsewhere"))
    with pytest.raises(CheckpointError, match="made with other settings"):
        pipeline.ensure(other, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_altered_weights_stop_a_target_before_any_work(copied, tmp_path, name, capsys):
    weights = copied / name / checkpoint.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert cli.main(["reproduce", "table3", "-q"]) == 1
    err = capsys.readouterr().err
    assert err.count("error") == 1
    assert f"{name}/{checkpoint.WEIGHTS}" in err.replace(os.sep, "/")
    assert "sha256" in err
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("change", [{"decoder": {"heads": 5}}, {"encoder": {"pool": [[3, 3], [2, 2], [2, 2]]}}])
def test_impossible_sizes_stop_before_any_work(change, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    profile = config.load("smoke", change)
    for start in (pipeline.ensure, pipeline.train):
        with pytest.raises((ConfigError, UsageError)):  # exit code 2 either way
            start(profile, progress=False)
    assert not list(tmp_path.iterdir())


def test_settings_that_models_share_are_refused(tmp_path, capsys):
    line = ["train", "--profile", "smoke", "-o", str(tmp_path / "m"), "--set"]
    for setting in ("corpus.seed=3", "codec.bins=32"):
        assert cli.main([*line, setting]) == 2
        assert "profile of your own" in capsys.readouterr().err


def _hears_ctrl_c() -> None:
    """In a child before it starts: as in a terminal, also where the tests themselves run with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(line: list[str], seconds: float, env) -> tuple[int, str]:
    """Exit code and stderr of a command that gets Ctrl-C, as a terminal sends it: to the whole group."""
    with subprocess.Popen(
        line, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_hears_ctrl_c
    ) as process:
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, err


# while the workers import, and while they work
@pytest.mark.parametrize("seconds", [1.5, pytest.param(6.0, marks=pytest.mark.slow)])
def test_ctrl_c_of_a_corpus_is_one_line(tmp_path, seconds):
    env = {**os.environ, "VMAS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "vmas", "corpus", "make", "--profile", "mini", "--split", "train", "-q"]
    code, err = _interrupted(line, seconds, env)
    assert code == 130
    assert "Traceback" not in err
    assert "give the same command to go on" in err
    half = [p for p in tmp_path.rglob("*") if p.name.startswith(".") and p.suffix == ".mp4"]
    assert not half


WAIT = """
import time
import numpy as np
from vmas.pools import processes

def nap(_):
    time.sleep(30)

if __name__ == "__main__":
    with processes(2) as pool:
        print("ready", flush=True)
        list(pool.map(nap, range(2)))
"""


def test_workers_do_not_hear_ctrl_c(tmp_path):
    """Only the parent ends by it; the workers end because it does."""
    script = tmp_path / "wait.py"
    script.write_text(WAIT.replace("time.sleep(30)", "time.sleep(1)"))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hears_ctrl_c,
        env={**os.environ, "PYTHONPATH": str(paths.ROOT)},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err.count("Traceback") <= 1, err  # the script's own KeyboardInterrupt, which nobody catches here
    assert "spawn_main" not in err
    assert "KeyboardInterrupt" in err.strip().splitlines()[-1]


PIDS = """
import os, time
from vmas.pools import processes

def nap(_):
    time.sleep(0.5)
    return os.getpid()

if __name__ == "__main__":
    with processes(2) as pool:
        print(*set(pool.map(nap, range(4))), flush=True)
        list(pool.map(nap, range(1000)))
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "pids.py"
    script.write_text(PIDS)
    env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
        assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_workers_have_the_environment_of_the_moment(tmp_path, monkeypatch):
    for value in (str(tmp_path / "first"), str(tmp_path / "second")):
        monkeypatch.setenv("VMAS_CACHE", value)
        with processes(2) as pool:
            assert set(pool.map(os.getenv, ["VMAS_CACHE"] * 3)) == {value}


def test_cores_are_those_that_this_process_may_use():
    code = "import os, vmas.pools as p; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(p.cores())"
    env = {k: v for k, v in os.environ.items() if k != "LOKY_MAX_CPU_COUNT"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "1\n"


def test_workers_work_and_are_gone_after_the_block():
    with processes(2) as pool:
        assert sorted(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
        children = list(pool._processes.values())
        assert len(children) == 2
    assert not any(c.is_alive() for c in children)
    with evaluate.Evaluator(None, 32000, workers=2) as judge:
        assert judge.pool is not None
    assert judge.pool is None
