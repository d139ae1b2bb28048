"""The builder on Ray: the bytes of the local pool, deaths and errors, and that nobody else waits for Ray."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_files import broken, content, options
from dataset_work import Striking, threads

from vmas import cli
from vmas.dataset.build import build
from vmas.dataset.cluster import Ray
from vmas.dataset.manifest import Video, read_manifest
from vmas.dataset.stages import Clip, Tools
from vmas.dataset.tasks import Block, Make, ShardTask
from vmas.errors import DataError, UsageError
from vmas.pools import processes

STORE = 100_000_000  # bytes; Ray's default is a third of the memory


@pytest.fixture(scope="module")
def videos(root):
    return broken(root, read_manifest(root / "videos.csv"), 1)


@pytest.fixture(scope="module")
def started():
    """Ray on two cores: one for CPU tasks, one for the process with the models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # its processes read dataset_work
        with Ray(workers=1, actors=1, object_store=STORE) as ray:
            yield ray


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 0])
def test_bytes_are_those_of_the_local_pool(root, videos, started, tmp_path, actors):
    o = options(root, test=1, skip=() if actors else ("vocals", "genre"))  # every stage, once
    here = build(videos, tmp_path / "here", o, workers=1, progress=False)
    ray = Ray(workers=1, actors=actors, block=2)  # shards of 3 clips: a full block and half of one
    there = build(videos, tmp_path / "there", o, progress=False, backend=ray)
    assert content(there.out) == content(here.out)
    assert there.ledger == here.ledger
    assert {r.id for r in there.ledger if r.kind == "failed"} == {"bad0"}
    assert there.seconds.keys() == here.seconds.keys()
    assert len([f for f in content(there.out) if f.endswith(".tar")]) == 5  # 12 clips to train on, 2 to test


RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from dataset_files import options
from vmas.dataset.build import build
from vmas.dataset.cluster import Ray
from vmas.dataset.manifest import read_manifest
from pathlib import Path

class Killed(Ray):
    # The driver dies when the record of a task has come and before the next: of a phase and after so many.
    def run(self, job, tasks, tools):
        for n, found in enumerate(super().run(job, tasks, tools)):
            if type(job).__name__ == sys.argv[5] and n == int(sys.argv[6]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:3])
    o = options(root, test=1, skip=("vocals", "genre", "tokens", "beats"))
    ray = Killed(workers=1, object_store=int(sys.argv[4]))
    build(read_manifest(root / "videos.csv"), out, o, progress=False, backend=ray)
"""
FAST = ("vocals", "genre", "tokens", "beats")


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "after", "marked"), [("Screen", 0, 0), ("Make", 2, 2)])
def test_kill_9_of_the_driver_in_either_phase_and_restart(root, tmp_path, phase, after, marked):
    out, new = tmp_path / "out", tmp_path / "new"
    line = [sys.executable, "-c", RUN, str(root), str(out), str(Path(__file__).parent), str(STORE), phase, str(after)]
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=400)
    assert done.returncode == -9
    assert not (out / "dataset.json").exists()
    records = [p.name for p in (out / ".build").glob("*.json") if p.name.startswith(("train", "test"))]
    assert len(records) == marked  # begun, and far from done: there are five shards
    assert (out / "train").is_dir() == (phase == "Make")
    o, rows = options(root, test=1, skip=FAST), read_manifest(root / "videos.csv")
    build(rows, out, o, workers=1, progress=False)
    assert content(out) == content(build(rows, new, o, workers=1, progress=False).out)
    assert len([f for f in content(new) if f.endswith(".tar")]) == 5


@pytest.mark.slow
def test_a_killed_process_costs_its_block_another_try(root, started, tmp_path):
    def run(path):
        items = [Video(f"v{i}", "", f"v{i}") for i in range(3)] + [Video("killer", str(path), "killer")]
        return dict(Ray(workers=1, actors=1, block=1).run(Striking(), [Block(items)], Tools(options(root))))

    assert sorted(run(tmp_path)[0]["known"]) == ["killer", "v0", "v1", "v2"]
    assert (tmp_path / "died").exists()
    with pytest.raises(DataError, match="died three times"):
        run(tmp_path / "none")


@pytest.mark.slow
def test_what_stops_a_task_comes_back_in_one_line(root, videos, started, tmp_path):
    tools = Tools(options(root, skip=("vocals", "genre", "tokens", "beats")))
    task = ShardTask(str(tmp_path / "no folder" / "shard-000000.tar"), [Clip(videos[0], 0.0, {})])
    with pytest.raises(DataError, match=r"shard-000000\.tar: cannot be written: No such file"):
        list(Ray(workers=1).run(Make(), [task], tools))


def test_a_process_of_ray_stays_on_one_thread(root):
    spec = pickle.dumps((Striking(), options(root), "cpu"))
    with processes(1) as pool:
        found = pool.submit(threads, spec, None).result()
    assert set(found) == {1}


def test_nobody_else_imports_ray():
    code = "import sys, vmas.dataset.build, vmas.dataset.cluster, vmas.dataset.cli; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_extra_is_one_line(root, videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'vmas\[ray\]', or use --backend local"):
        build(videos, tmp_path / "out", options(root), progress=False, backend=Ray())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--backend", "rey"], "did you mean ray"),
        (["--actors", "2"], "need --backend ray"),
        (["--backend", "local", "--address", "auto"], "need --backend ray"),
        (["--backend", "ray", "--device", "cuda"], "needs --actors"),
    ],
)
def test_options_that_do_not_fit_are_refused(root, tmp_path, capsys, more, said):
    line = ["dataset", "build", "--manifest", str(root / "videos.csv"), "--out", str(tmp_path / "out"), *more]
    assert cli.main(line) == 2
    assert said in capsys.readouterr().err
