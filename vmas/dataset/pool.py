"""Run tasks in this process or in several, a few more in flight than there are workers, so that memory stays flat.

`Backend` is what the builder asks of this and of any other way to do its tasks (`vmas.dataset.cluster`).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from vmas.dataset.stages import Options, Tools
from vmas.dataset.tasks import Job
from vmas.errors import DataError
from vmas.pools import processes

IN_FLIGHT = 2  # tasks per worker: one at work, one waiting
TRIES = 3  # how often a pool may die before the run gives up
_tools: Tools | None = None
_for_life = contextlib.ExitStack()

Work = Callable[[Any, Tools], Any]
Results = Generator[tuple[int, Any], None, None]


class Backend(Protocol):
    """Where tasks are done. It is entered once for a build and runs one job after the other."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def run(self, job: Job, tasks: Sequence[Any], tools: Tools) -> Results:
        """(index, record) of every task as they are done. Records must not depend on where that was. `tasks` may make
        a task when it is asked for it, so only those at work are kept. Raises DataError when workers keep dying.
        Closing the generator ends the work."""
        ...


@dataclass(frozen=True)
class Local:
    """This machine's processes; with one worker this process alone."""

    workers: int = 1

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def run(self, job: Job, tasks: Sequence[Any], tools: Tools) -> Results:
        return run(job, tasks, tools, self.workers)


def run(work: Work, tasks: Sequence[Any], tools: Tools, workers: int) -> Results:
    """(index, work(task, tools)) as they are done. `work` is a function of a module; its results must not depend on
    the process. A worker that dies (memory, kill) costs its task another try. Raises DataError when that repeats."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        with one_thread(tools.options):
            for i in range(len(tasks)):
                yield i, work(tasks[i], tools)
        return
    left = set(range(len(tasks)))
    for _ in range(TRIES):
        try:
            for i, result in _pooled(work, tasks, sorted(left), tools, workers):
                left.discard(i)
                yield i, result
            return
        except BrokenProcessPool:
            continue
    raise DataError("a worker process died three times (memory?); run again with fewer workers")


def _pooled(work: Work, tasks: Sequence[Any], left: list[int], tools: Tools, workers: int) -> Results:
    waiting = iter(left)
    running: dict[Future, int] = {}
    with processes(workers, _begin, tools.options, tools.device) as pool:  # on Ctrl-C what was begun is finished

        def submit() -> None:
            for i in waiting:
                running[pool.submit(_call, work, tasks[i])] = i
                if len(running) >= IN_FLIGHT * workers:
                    return

        submit()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
            submit()


@contextlib.contextmanager
def one_thread(options: Options) -> Iterator[None]:
    """Every library on one thread: tasks are shared out over processes, and sums in another order differ."""
    import cv2
    from threadpoolctl import threadpool_limits

    cv2_threads, torch_threads = cv2.getNumThreads(), 0
    cv2.setNumThreads(1)
    if options.runs("tokens") or options.runs("genre"):
        import torch

        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(cv2_threads)
        if torch_threads:
            import torch

            torch.set_num_threads(torch_threads)


def stay_on_one_thread(options: Options) -> None:
    """`one_thread` for as long as this process lives; one that nobody holds ends when it is collected."""
    _for_life.enter_context(one_thread(options))


def _begin(options: Options, device: str) -> None:
    global _tools
    stay_on_one_thread(options)
    _tools = Tools(options, device)


def _call(work: Work, task: Any) -> Any:
    assert _tools is not None
    return work(task, _tools)
