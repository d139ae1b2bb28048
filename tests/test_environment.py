"""The lock, environment.yml and reproduce.sh agree with each other."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from vmas import paths, pins

LOCK = paths.ROOT / "requirements.lock"
NEEDS_NO_DEPS = {"audiocraft", "tinysoundfont"}  # their own pins cannot be met; setup adds them


def conda():
    return yaml.safe_load((paths.ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_environment_yml_holds_the_pins_of_the_lock():
    (pip,) = [d["pip"] for d in conda()["dependencies"] if isinstance(d, dict)]
    lines = sorted(line.replace(" ", "") for line in pip)
    expected = [
        f"{name}=={version}" + (f";{marker}" if marker else "")
        for name, version, marker in pins.read_pins(LOCK)
        if name not in NEEDS_NO_DEPS
    ]
    assert lines == sorted(e.replace(" ", "") for e in expected)


def test_environment_yml_python_is_supported():
    (python,) = [d for d in conda()["dependencies"] if isinstance(d, str) and d.startswith("python=")]
    assert python == "python=3.11"


def test_lock_has_hashes_and_names_no_index():
    text = LOCK.read_text(encoding="utf-8")
    assert "index-url" not in text
    assert "find-links" not in text
    assert "://" not in text
    blocks = text.split("\n")
    pinned = [i for i, line in enumerate(blocks) if "==" in line and not line.startswith((" ", "#"))]
    assert len(pinned) == len(pins.read_pins(LOCK))
    assert all("--hash=sha256:" in blocks[i + 1] for i in pinned)


def test_this_environment_satisfies_the_pins():
    assert pins.differences(LOCK) == []


def test_differences_are_named(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("numpy==0.0.1 \\\n    --hash=sha256:00\nno-such-thing==1 ; sys_platform == 'none'\nnot-there==2\n")
    got = pins.differences(lock)
    assert [line.split(":")[0] for line in got] == ["numpy", "not-there"]


def test_local_build_tag_is_no_difference(monkeypatch):
    monkeypatch.setattr(pins.metadata, "version", lambda name: "2.11.0+cpu")
    assert pins.applicable([("torch", "2.11.0", "")]) == {"torch": "2.11.0"}


def shell(*args, **env):
    return subprocess.run(
        ["bash", str(paths.ROOT / "reproduce.sh"), *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
    )


def active():
    return {"VMAS_NO_VENV": "1", "VIRTUAL_ENV": sys.prefix}


def test_reproduce_sh_is_short_and_clean():
    text = (paths.ROOT / "reproduce.sh").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    shellcheck = shutil.which("shellcheck", path=os.path.dirname(sys.executable)) or shutil.which("shellcheck")
    assert shellcheck, "shellcheck comes with the dev extra"
    subprocess.run([shellcheck, str(paths.ROOT / "reproduce.sh"), str(paths.ROOT / ".ci" / "run")], check=True)


def test_setup_reuses_the_active_environment():
    got = shell("list", **active())
    assert got.returncode == 0, got.stderr
    assert "table3" in got.stdout


UV = """#!/bin/sh
echo "$*" >> calls
if [ "$1" = venv ]; then mkdir -p .venv/bin; ln -sf "{python}" .venv/bin/python; fi
if [ -e broken ]; then exit 3; fi
"""


@pytest.fixture
def newcomer(tmp_path):
    """reproduce.sh in an empty clone with a small lock, and a stand-in for uv that keeps what it is called with."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "vmas").mkdir()
    for name in ("reproduce.sh", "pyproject.toml", "vmas/pins.py"):
        shutil.copy(paths.ROOT / name, tmp_path / name)
    (tmp_path / "requirements.lock").write_text(f"pyyaml=={yaml.__version__} \\\n    --hash=sha256:0\n")
    uv = tmp_path / "bin" / "uv"
    uv.write_text(UV.format(python=sys.executable))
    uv.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.path.dirname(sys.executable), "/usr/bin", "/bin"])

    def start(**env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        """A setup, and what uv was asked for in it."""
        log = tmp_path / "calls"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["./reproduce.sh", "setup"], cwd=tmp_path, env={"PATH": path, **env}, capture_output=True, text=True
        )
        return done, log.read_text().splitlines() if log.is_file() else []

    return tmp_path, start


def test_setup_makes_the_environment_once_and_again_when_the_lock_changes(newcomer):
    root, start = newcomer
    done, asked = start()
    assert done.returncode == 0, done.stderr
    assert [a.split()[0] for a in asked] == ["venv", "pip", "pip"]
    assert "--require-hashes -r requirements.lock -p .venv/bin/python" in asked[1]
    assert "Environment ready" in done.stdout
    done, asked = start()
    assert (done.returncode, asked) == (0, []), "nothing to do"
    with open(root / "requirements.lock", "a") as f:
        f.write("# another pin\n")
    assert [a.split()[0] for a in start()[1]] == ["venv", "pip", "pip"]


def test_setup_that_fails_says_so_and_is_not_taken_for_done(newcomer):
    root, start = newcomer
    (root / "broken").touch()
    done, _ = start()
    assert done.returncode == 1
    assert "the environment could not be made" in done.stderr
    assert not (root / ".venv" / "stamp").exists()
    (root / "broken").unlink()
    assert start()[0].returncode == 0


def test_an_active_environment_that_satisfies_the_pins_is_used_as_it_is(newcomer):
    root, start = newcomer
    done, asked = start(VIRTUAL_ENV=sys.prefix)
    assert (done.returncode, asked) == (0, [])
    assert not (root / ".venv").exists()
    (root / "requirements.lock").write_text("pyyaml==0.1 \\\n    --hash=sha256:0\n")
    done, asked = start(VIRTUAL_ENV=sys.prefix)
    assert [a.split()[0] for a in asked] == ["venv", "pip", "pip"], "one that does not is left alone"
    done, asked = start(VIRTUAL_ENV=sys.prefix, VMAS_NO_VENV="1")
    assert [a.split()[0] for a in asked] == ["pip", "pip"], "installed into the active one"
    assert done.returncode == 1  # the stand-in installs nothing
    assert "differs from the pins" in done.stderr


def test_unknown_target_exits_2_and_names_the_nearest():
    got = shell("tabel3", **active())
    assert got.returncode == 2
    assert "table3" in got.stderr
    assert "Traceback" not in got.stderr


@pytest.mark.parametrize("module", ["vmas", "vmas.config", "vmas.cli"])
def test_light_imports_pull_in_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'librosa' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
