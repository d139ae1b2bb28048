"""Memory of a run on the CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h


def keep_freed() -> bool:
    """Let the C library keep what a step frees for the next step; True where it could be told so (glibc).

    By default it hands every large block back to the system, which then clears it again page by page, a tenth of a
    training step of the mini profile (benchmarks/bench_train_step.py) and a sixth of an evaluation. The process keeps
    its peak instead.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
