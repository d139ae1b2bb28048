"""The command line as a user meets it: help, exit codes, one line per error, options that reach their place."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmas import cli
from vmas.errors import UsageError
from vmas.experiments import registry

ROOT = Path(__file__).parents[1]
COMMANDS = [
    ["generate"],
    ["evaluate"],
    ["train"],
    ["reproduce"],
    ["corpus", "make"],
    ["weights", "list"],
    ["weights", "fetch"],
    ["weights", "verify"],
]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


def one_line_error(err: str) -> str:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_help_names_every_command_and_nothing_unfinished(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("generate", "evaluate", "corpus", "dataset", "train", "reproduce", "weights"):
        assert f"\n  {name} " in out
    assert "vmas reproduce table3" in out
    for later in ("demo", "study"):
        assert f"\n  {later} " not in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "Usage: vmas " + " ".join(command) in out
    if command != ["weights", "list"]:
        assert "xample: vmas" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nonsense"], "nonsense"),
        (["generate"], "videos"),
        (["reproduce", "table3", "--seed", "x"], "--seed"),
        (["reproduce", "table3", "--seed", "-1"], "--seed"),
        (["reproduce", "table3", "--profile", "mnii"], "did you mean mini"),
        (["reproduce", "tabel3"], "did you mean table3"),
        (["reproduce", "fig8"], "planned, not available yet; available now: table1, table3"),
        (["reproduce", "table3", "--profile", "none.yaml"], "no such config file"),
        (["train", "--profile", "smoke", "--set", "train.stepz=3", "-o", "x"], "did you mean steps"),
        (["train", "--profile", "smoke", "--set", "train.steps", "-o", "x"], "KEY=VALUE"),
        (["train", "--profile", "smoke", "--set", "train.steps=3"], "-o"),
        (["corpus", "make", "--profile", "smoke", "--split", "tset"], "did you mean test"),
        (["weights", "fetch", "vgish"], "did you mean vggish"),
        (["weights", "verify", "vgish"], "did you mean vggish"),
    ],
)
def test_wrong_command_is_one_line_and_exit_2(capsys, argv, says, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert says in one_line_error(err)
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["generate", "none.mp4", "--checkpoint", "nowhere"], "no checkpoint here"),
        (["evaluate", "--videos", "none", "--audio", "none"], "no such folder"),
        (["reproduce", "table3", "--profile", "paper"], "paper"),
        (["weights", "verify", "vggish"], "vmas weights fetch vggish"),
    ],
)
def test_failure_is_one_line_and_exit_1(capsys, argv, says, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *argv)
    assert code == 1
    assert says in one_line_error(err)


def test_debug_shows_the_error_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="table3"):
        cli.main(["reproduce", "tabel3", "--debug"])


def test_unexpected_errors_are_one_line_too(capsys, monkeypatch):
    from vmas.experiments import registry

    def broken():
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(registry, "listing", broken)
    code, _, err = run(capsys, "reproduce", "list")
    assert code == 1
    assert "unexpected ZeroDivisionError: a b" in one_line_error(err)


def test_ctrl_c_says_how_to_resume(capsys, monkeypatch):
    from vmas.experiments import registry

    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "listing", stopped)
    code, _, err = run(capsys, "reproduce", "list")
    assert code == 130
    assert "give the same command to go on" in err


def test_list_tells_available_from_planned(capsys):
    code, out, _ = run(capsys, "reproduce", "list")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:] if line[0] != " "]  # the others go on with a description
    state = {name: rest[0] for name, *rest in rows}
    assert state["table3"] == "available"
    assert state["fig8"] == state["fig3"] == "planned"
    assert set(state) == {*registry.REGISTRY, "all"}


def test_list_names_the_notebooks_and_fits_the_terminal(capsys):
    _, out, _ = run(capsys, "reproduce", "list")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    told = {line.split()[0]: line.split()[2] for line in lines[1:] if line[0] != " "}
    assert told == {**{t.name: t.notebook or "-" for t in registry.REGISTRY.values()}, "all": "-"}
    text = " ".join(out.split())
    for t in registry.REGISTRY.values():  # wrapped, but whole
        assert f"{t.title}: {t.description}" in text


def test_version(capsys):
    from vmas import __version__

    assert run(capsys, "--version")[:2] == (0, f"{__version__}\n")


def test_weights_list_gives_source_and_licence(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    (tmp_path / "vggish-10086976.pth").write_bytes(b"x")
    code, out, _ = run(capsys, "weights", "list")
    assert code == 0
    line = next(x for x in out.splitlines() if x.startswith("vggish"))
    assert "present" in line
    assert "Apache-2.0" in line
    assert next(x for x in out.splitlines() if x.startswith("musicgen_medium")).split()[1] == "absent"
    assert str(tmp_path) in out


def test_overrides():
    assert cli.overrides(["train.steps=3", "train.lr=1e-3", "note=a b", "decoder.time_bias_s=null"]) == {
        "train": {"steps": 3, "lr": 1e-3},
        "note": "a b",
        "decoder": {"time_bias_s": None},
    }
    assert cli.overrides([]) == {}
    for bad in ("steps", "=3", "a..b=1", "a=[1"):
        with pytest.raises(UsageError, match="--set"):
            cli.overrides([bad])


def test_corpus_make_of_one_clip(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "cache"))
    argv = ["corpus", "make", "--profile", "smoke", "--clip", "test-00001", "-o", str(tmp_path / "clips"), "-q"]
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert out.strip().endswith("manifest.parquet")
    assert (tmp_path / "clips" / "test" / "test-00001.mp4").stat().st_size > 10_000
    assert not (tmp_path / "cache").exists()


def heavy_after(code: str) -> set[str]:
    heavy = "torch librosa audiocraft transformers cv2 av pandas scipy matplotlib seaborn numba papermill numpy"
    program = f"{code}\nimport sys\nprint(*[m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split() if done.stdout.splitlines() else [])


def test_help_and_list_import_nothing_heavy():
    assert heavy_after("from vmas.cli import main; main(['--help'])") == set()
    assert heavy_after("from vmas.cli import main; main(['reproduce', 'list'])") == set()


def test_help_costs_little_processor_time():
    """Processor and not wall time, so that a busy machine fails nothing."""
    before = os.times()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vmas", "--help"], cwd=ROOT, capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.0, f"{spent:.2f} s of processor time, {time.perf_counter() - start:.2f} s of wall time"


def test_module_exits_with_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "vmas", "reproduce", "tabel3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
