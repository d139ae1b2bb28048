"""Worker processes, in one way everywhere: spawned, deaf to Ctrl-C, gone when the block ends."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any


@contextlib.contextmanager
def processes(count: int | None = None, initializer: Callable[[], Any] | None = None) -> Iterator[ProcessPoolExecutor]:
    """`count` processes (None: one per core) for the `with` block.

    They are spawned: torch's and OpenCV's threads do not survive a fork. Ctrl-C is the parent's to handle: it is
    blocked while they are born, which they inherit, so that none dies with a traceback, not even while it is still
    importing. When the block ends, work not begun is dropped and work begun is finished.
    """
    count = max(1, count or os.cpu_count() or 1)
    resource_tracker.ensure_running()  # it would lift the block when it starts
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):  # one is born with every task while none is idle
                pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
