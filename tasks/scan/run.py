"""Step ``scan``: lists work items, then hashes, measures, filters and splits every sample, a part a work item."""

from __future__ import annotations

from collections import Counter
from typing import Any

from infra.errors import SourceError
from infra.store.commit import entry, load_part
from infra.store.manifest import Rows
from infra.store.samples import QUARANTINE
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.pool import PartOutput, run_items
from tasks.scan.examine import Finding, examine, row_of, storable
from tasks.scan.items import ITEMS, dump_items, list_items, read_item
from tasks.scan.tables import FILTERED, KEPT, QUARANTINED, SCAN
from tasks.sources import open_source
from tasks.sources.base import BadRow, Source, WorkItem, sample_id


class ScanWorker:
    """Scans work items: every row of the source becomes one row of the table."""

    def __init__(self, context: StepContext) -> None:
        self._recipe = context.recipe
        self._sources: dict[str, Source] = {}

    def process(self, item: WorkItem) -> PartOutput:
        config = self._recipe.source(item.source)
        rows: list[dict[str, Any]] = []
        quarantine: list[dict[str, Any]] = []
        for raw in read_item(self._source(item.source), item):
            if isinstance(raw, BadRow):
                key, finding = f"{raw.file}#{raw.row}", Finding(QUARANTINED, raw.error, raw.message)
            else:
                key, finding = raw.key, examine(raw, config.kind, self._recipe.scan, self._recipe.seed)
            row = row_of(sample_id(item.source, storable(key)), key, raw.file, raw.row, finding)
            rows.append(row)
            if finding.state == QUARANTINED:
                quarantine.append(
                    {k: row[k] for k in ("key", "file", "row")}
                    | {"source": item.source, "error": finding.reason, "message": storable(finding.message)}
                )
        files = {f"{item.part}.parquet": write_table(rows, SCAN)}
        if quarantine:
            files[f"{item.part}.quarantine.parquet"] = write_table(quarantine, QUARANTINE)
        return PartOutput(item.part, item.source, files, _ledger(rows), facts=_facts(rows))

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = open_source(self._recipe.source(name), self._recipe.folder)
        return self._sources[name]


def run(context: StepContext, workers: int | None = None) -> None:
    """Scans every source; ``workers=0`` works in this process."""
    recipe = context.recipe
    items = list_items(recipe.sources, recipe.folder, recipe.scan.item_samples)
    listing = dump_items(items)
    context.store().put(ITEMS, listing)
    parts = run_items(context, items, ScanWorker, workers=workers, unit="parts")
    _refuse_nothing_kept(context, parts)
    context.finish(parts=parts, files=[entry(ITEMS, listing)], facts={"sources": _by_source(context, parts)})


def _ledger(rows: list[dict[str, Any]]) -> Rows:
    states = Counter(r["state"] for r in rows)

    def reasons(state: str) -> dict[str, int]:
        return dict(sorted(Counter(r["reason"] for r in rows if r["state"] == state).items()))

    return Rows(entered=len(rows), out=states[KEPT], filtered=reasons(FILTERED), quarantined=reasons(QUARANTINED))


def _facts(rows: list[dict[str, Any]]) -> dict[str, int]:
    kept = [r for r in rows if r["state"] == KEPT]
    return {
        "held_out": sum(r["held_out"] for r in kept),
        "pictures": sum(len(r["images"]) for r in kept),
        "text_bytes": sum(r["text_bytes"] for r in kept),
    }


def _refuse_nothing_kept(context: StepContext, parts: list[str]) -> None:
    """A source of which not one sample is usable is a wrong option more often than bad data: better to stop here."""
    ledgers: dict[str, Rows] = {}
    for part in parts:
        manifest = load_part(context.store(), part)
        ledgers[manifest.source] = ledgers.get(manifest.source, Rows()) + manifest.rows
    for source, rows in ledgers.items():
        if rows.out == 0:
            why = ", ".join(f"{n:,} {reason}" for reason, n in sorted({**rows.filtered, **rows.quarantined}.items()))
            raise SourceError(
                f"source {source}: none of its {rows.entered:,} rows is usable ({why or 'it is empty'}). "
                f"Check its options and the filters under `scan`; {context.store().url('parts')} says why, row by row."
            )


def _by_source(context: StepContext, parts: list[str]) -> dict[str, dict[str, int]]:
    """The parts' facts, summed by source: kept samples that are held out, pictures, UTF-8 bytes of text."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        manifest = load_part(context.store(), part)
        totals.setdefault(manifest.source, Counter()).update(manifest.facts)
    return {source: dict(sorted(counts.items())) for source, counts in totals.items()}
