"""Step ``select``: across each whole source, which of the samples that ``scan`` kept are used.

Exact duplicates first, then (if asked for) perceptual ones and near-duplicate texts; of several equal samples the one
with the lowest id stays, so the choice does not depend on order, work items or workers (``duplicates.py``). What a
retry adds loses against all that was there before. Memory is flat: ``select.memory_mb`` and a part's rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.home import is_remote, local_side
from infra.scratch import sweep_scratch
from infra.storage import Storage
from infra.store.commit import PARTS
from infra.store.manifest import Rows
from infra.store.tables import read_table, write_table
from tasks.context import StepContext
from tasks.pool import PartOutput, run_items
from tasks.scan.duplicates import (
    DISK_PER_SAMPLE,
    DISK_PER_SAMPLE_NEAR,
    KEEP,
    REASONS,
    Candidates,
    Column,
    Duplicates,
    duplicates,
)
from tasks.scan.items import all_items
from tasks.scan.selected import work_items
from tasks.scan.tables import KEPT, SCAN, SELECT
from tasks.sources.base import WorkItem


class SelectWorker:
    """Writes the decisions of one part. They are made for its whole source when the first part of it is wanted."""

    def __init__(self, context: StepContext, items: Sequence[WorkItem]) -> None:
        self._context, self._items = context, items
        self._open = ExitStack()
        self._source = ""
        self._duplicates: Duplicates | None = None
        self._ranges: dict[str, tuple[int, int]] = {}

    def process(self, item: WorkItem) -> PartOutput:
        ids, fates = self._decided(item.source).decisions(*self._ranges[item.part])
        rows = [
            {"sample_id": sample_id, "keep": fate == KEEP, "reason": REASONS[fate]}
            for sample_id, fate in zip(ids, fates, strict=True)
        ]
        counts = Counter(REASONS[fate] for fate in fates)
        kept = counts.pop("", 0)
        ledger = Rows(entered=len(rows), out=kept, duplicate=dict(sorted(counts.items())))
        return PartOutput(item.part, item.source, {f"{item.part}.parquet": write_table(rows, SELECT)}, ledger)

    def close(self) -> None:
        self._open.close()

    def _decided(self, source: str) -> Duplicates:
        """The source's decisions; those of the source before are given up."""
        if self._duplicates is not None and self._source == source:
            return self._duplicates
        self.close()
        self._need_disk(source)
        found = self._open.enter_context(duplicates(self._context.recipe.select, scratch(self._context)))
        own = [item for item in self._items if item.source == source]
        self._ranges = {item.part: found.add(candidates(self._context, item), item.retry) for item in own}
        found.decide(source)
        self._source, self._duplicates = source, found
        return found

    def _need_disk(self, source: str) -> None:
        near = self._context.recipe.select.near_duplicates
        count = self._context.manifest("scan").rows[source].out
        size = count * (DISK_PER_SAMPLE_NEAR if near else DISK_PER_SAMPLE)
        what = f"the search for duplicates among {count:,} samples of {source}"
        if is_remote(self._context.root):
            what += " (which lies on this machine, where XDG_STATE_HOME says)"
        Storage(scratch(self._context)).need(size, what)


def run(context: StepContext) -> None:
    """Selects in the job's process: a source's hashes must be seen together. In a retry only its own parts are made."""
    items = work_items(context)
    # Source by source, so that each is searched once; the manifest lists them as scan does.
    order = {source.name: place for place, source in enumerate(context.recipe.sources)}
    by_source: list[WorkItem] = sorted(items, key=lambda i: order[i.source])
    sweep_scratch(scratch(context))
    worker = SelectWorker(context, all_items(context.store("scan"), finished=True))
    try:
        run_items(context, by_source, lambda _: worker, workers=0)
    finally:
        worker.close()
        with suppress(OSError):  # another run's search may be in it
            scratch(context).rmdir()
    context.finish(parts=[item.part for item in items])


def candidates(context: StepContext, item: WorkItem) -> Candidates:
    """What ``scan`` kept of an item, with the columns that the recipe's rules compare."""
    config, kind = context.recipe.select, context.recipe.source(item.source).kind
    store, name = context.store("scan"), f"{PARTS}/{item.part}.parquet"
    perceptual, near = kind == "pairs" and config.perceptual_duplicates, config.near_duplicates
    columns = ["sample_id", "state", "content", *(["images"] if perceptual else []), *(["near"] if near else [])]
    table = read_table(store.get(name), SCAN, store.url(name), columns)
    table = table.filter(pc.equal(table["state"], KEPT))
    bands = table["near"].combine_chunks() if near else None
    return Candidates(
        ids=_numbers(table["sample_id"], 16),
        contents=_numbers(table["content"], 32)[:, :2],
        # A kept pair has exactly one picture.
        phashes=pc.struct_field(pc.list_flatten(table["images"]), "phash").to_numpy() if perceptual else None,
        near=None if bands is None else (pc.list_parent_indices(bands).to_numpy(), pc.list_flatten(bands).to_numpy()),
    )


def _numbers(column: pa.ChunkedArray, width: int) -> Column:
    """A fixed-size binary column as (n, width / 8) numbers that sort as its bytes do."""
    data = b"".join(column.to_pylist())
    return np.frombuffer(data, ">u8").reshape(-1, width // 8).astype(np.uint64)


def scratch(context: StepContext) -> Path:
    """Where the search's files lie: on this machine, also where the work folder is on S3."""
    return local_side(context.root) / "scratch"
