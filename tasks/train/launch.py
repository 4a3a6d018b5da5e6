"""Starts training workers: one function, run on every worker of a Ray Train group with ``torch.distributed`` ready.

What is ready inside ``train_function(arguments)``: a process group (gloo on CPUs, NCCL on GPUs), the variables RANK,
WORLD_SIZE, LOCAL_RANK and MASTER_ADDR, one OpenMP thread. Ray Train keeps nothing for us: checkpoints, resuming and
metrics are the function's own, in the step's folder, so that a restarted group goes on from the last one.

Failures are of two kinds. One that would only repeat (a :class:`CalummaError`, a fault in the code) ends the step at
once with its message. Anything else (a killed worker, a lost node) restarts the group, up to ``resources.max_failures``
times without a checkpoint in between: a training of weeks on a thousand GPUs loses many nodes, each harmless.

Stopping: on SIGTERM (``ray job stop``, a cancelled flow) the job's process leaves a stop request that the workers find
with :class:`StopRequest`; they checkpoint and return.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infra.errors import CalummaError, ResourceError, StepFailed, StepStopped
from infra.storage import Storage
from tasks.context import StepContext

TrainFunction = Callable[[dict[str, Any]], None]

WORKER_ENVIRONMENT = {
    # Two processes of one thread beat one of two: OpenMP's spinning barriers cost 3-10x on shared cores.
    "OMP_NUM_THREADS": "1",
    # glibc gives freed memory back to the system at once and takes it again, a page fault for every 4 KiB of every
    # activation; kept instead, a step of the image tokenizer takes a fifth less processor time.
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    # A worker's stack of a crash in native code, which Ray would otherwise show as "worker died".
    "PYTHONFAULTHANDLER": "1",
}


RAY_TRAIN = "runs/ray-train"
POOL = "accelerator_type:"
"""How Ray names, among its resources, what kind of accelerators a node has."""
REPEATING = (CalummaError, TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError, ImportError)
"""What a worker raises that starting it again would not mend."""
REPEATING_NAMES = ("ZeRORuntimeException", "DeepSpeedConfigError")
"""The same, by name: DeepSpeed's, which is not imported here."""


def stop_file(job: str) -> str:
    """Name, in the work folder, of the file whose existence asks a job's workers to stop."""
    return f"runs/jobs/{job}/stop"


class StopRequest:
    """Whether the job was asked to stop. Looks at storage at most once every ``interval_s``; pickles small."""

    def __init__(self, workdir: str, job: str, interval_s: float = 0.5) -> None:
        self.workdir, self.job, self.interval_s = workdir, job, interval_s
        self._looked, self._found = float("-inf"), False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now - self._looked >= self.interval_s:
            self._looked = now
            self._found = Storage(self.workdir).exists(stop_file(self.job))
        return self._found


class Deaths:
    """Counts deaths in a row: those since a newer checkpoint was committed to a step's folder."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self.count, self._newest = 0, self._find()

    def add(self) -> int:
        """One more; how many there were in a row."""
        newest = self._find()
        self.count = 1 if newest > self._newest else self.count + 1
        self._newest = newest
        return self.count

    def _find(self) -> str:
        """The name of the newest checkpoint; empty where there is none."""
        return max(self._store.list("checkpoints"), default="")


@dataclass(frozen=True)
class _Entry:
    """What a worker runs: the training function with its process set up."""

    function: TrainFunction
    cpu: bool

    def __call__(self, arguments: dict[str, Any]) -> None:
        if self.cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is first imported
        else:
            os.environ.pop("DS_ACCELERATOR", None)
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.function(arguments)


def launch(context: StepContext, train_function: TrainFunction, arguments: dict[str, Any]) -> None:
    """Runs ``train_function(arguments)`` on ``resources.train_workers`` workers; returns when all have returned.

    Both must pickle: a function of a module, and plain values. Ray is started or joined if the process has not done so.

    Raises:
        ResourceError: the cluster has too few CPUs or accelerators for the workers.
        StepFailed: a worker raised, or workers died too often without a new checkpoint.
        StepStopped: the job was asked to stop.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # workers keep the job's folder: recipes hold relative paths
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # the end is noticed within half a second
    if context.recipe.resources.ray_address is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes a laptop's node away
    import ray
    from ray.train import TrainingFailedError

    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True, include_dashboard=False)
    _check_resources(context, ray.cluster_resources())
    context.workdir.delete(stop_file(context.job))
    deaths = Deaths(context.store())
    with _stop_on_sigterm(context):
        for attempt in itertools.count():
            try:
                _trainer(context, train_function, arguments, attempt).fit()
                break
            except TrainingFailedError as error:
                cause = _repeating(error)
                if cause is not None:
                    said = str(cause) if isinstance(cause, CalummaError) else f"{type(cause).__name__}: {cause}"
                    raise StepFailed(f"step {context.step}: {said}") from error
                if deaths.add() > context.recipe.resources.max_failures:
                    raise StepFailed(
                        f"step {context.step}: training workers failed {deaths.count} times without a new checkpoint, "
                        f"more than resources.max_failures = {deaths.count - 1} allows. The last failure: "
                        f"{_last_line(error)}"
                    ) from error
                said = _last_line(error)
                print(f"training workers failed ({said}); starting them again ({deaths.count})", flush=True)
    if context.workdir.exists(stop_file(context.job)):
        raise StepStopped(f"step {context.step} was stopped on request. Run again to go on from its last checkpoint.")


