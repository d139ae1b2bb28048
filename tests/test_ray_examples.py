"""examples/ray: Ray takes the cluster file, the Slurm script starts head, workers and build in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vmas import paths

RAY = paths.ROOT / "examples" / "ray"
BIN = Path(sys.executable).parent
# Stand-ins that keep what they were called with. `srun` runs the command; a node of the cluster stays till it is ended.
TOOLS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "srun": 'for a in "$@"; do case $a in --nodelist=*) export NODE=${a#*=};; esac; done;'
    ' while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "${NODE:-login} ray $*" >> calls; if [ "$1" = start ]; then echo $$ >> pids; exec sleep 300; fi;'
    ' if [ "$1" = health-check ] && [ ! -e up ]; then touch up; exit 1; fi',
    "vmas": 'echo "$NODE vmas $*" >> calls; while [ "$(wc -l < pids)" -lt 3 ]; do sleep 0.05; done; exit "${CODE:-0}"',
}


def test_the_folder_holds_what_its_readme_names():
    readme = (RAY / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w.]+\.\w+)` \|", readme, re.MULTILINE)) == {
        p.name for p in RAY.iterdir() if p.name != "README.md"
    }


@pytest.mark.slow  # Ray takes long to import
def test_ray_takes_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((RAY / "cluster.yaml").read_text(encoding="utf-8"))
    whole = prepare_config(config)
    validate_config(whole)
    assert len(config["provider"]["worker_ips"]) == config["max_workers"]
    assert "--head" in whole["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP" in whole["worker_start_ray_commands"][-1]


@pytest.fixture
def job(tmp_path):
    for name, body in TOOLS.items():
        tool = tmp_path / name
        tool.write_text(f"#!/usr/bin/env bash\n{body}\n")
        tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VMAS_WAIT": "0"}
    env |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_ID": "17"}
    env |= {"SLURM_CPUS_PER_TASK": "92", "SLURM_GPUS_ON_NODE": "8"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess:
        line = ["bash", str(RAY / "slurm_ray.sbatch"), *arguments]
        return subprocess.run(line, env=env | more, capture_output=True, text=True, timeout=60)

    return run


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("code", [0, 1])
def test_slurm_job_starts_the_cluster_builds_and_ends_it(job, tmp_path, code):
    done = job("--manifest", "v.csv", "--out", "o", CODE=str(code))
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    limits = "--num-cpus 92 --num-gpus 8 --block"
    assert sorted(calls) == sorted(
        [
            "login ray get-auth-token --generate",
            f"node1 ray start --head --port=20017 --include-dashboard=false {limits}",
            "node1 ray health-check --address node1:20017",
            "node1 ray health-check --address node1:20017",  # it was not up at first
            f"node2 ray start --address=node1:20017 {limits}",
            f"node3 ray start --address=node1:20017 {limits}",
            "node1 vmas dataset build --backend ray --address node1:20017 --manifest v.csv --out o",
        ]
    )
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert not any(alive(p) for p in pids)


def test_slurm_script_is_shellcheck_clean():
    shellcheck = BIN / "shellcheck"
    assert shellcheck.exists(), "shellcheck comes with the dev extra"
    done = subprocess.run([shellcheck, RAY / "slurm_ray.sbatch"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
