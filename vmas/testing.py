"""`./reproduce.sh test`: the test suite, a file at a time on two cores, then every notebook against its stored outputs.

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
    if argv:
        return subprocess.call([*pytest, *argv], cwd=paths.ROOT, env=env)
    notebooks = [
        "--nbval",
        "--nbval-current-env",
        "--nbval-cell-timeout=600",
        "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
        "notebooks",
    ]
    # Most of a test's time is one thread's: two files at once, each on one thread.
    both = ["-n", "2", "--dist", "loadfile"] if (os.cpu_count() or 1) > 1 else []
    codes = [
        subprocess.call([*pytest, *both, "-q", "--durations=15"], cwd=paths.ROOT, env={**env, "OMP_NUM_THREADS": "1"}),
        subprocess.call([*pytest, *notebooks], cwd=paths.ROOT, env=env),
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
