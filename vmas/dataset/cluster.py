"""The builder's tasks as a streaming pipeline of Ray Data, on this machine or on a cluster (`--backend ray`).

    blocks of items → prepare (CPU tasks) → infer (model processes) → finish (CPU tasks) → gather, a task each

The functions are those that `vmas.dataset.pool` calls, and the bytes are the same. A block holds `block` items of one
task; Ray moves blocks from stage to stage as they are done, holds a stage back whose results nobody takes yet, and
does the work of a lost process again. The order of blocks is kept, so that all blocks of a task reach `gather`
together. Without model processes the stages of a task are done in one place, and only the record leaves it.

Every machine must see the videos, the weights and the output folder under the same paths, and have this package.
Docs: https://docs.ray.io/en/latest/data/data-internals.html (streaming execution, back-pressure)
"""

import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmas.dataset import pool
from vmas.dataset.stages import Tools
from vmas.dataset.tasks import Item, Job, Outcome, through
from vmas.errors import DataError, UsageError, VmasError
from vmas.pools import cores

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 8  # items; the paper's clips are 1.5 MB each between two stages, 16 MB with the frames for RAFT
WAVE_PER_CPU, WAVE = 32, 4096  # blocks that the driver has in the pipeline at a time
FOREVER = -1  # Ray ends an execution that says nothing for half an hour, and a shard may take longer
HANDED_ON = ("VMAS_CACHE", "VMAS_WEIGHTS", "OMP_NUM_THREADS")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}


