"""Worker processes, in one way everywhere: forked from one clean server, deaf to Ctrl-C, gone with their parent."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any


def cores() -> int:
    """Cores that this process may use: those of its affinity and its control group (Slurm, containers), which may be
    fewer than the machine has."""
    from joblib import cpu_count

    return cpu_count()


@contextlib.contextmanager
def processes(
    count: int | None = None, initializer: Callable[..., Any] | None = None, *args: Any
) -> Iterator[ProcessPoolExecutor]:
    """A `ProcessPoolExecutor` of `count` processes (None: one per core) for the `with` block; each calls
    `initializer(*args)` first.

    torch's and OpenCV's threads do not survive a fork, so none is forked from this process: a server that runs nothing
    imports the libraries once (`vmas.preloaded`) and is forked for every worker of every pool, which then starts in
    a moment. Ctrl-C is the parent's to handle: it is blocked while they are born, which they inherit, so that none
    dies with a traceback, not even while it is still importing. When the block ends, work not begun is dropped and
    work begun is finished; when this process is killed, so are they.
    """
    count = max(1, count or cores())
    pool = ProcessPoolExecutor(count, context(), _born, (dict(os.environ), initializer, args))
    try:
        with _deaf():
            for _ in range(count):  # one is born with every task while none is idle
                pool.submit(int)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def context() -> BaseContext:
    """How processes are started: elsewhere than on Linux, system libraries do not survive any fork, and each is new."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["vmas.preloaded"])
    return chosen


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: a process that is being started must not be lost track of. It is blocked,
    which children inherit, and caught: a thread that a library started earlier may still take it for this process."""
    resource_tracker.ensure_running()  # it would lift the block when it starts
    heard: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number)) if main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what was held back is heard here
        if main:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
            if heard:
                signal.raise_signal(signal.SIGINT)


def _born(environ: dict[str, str], initializer: Callable[..., Any] | None, args: tuple[Any, ...]) -> None:
    """First thing in a worker: the environment of its parent and not of the server, which may be older."""
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*args)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and a worker that goes on would write where the next run does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