def _trainer(context: StepContext, function: TrainFunction, arguments: dict[str, Any], attempt: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = context.recipe.resources
    cpu = resources.accelerator is None
    return TorchTrainer(
        _Entry(function, cpu),
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="gloo" if cpu else "nccl"),
        scaling_config=ScalingConfig(
            num_workers=resources.train_workers,
            use_gpu=not cpu,
            resources_per_worker={"CPU": resources.train_cpus},
            accelerator_type=resources.accelerator,
        ),
        run_config=RunConfig(
            name=f"{context.job}-{attempt}",
            **_bookkeeping(context.workdir),
            # Restarts are counted here, where errors that would only repeat can be told from deaths.
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )


def _bookkeeping(workdir: Storage) -> dict[str, Any]:
    """Where Ray Train keeps its own notes: in the work folder."""
    if workdir.local:
        return {"storage_path": str(workdir.path().resolve() / RAY_TRAIN)}
    import pyarrow.fs
    import s3fs

    # pyarrow's own client of S3 reads other variables than everything else here does.
    handler = pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem())
    path = workdir.url(RAY_TRAIN).removeprefix("s3://")
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _check_resources(context: StepContext, have: dict[str, float]) -> None:
    resources = context.recipe.resources
    workers, need = resources.train_workers, resources.train_workers * resources.train_cpus
    if need > have.get("CPU", 0):
        raise ResourceError(
            f"step {context.step}: {workers} workers of {resources.train_cpus:g} CPUs need {need:g} CPUs and the "
            f"cluster has {have.get('CPU', 0):g}. Lower resources.train_workers or resources.train_cpus."
        )
    if resources.accelerator is not None and workers > have.get("GPU", 0):
        raise ResourceError(
            f"step {context.step}: {workers} workers need an accelerator each and the cluster has "
            f"{have.get('GPU', 0):g}. Lower resources.train_workers or set resources.accelerator to null."
        )
    if resources.accelerator is not None and f"{POOL}{resources.accelerator}" not in have:
        pools = ", ".join(sorted(name.removeprefix(POOL) for name in have if name.startswith(POOL))) or "none"
        raise ResourceError(
            f"step {context.step}: no node of the cluster has accelerators of type {resources.accelerator}; there are: "
            f"{pools}. Set resources.accelerator to one of them (Ray's accelerator types), or to null for CPUs."
        )


def _repeating(error: BaseException) -> Exception | None:
    """A worker's failure that would repeat: a CalummaError before others, a lower rank before a higher one."""
    failures = [e for _, e in sorted(getattr(error, "worker_failures", {}).items()) if _would_repeat(e)]
    return next((e for e in failures if isinstance(e, CalummaError)), failures[0] if failures else None)


def _would_repeat(error: BaseException) -> bool:
    return isinstance(error, REPEATING) or type(error).__name__ in REPEATING_NAMES


def _last_line(error: BaseException) -> str:
    """The exception behind a worker group's failure, which comes as a whole stack trace."""
    failures = getattr(error, "worker_failures", {})
    if failures:
        rank, first = min(failures.items())
        return f"worker {rank}: {type(first).__name__}: {first}".splitlines()[0]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _stop_on_sigterm(context: StepContext) -> Iterator[None]:
    """Turns SIGTERM into a stop request while training runs; a second SIGTERM ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever runs training elsewhere stops it with the file
        return

    def ask(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        context.workdir.put(stop_file(context.job), b"")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
