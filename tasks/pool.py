"""Work items over a fixed pool of Ray actors: skip what is committed, commit each part as it is made, report progress.

The work itself is a pure class: ``Worker(context)`` with ``process(item) -> PartOutput``. Nothing in it knows of Ray;
:func:`run_items` with ``workers=0`` runs it in this process, which is what unit tests do. Only manifests come back to
the driver (``tasks/actors.py``), so that it can plan and resume 100,000 items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.errors import StepFailed
from infra.store.commit import commit_part, done_parts, load_parts
from infra.store.manifest import PartManifest, Rows
from tasks.context import StepContext

READ_BACK = 2000
"""When a step goes on, up to so many finished parts are counted exactly, by their manifests; more by their number."""


LIMIT_FROM = 100
"""Rows of a source from which on a share of them says something."""


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


class Committer:
    """Runs a worker and commits what it returns."""

    def __init__(self, context: StepContext, worker: Callable[[StepContext], Worker]) -> None:
        self._context, self._make = context, worker
        self._worker: Worker | None = None

    def ping(self) -> None:
        """Answers: an actor that does is on a machine."""

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
    gpus: float = 0,
    unit: str = "parts",
    weight: Callable[[PartManifest], int] = lambda manifest: 1,
    total: int | None = None,
) -> list[str]:
    """Makes every item's part that is not committed yet; all parts' names, in the items' order.

    ``weight`` and ``total`` let progress count something finer than parts, e.g. rows. ``gpus``: of each actor. What is
    done is known from one listing.

    Raises:
        StepFailed: two items have one part's name, the cluster is too small, or an item kills whatever works on it.
        CalummaError: what a worker raised; any other exception of a worker comes as Ray's, with its stack.
    """
    names = [item.part for item in items]
    if len(set(names)) != len(names):
        raise StepFailed(f"step {context.step}: two work items have the same part name")
    store = context.store()
    store.sweep("parts")
    finished = done_parts(store).intersection(names)
    todo = [item for item in items if item.part not in finished]
    tally = _Tally(context, unit, weight, len(names), total)
    tally.resume(finished)
    size = context.recipe.resources.data_workers if workers is None else workers
    if size == 0:
        inline = Committer(context, worker)
        for item in todo:
            tally.add(inline.process(item))
    elif todo:
        from tasks.actors import run_on_actors  # here, so that pure uses of this module need no Ray

        run_on_actors(context, Committer, worker, todo, size, gpus, tally.add, tally.note)
        store.sweep("parts")  # what actors left aside that were killed in the middle of a file
    return names


class _Tally:
    """How far a step is: in parts, or in what the caller weighs them by."""

    def __init__(
        self,
        context: StepContext,
        unit: str,
        weight: Callable[[PartManifest], int],
        parts: int,
        total: int | None,
    ) -> None:
        self._context, self._unit, self._weight, self._parts = context, unit, weight, parts
        self._total = parts if total is None else total
        self._done = 0.0
        self._quarantined = 0
        self._rows: dict[str, Rows] = {}

    def resume(self, finished: AbstractSet[str]) -> None:
        """Counts what is committed already: by its manifests where they are few, else as its share of the parts."""
        if len(finished) <= READ_BACK:
            for manifest in load_parts(self._context.store(), sorted(finished)):
                self._count(manifest)
        else:
            self._done = round(self._total * len(finished) / self._parts)
        if finished:
            self._report()

    def add(self, manifest: PartManifest) -> None:
        """Counts a part that was just committed."""
        self._count(manifest)
        self._report()

    def note(self, text: str) -> None:
        """Says something beside the count, at once."""
        self._report(note=text, force=True)

    def _count(self, manifest: PartManifest) -> None:
        self._done += self._weight(manifest)
        self._quarantined += sum(manifest.rows.quarantined.values())
        total = self._rows.get(manifest.source, Rows()) + manifest.rows
        self._rows[manifest.source] = total
        lost, limit = sum(total.quarantined.values()), self._context.recipe.resources.max_quarantined
        if total.entered >= LIMIT_FROM and lost > limit * total.entered:
            classes = ", ".join(f"{n:,} {error}" for error, n in sorted(total.quarantined.items(), key=lambda e: -e[1]))
            raise StepFailed(
                f"step {self._context.step}: {lost:,} of the first {total.entered:,} rows of source {manifest.source} "
                f"are in quarantine ({classes}), more than resources.max_quarantined = {limit:g} allows. See why with "
                f"calumma ledger {self._context.root} --quarantine; then mend the source or raise the limit."
            )

    def _report(self, **more: Any) -> None:
        done = min(self._done, self._total)  # a share of the parts may have been a little too much
        self._context.progress.update(done, self._total, self._unit, quarantined=self._quarantined, **more)
