"""Work items over a fixed pool of Ray actors: skip what is committed, commit each part as it is made, report progress.

The work itself is a pure class: ``Worker(context)`` with ``process(item) -> PartOutput``. Nothing in it knows of Ray;
:func:`run_items` with ``workers=0`` runs it in this process, which is what unit tests do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.errors import CalummaError, StepFailed
from infra.store.commit import commit_part, done_parts, load_part
from infra.store.manifest import PartManifest, Rows
from tasks.context import StepContext

MAX_DEATHS = 3


@dataclass(frozen=True, slots=True)
class PartOutput:
    """What one work item became. ``files`` are named relative to ``parts/`` and start with the part's name."""

    part: str
    source: str
    files: dict[str, bytes]
    rows: Rows = field(default_factory=Rows)
    tokens: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Item(Protocol):
    """Anything with a part name can be a work item."""

    @property
    def part(self) -> str: ...


class Worker(Protocol):
    """The pure work of a step on one item."""

    def process(self, item: Any) -> PartOutput: ...


class _Committer:
    """Runs a worker and commits what it returns."""

    def __init__(self, context: StepContext, worker: Callable[[StepContext], Worker]) -> None:
        self._context, self._make = context, worker
        self._worker: Worker | None = None

    def process(self, item: Any) -> PartManifest:
        if self._worker is None:  # not in __init__: an actor that fails there only tells that it died
            self._worker = self._make(self._context)
        out = self._worker.process(item)
        manifest = PartManifest(
            step=self._context.step,
            fingerprint=self._context.fingerprint,
            part=out.part,
            source=out.source,
            rows=out.rows,
            tokens=out.tokens,
            facts=out.facts,
        )
        return commit_part(self._context.store(), manifest, out.files)


def run_items(
    context: StepContext,
    items: Sequence[Item],
    worker: Callable[[StepContext], Worker],
    *,
    workers: int | None = None,
    unit: str = "parts",
    weight: Callable[[PartManifest], int] = lambda manifest: 1,
    total: int | None = None,
) -> list[str]:
    """Makes every item's part that is not committed yet; all parts' names, in the items' order.

    ``weight`` and ``total`` let progress count something finer than parts, e.g. rows.
    """
    names = [item.part for item in items]
    if len(set(names)) != len(names):
        raise StepFailed(f"step {context.step}: two work items have the same part name")
    store = context.store()
    store.sweep("parts")
    finished = done_parts(store)
    todo = [item for item in items if item.part not in finished]
    counts = {"done": 0, "quarantined": 0}

    def account(manifest: PartManifest) -> None:
        counts["done"] += weight(manifest)
        counts["quarantined"] += sum(manifest.rows.quarantined.values())
        context.progress.update(
            counts["done"], len(items) if total is None else total, unit, quarantined=counts["quarantined"]
        )

    for name in names:
        if name in finished:
            account(load_part(store, name))
    size = context.recipe.resources.data_workers if workers is None else workers
    if size == 0:
        inline = _Committer(context, worker) if todo else None
        for item in todo:
            assert inline is not None
            account(inline.process(item))
    elif todo:
        _run_on_ray(context, todo, worker, size, account)
    return names


def _run_on_ray(
    context: StepContext,
    todo: Sequence[Item],
    worker: Callable[[StepContext], Worker],
    size: int,
    account: Callable[[PartManifest], None],
) -> None:
    import ray  # here, so that pure uses of this module need no Ray

    if not ray.is_initialized():
        ray.init(logging_level="warning")
    cpus = context.recipe.resources.data_cpus
    available = ray.cluster_resources().get("CPU", 0)
    size = min(size, len(todo))
    if size * cpus > available:
        raise StepFailed(
            f"step {context.step}: {size} workers of {cpus} CPUs need {size * cpus:g} CPUs and the cluster has "
            f"{available:g}. Lower resources.data_workers or resources.data_cpus."
        )
    actor_class = ray.remote(num_cpus=cpus, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Committer)
    actors = [actor_class.remote(context, worker) for _ in range(size)]
    queue = list(reversed(todo))
    running: dict[Any, Any] = {}
    try:
        for actor in actors:
            running[actor.process.remote(queue.pop())] = actor
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            actor = running.pop(ready[0])
            try:
                manifest = ray.get(ready[0])
            except CalummaError as e:  # Ray's text of it is the worker's whole stack
                raise getattr(e, "cause", e) from None
            account(manifest)
            if queue:
                running[actor.process.remote(queue.pop())] = actor
    finally:
        for actor in actors:
            ray.kill(actor)
