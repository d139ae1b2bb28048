"""The package is clean for the linter and the type checker."""

import subprocess
import sys

import pytest

from vmas import paths


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyrefly", "check"]], ids=" ".join
)
def test_clean(command):
    got = subprocess.run([sys.executable, "-m", *command], cwd=paths.ROOT, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout[-2000:] + got.stderr[-1000:]