@dataclass
class Ray:
    """Where and how wide the stages run.

    address       of a running cluster ("auto" on one of its machines); None starts Ray here and ends it afterwards
    workers       CPU tasks at a time; None = one per core that Ray has
    actors        processes that hold the models; 0 = the CPU tasks hold them
    gpus          GPUs of each such process, parts allowed; 0 = it takes a core
    block         items that move together
    object_store  bytes of shared memory for blocks, where Ray is started here; None = Ray's choice

    A running Ray of this process is used as it is. Raises UsageError without the extra, DataError without a cluster.
    """

    address: str | None = None
    workers: int | None = None
    actors: int = 0
    gpus: float = 0.0
    block: int = BLOCK
    object_store: int | None = None
    _started: bool = field(default=False, init=False)

    def __enter__(self) -> "Ray":
        ray = _ray()
        if ray.is_initialized():
            return self
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address:
            handed_on = {k: os.environ[k] for k in HANDED_ON if k in os.environ}
            options |= {"address": self.address, "runtime_env": {"env_vars": handed_on}}
        else:
            cpus = (self.workers or cores()) + (0 if self.gpus else self.actors)
            # "local": also where a cluster that died has left its address behind
            options |= {
                "address": "local",
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": self.object_store,
            }
        for last in (self.address is not None, True):
            try:
                ray.init(**options)
                break
            except Exception as e:  # what Ray raises here has no common base
                why = " ".join(str(e).split())[:200]
                if self.address:
                    raise DataError(f"no Ray cluster answers at {self.address}: {why}") from e
                # Ray waits 30 s for its own processes, which a busy machine may need longer to start
                if last:
                    raise DataError(f"Ray does not start: {why} (try 'ray start --head', then --address auto)") from e
                ray.shutdown()
        self._started = True
        return self

    def __exit__(self, *error: Any) -> None:
        if self._started:
            _ray().shutdown()
            self._started = False

    def run(self, job: Job, tasks: Sequence[Any], tools: Tools) -> pool.Results:
        """As `vmas.dataset.pool.Backend` has it; records come in the order of the tasks."""
        if not tasks:
            return
        ray = _ray()
        blocks = max(-(-len(tasks[i].items) // self.block) for i in range(len(tasks)))
        width = max(WAVE, round(WAVE_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        step = max(1, width // blocks)
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.enable_operator_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = FOREVER
        for start in range(0, len(tasks), step):
            with ray.data.DataContext.current(context), warnings.catch_warnings():
                # The number of tries has no name of its own in map_batches yet.
                warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
                some = [tasks[i] for i in range(start, min(start + step, len(tasks)))]
                wave = self._pipeline(job, some, blocks, tools)
            for i, record in _records(wave):
                yield start + i, record

    def _pipeline(self, job: Job, tasks: Sequence[Any], blocks: int, tools: Tools):
        ray = _ray()
        spec = pickle.dumps((job, tools.options, tools.device))
        tables = [_row(i, task.head, part) for i, task in enumerate(tasks) for part in self._parts(task.items, blocks)]
        many = {"num_cpus": 1, "max_retries": pool.TRIES - 1, "compute": ray.data.TaskPoolStrategy(size=self.workers)}
        one = {"batch_size": 1, "batch_format": "pyarrow"}

        def steps(data, first: int, last: int):
            return data.map_batches(_advance, fn_args=(spec, first, last), **one, **many)

        data = ray.data.from_arrow(tables)
        if self.actors and job.has_models(tools.options):
            models = {"num_gpus": self.gpus} if self.gpus else {"num_cpus": 1}
            data = steps(data, 0, 1).map_batches(
                _Models,
                fn_constructor_args=(spec,),
                compute=ray.data.ActorPoolStrategy(size=self.actors),
                max_task_retries=pool.TRIES - 1,
                **models,
                **one,
            )
            data = steps(data, 2, 3)
        else:
            data = steps(data, 0, 3)
        return data.map_batches(_gather, fn_args=(spec, blocks), batch_size=blocks, batch_format="pyarrow", **many)

    def _parts(self, items: Sequence[Item], blocks: int) -> list[Sequence[Item]]:
        """Every task has as many blocks, at its end empty ones, so that `gather` can count them off."""
        return [items[k * self.block : (k + 1) * self.block] for k in range(blocks)]


@dataclass
class _Block:
    """Items of a task on their way; `seconds` is what they took so far, per stage. `error` ends the run."""

    items: Sequence[Item]
    outcomes: list[Outcome]
    seconds: dict[str, float]
    error: str = ""


def _ray() -> Any:
    for name, value in (QUIET | PATIENT).items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise UsageError("Ray is not installed: pip install 'vmas[ray]', or use --backend local") from e
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is said once, in our words
    return ray


def _records(data) -> Iterator[tuple[int, dict[str, Any]]]:
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayActorError, RayError, WorkerCrashedError

    batches = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    while True:
        try:
            batch = next(batches, None)
        except (RayActorError, WorkerCrashedError) as e:
            raise DataError(
                "a worker process died three times over one block: run again with fewer workers (memory), or with"
                " --backend local, which finds a file that crashes a decoder and goes on without it"
            ) from e
        except (RayError, SystemException) as e:
            raise DataError(f"Ray gave up: {' '.join(str(e).split())[-300:]}") from e
        if batch is None:
            return
        for i, text in zip(batch["task"].to_pylist(), batch["record"].to_pylist(), strict=True):
            record = json.loads(text)
            if "error" in record:
                raise DataError(record["error"])
            yield i, record


def _row(i: int, head: Any, items: Sequence[Item]) -> "pa.Table":
    return _table(i, pickle.dumps(head), _Block(items, [{} for _ in items], {}))


def _table(i: int, head: bytes, block: _Block) -> "pa.Table":
    import pyarrow as pa

    columns = {"head": [head], "block": [pickle.dumps(block, pickle.HIGHEST_PROTOCOL)]}
    # large: the blocks of a shard may be more than the 2 GB that plain binary counts to
    return pa.table({"task": [i]} | {k: pa.array(v, pa.large_binary()) for k, v in columns.items()})


@lru_cache(maxsize=1)
def _here(spec: bytes) -> tuple[Job, Tools]:
    """The job, and the tools that this process keeps for it."""
    job, options, device = pickle.loads(spec)
    pool.stay_on_one_thread(options)
    return job, Tools(options, device)


def _advance(table: "pa.Table", spec: bytes, first: int, last: int) -> "pa.Table":
    """Steps `first` … `last` - 1 of one block."""
    job, tools = _here(spec)
    block: _Block = pickle.loads(table["block"][0].as_py())
    steps = job.steps[first:last]
    try:
        block.outcomes = [through(steps, item, o, tools) for item, o in zip(block.items, block.outcomes, strict=True)]
    except VmasError as e:  # Ray would bury the line under its own
        block.error = block.error or str(e)
    _add(block.seconds, tools.take_seconds())
    return _table(table["task"][0].as_py(), table["head"][0].as_py(), block)


class _Models:
    """A process that holds the models."""

    def __init__(self, spec: bytes):
        self.spec = spec

    def __call__(self, table: "pa.Table") -> "pa.Table":
        return _advance(table, self.spec, 1, 2)


def _gather(table: "pa.Table", spec: bytes, blocks: int) -> "pa.Table":
    """The record of one task from its blocks."""
    import pyarrow as pa

    job, _ = _here(spec)
    tasks, seconds = table["task"].to_pylist(), dict[str, float]()
    if len(tasks) != blocks or len(set(tasks)) > 1:
        raise RuntimeError(f"blocks of tasks {sorted(set(tasks))} came together")  # Ray did not keep their order

    def outcomes() -> Iterator[Outcome]:
        for data in table["block"]:
            block: _Block = pickle.loads(data.as_py())
            _add(seconds, block.seconds)
            if block.error:
                raise DataError(block.error)
            yield from block.outcomes

    try:
        record = job.gather(pickle.loads(table["head"][0].as_py()), outcomes()) | {"seconds": seconds}
    except OSError as e:
        record = {"error": f"{e.filename or 'output'}: cannot be written: {e.strerror or e}"}
    except VmasError as e:
        record = {"error": str(e)}
    return pa.table({"task": tasks[:1], "record": [json.dumps(record)]})


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for stage, s in more.items():
        total[stage] = total.get(stage, 0.0) + s
