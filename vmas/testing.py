"""`./reproduce.sh test`: the test suite, a file at a time on two cores, then every notebook against its stored outputs,
two at a time.

Arguments go to pytest; with any, only pytest runs (`./reproduce.sh test -m "not slow"`).
"""

import os
import subprocess
import sys

from vmas import paths


def main(argv: list[str]) -> int:
    """Run both suites; the exit code is 0 only when both pass."""
    env = {**os.environ, "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"}
    pytest = [sys.executable, "-m", "pytest"]
    # Most of a test's time is one thread's: two files at once, each on one thread.
    # Files in the order that tests/conftest.py gives them.
    both = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"] if (os.cpu_count() or 1) > 1 else []
    single = {**env, "OMP_NUM_THREADS": "1"}
    if argv:
        many = both if "-m" in argv and "-n" not in argv else []  # a choice of files starts faster in one process
        return subprocess.call([*pytest, *many, *argv], cwd=paths.ROOT, env=single if many else env)
    notebooks = [
        "--nbval",
        "--nbval-current-env",
        "--nbval-cell-timeout=600",
        "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
        *(["-n", "2", "--dist", "loadscope"] if both else []),  # a notebook's cells stay together
        "notebooks",
    ]
    codes = [
        subprocess.call([*pytest, *both, "-q", "--durations=15"], cwd=paths.ROOT, env=single),
        subprocess.call([*pytest, *notebooks], cwd=paths.ROOT, env=env),
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
