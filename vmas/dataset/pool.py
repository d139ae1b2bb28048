"""Run tasks in this process or in several, a few more in flight than there are workers, so that memory stays flat.

`Backend` is what the builder asks of this and of any other way to do its tasks (`vmas.dataset.cluster`).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from vmas.dataset.stages import Options, Tools
from vmas.dataset.tasks import Job, name_of
from vmas.errors import DataError
from vmas.pools import processes

IN_FLIGHT = 2  # tasks per worker: one at work, one waiting
TRIES = 3  # of a task whose process dies, before it is looked into
DIED = object()
STILLBORN = "worker processes die as they start: not enough memory, or the installation is broken"
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
        a task when it is asked for it, so only those at work are kept. Raises DataError when processes keep dying.
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
    """(index, work(task, tools)) as they are done. `work` is a function of a module, or a `Job`; its results must not
    depend on the process. With one worker that is this process.

    A worker that dies (a decoder's crash, memory, kill) costs the tasks in flight another try, each in a process of its
    own. One whose process dies again is done while nothing else is; then every item of a `Job`'s task is tried alone,
    and those that kill their process are failures of its record. Raises DataError where that is not one or the other
    item: when all of a task do it, or a process dies as it starts.
    """
    if workers <= 1:
        with one_thread(tools.options):
            for i in range(len(tasks)):
                yield i, work(tasks[i], tools)
        return
    workers = min(workers, len(tasks))
    if not workers:
        return
    waiting = iter(range(len(tasks)))
    in_flight: set[int] = set()
    starts = 0
    while True:
        try:
            yield from _pooled(work, tasks, waiting, in_flight, tools, workers)
            return
        except BrokenProcessPool as e:
            suspects, guilty = sorted(in_flight), []
            in_flight.clear()
            starts = 0 if suspects else starts + 1
            if starts == TRIES:
                raise DataError(STILLBORN) from e
        for start in range(0, len(suspects), workers):
            some = suspects[start : start + workers]
            for i, result in _apart(work, [(i, tasks[i]) for i in some], tools):
                if result is DIED:
                    guilty.append(i)
                else:
                    yield i, result
        for i in guilty:
            yield i, _alone(work, tasks[i], tools)


def _pooled(
    work: Work, tasks: Sequence[Any], waiting: Iterator[int], in_flight: set[int], tools: Tools, workers: int
) -> Results:
    """The tasks that are `waiting`; after a BrokenProcessPool those `in_flight` have no result."""
    running: dict[Future, int] = {}
    with _processes(workers, tools) as pool:  # on Ctrl-C what was begun is finished

        def submit() -> None:
            while len(running) < IN_FLIGHT * workers and (i := next(waiting, None)) is not None:
                in_flight.add(i)
                running[pool.submit(_call, work, tasks[i])] = i

        submit()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                in_flight.discard(running[future])
                yield running.pop(future), result
            submit()


def _processes(count: int, tools: Tools) -> contextlib.AbstractContextManager[ProcessPoolExecutor]:
    return processes(count, _begin, tools.options, tools.device)


def _apart(work: Work, some: Sequence[tuple[int, Any]], tools: Tools) -> Results:
    """(index, result) of tasks that are done side by side, each in a process of its own; `DIED` where that did."""
    with contextlib.ExitStack() as stack:
        running: dict[Future, int] = {}
        for i, task in some:
            try:
                running[stack.enter_context(_processes(1, tools)).submit(_call, work, task)] = i
            except BrokenProcessPool:
                yield i, DIED
        for future in as_completed(running):
            try:
                result = future.result()
            except BrokenProcessPool:
                result = DIED
            yield running[future], result


def _alone(work: Work, task: Any, tools: Tools) -> Any:
    """The result of a task whose process died, while nothing else is done."""
    ((_, result),) = _apart(work, [(0, task)], tools)
    if result is not DIED:
        return result
    if not isinstance(work, Job):
        raise DataError(f"the process that did {str(task)[:200]} died three times (memory?)")
    killers = {name_of(item) for item in task.items if _kills(work, item, tools)}
    if len(task.items) > 1 and len(killers) == len(task.items):
        raise DataError(
            f"every process that read one of {len(killers)} files died, the first {name_of(task.items[0])}: give the"
            " command on a machine with more memory; if that is not it, the installation is broken"
        )
    ((_, result),) = _apart(partial(work, killers=killers), [(0, task)], tools)
    if result is DIED:
        raise DataError(f"a process died in the task of {name_of(task.items[0])}, and with none of its files alone")
    return result


def _kills(job: Job, item: Any, tools: Tools) -> bool:
    """Whether the process of a single item dies. Raises DataError when any process does."""
    begun = False
    try:
        with _processes(1, tools) as pool:
            begun = not pool.submit(int).result()
            pool.submit(_call, job.through, item).result()
    except BrokenProcessPool as e:
        if not begun:
            raise DataError(STILLBORN) from e
        return True
    return False


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
