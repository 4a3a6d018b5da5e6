"""What later steps read: the work items of ``scan``, and of each the samples that ``scan`` and ``select`` left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra.errors import SourceError
from infra.store.commit import PARTS
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.scan.examine import ImageFacts, storable
from tasks.scan.items import ITEMS, load_items, read_item
from tasks.scan.tables import KEPT, SCAN, SELECT
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, WorkItem, sample_id


@dataclass(frozen=True, slots=True)
class SelectedRow:
    """What ``scan`` knows of a selected sample."""

    sample_id: bytes
    held_out: bool
    licence: str
    """The sample's own, else its source's."""
    images: tuple[ImageFacts, ...]


def work_items(context: StepContext) -> list[WorkItem]:
    """All work items, in source order, as ``scan`` listed them."""
    return load_items(context.store("scan").get(ITEMS))


def selected(context: StepContext, item: WorkItem) -> Iterator[tuple[RawSample, SelectedRow]]:
    """The item's selected samples, read again from their source, in source order.

    SourceError if one of them is no longer there: the source was changed after it was scanned.
    """
    config = context.recipe.source(item.source)
    rows = selected_rows(context, item.part, config.licence)
    for raw in read_item(open_source(config, context.recipe.folder), item):
        if isinstance(raw, BadRow):
            continue  # scan has it in its quarantine
        row = rows.pop(sample_id(item.source, storable(raw.key)), None)
        if row is not None:
            yield raw, row if not raw.licence else SelectedRow(row.sample_id, row.held_out, raw.licence, row.images)
    if rows:
        raise SourceError(
            f"source {item.source}: {len(rows)} samples of {item.part} that were scanned are no longer there. "
            "It was changed while the run was going on; run again, which scans it anew."
        )


def selected_rows(context: StepContext, part: str, licence: str = "") -> dict[bytes, SelectedRow]:
    """The selected samples of a part by id, in source order, without reading the source."""
    scan, select = context.store("scan"), context.store("select")
    name = f"{PARTS}/{part}.parquet"
    chosen = read_table(select.get(name), SELECT, select.url(name), ["sample_id", "keep"])
    kept = {row["sample_id"] for row in chosen.to_pylist() if row["keep"]}
    scanned = read_table(scan.get(name), SCAN, scan.url(name), ["sample_id", "state", "held_out", "images"])
    return {
        row["sample_id"]: SelectedRow(
            row["sample_id"], row["held_out"], licence, tuple(ImageFacts(**i) for i in row["images"])
        )
        for row in scanned.to_pylist()
        if row["state"] == KEPT and row["sample_id"] in kept
    }
