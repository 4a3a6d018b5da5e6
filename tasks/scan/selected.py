"""What later steps read: the work items of ``scan``, and of each the samples that ``scan`` and ``select`` left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.errors import SourceError
from infra.store.commit import PARTS, holds_retry, own_retries
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.scan.facts import ImageFacts, storable, without_images
from tasks.scan.items import AGAIN, KEYS, all_items, listed_items, listed_retries, read_item
from tasks.scan.rows import base_part, load_rows, with_first_row
from tasks.scan.tables import KEPT, SCAN, SELECT
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, WorkItem, sample_id

TOKENIZERS = ("image-tokenizer", "text-tokenizer")


@dataclass(frozen=True, slots=True)
class SelectedRow:
    """What ``scan`` knows of a selected sample."""

    sample_id: bytes
    held_out: bool
    licence: str
    """The sample's own, else its source's."""
    images: tuple[ImageFacts, ...]
    """Of the pictures that stay, in order."""
    dropped: tuple[int, ...] = ()
    """Numbers, as the source counts, of the pictures that the document goes without."""
    language: str = ""
    """Empty where ``scan`` was not asked for it."""
    scores: tuple[tuple[str, float], ...] = ()


def work_items(context: StepContext) -> list[WorkItem]:
    """The work items that a step reads, in source order and then those of each retry; their rows are the true ones.

    In a retry's own job they are that one's alone. Otherwise a retry counts where the steps before hold it and the step
    has not got it added already. The tokenizers are trained without any, so that a retry never changes them.
    """
    scan = context.store("scan")
    rows, items = load_rows(scan), listed_items(scan, context.retry)
    if not context.retry and context.step not in TOKENIZERS:
        items += [i for retry in listed_retries(scan) if _reads(context, retry) for i in listed_items(scan, retry)]
    return [with_first_row(item, rows) for item in items]


def _reads(context: StepContext, retry: int) -> bool:
    if context.step == "scan":  # who asks for its items looks at all there are
        return True
    before = ("scan",) if context.step == "select" else ("scan", "select")
    return all(holds_retry(context.store(s), retry) for s in before) and retry not in own_retries(context.store())


def first_row(context: StepContext) -> dict[str, int]:
    """By part, the true number of the row that ``scan``'s own tables call 1; parts that start at 1 are left out.

    True row = row in the table + first row - 1.
    """
    scan = context.store("scan")
    rows = load_rows(scan)
    return {item.part: rows[base_part(item)] for item in all_items(scan) if base_part(item) in rows} if rows else {}


def selected(context: StepContext, item: WorkItem) -> Iterator[tuple[RawSample, SelectedRow]]:
    """The item's selected samples, read again from their source, in source order.

    A document whose missing pictures are dropped comes without them, as ``scan`` saw it, its others numbered anew. A
    retry's item also yields what ``encode`` lost before, by what ``scan`` found out then.
    SourceError if a sample is no longer there: the source was changed after it was scanned.
    """
    config = context.recipe.source(item.source)
    rows = selected_rows(context, item.part, config.licence)
    if again := item.locator.get(AGAIN):
        rows |= _selected_before(context, item, {sample_id(item.source, key) for key in again}, config.licence)
        item = replace(item, locator={**item.locator, KEYS: [*item.locator.get(KEYS, ()), *again]})
    for raw in read_item(open_source(config, context.recipe.folder), item):
        if isinstance(raw, BadRow):
            continue  # scan has it in its quarantine
        row = rows.pop(sample_id(item.source, storable(raw.key)), None)
        if row is not None:
            yield without_images(raw, row.dropped), row if not raw.licence else replace(row, licence=raw.licence)
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
    columns = ["sample_id", "state", "held_out", "images", "dropped", "language", "scores"]
    scanned = read_table(scan.get(name), SCAN, scan.url(name), columns)
    return {
        row["sample_id"]: SelectedRow(
            sample_id=row["sample_id"],
            held_out=row["held_out"],
            licence=licence,
            images=tuple(map(ImageFacts.of_row, row["images"])),
            dropped=tuple(row["dropped"]),
            language=row["language"],
            scores=tuple((score["name"], score["value"]) for score in row["scores"]),
        )
        for row in scanned.to_pylist()
        if row["state"] == KEPT and row["sample_id"] in kept
    }


def _selected_before(context: StepContext, item: WorkItem, ids: set[bytes], licence: str) -> dict[bytes, SelectedRow]:
    """Samples of a retry's item that earlier generations selected."""
    found: dict[bytes, SelectedRow] = {}
    for retry in range(item.retry):
        part = replace(item, retry=retry).part
        if context.store("select").exists(f"{PARTS}/{part}.parquet"):
            rows = selected_rows(context, part, licence)
            found |= {i: row for i, row in rows.items() if i in ids}
    return found
