"""Step ``scan``: lists work items, then hashes, measures, filters and splits every sample, a part a work item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from infra.errors import SourceError
from infra.store.commit import entry, load_parts
from infra.store.manifest import PartManifest, Rows
from infra.store.samples import QUARANTINE
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.pool import PartOutput, run_items
from tasks.retry import retried_rows
from tasks.scan.config import Device
from tasks.scan.examine import examine
from tasks.scan.facts import Finding, storable, without_images
from tasks.scan.filters import load_class
from tasks.scan.items import (
    ITEMS,
    dump_items,
    key_of,
    list_items,
    listed_items,
    load_items,
    read_range,
    retry_listing,
)
from tasks.scan.rows import ROWS, dump_rows, first_rows
from tasks.scan.scorers import ScoreQueue, Scorers, scorer_class
from tasks.scan.tables import FILTERED, KEPT, QUARANTINED, SCAN
from tasks.scan.tools import Tools
from tasks.sources import open_source
from tasks.sources.base import BadRow, EndOfRange, Source, WorkItem, sample_id

FACTS = ("dropped_pictures", "faces", "held_out", "pictures", "text_bytes")
"""What is counted of a part's kept samples, and summed by source."""
LANGUAGES = 20
"""The most frequent languages of a source, in the step's facts."""


class ScanWorker:
    """Scans work items: every row of the source becomes one row of the table."""

    def __init__(self, context: StepContext) -> None:
        self._recipe = context.recipe
        scan, folder = self._recipe.scan, self._recipe.folder
        self._tools = Tools.of(scan, folder)
        device: Device = "cuda" if self._recipe.resources.data_gpus else "cpu"
        self._scorers = Scorers(scan.scorers, folder, device) if scan.scorers else None
        self._sources: dict[str, Source] = {}

    def process(self, item: WorkItem) -> PartOutput:
        config, scan = self._recipe.source(item.source), self._recipe.scan
        places: list[tuple[str, str, int]] = []
        findings: list[Finding] = []
        queue = None if self._scorers is None else ScoreQueue(self._scorers, self._tools.pictures)
        lines = None
        for raw in read_range(self._source(item.source), item):
            if isinstance(raw, EndOfRange):
                lines = raw.lines
                continue
            if isinstance(raw, BadRow):
                finding = Finding(QUARANTINED, raw.error, raw.message)
            else:
                finding = examine(raw, config, scan, self._tools, self._recipe.seed)
                if queue is not None and finding.state == KEPT:
                    queue.add(len(findings), without_images(raw, finding.dropped))
            places.append((key_of(raw, item), raw.file, raw.row))
            findings.append(finding)
        if queue is not None:
            queue.finish(findings)
        return self._part(item, places, findings, lines)

    def _part(
        self, item: WorkItem, places: list[tuple[str, str, int]], findings: list[Finding], lines: int | None
    ) -> PartOutput:
        rows = [
            finding.row(sample_id(item.source, key), key, file, row)
            for (key, file, row), finding in zip(places, findings, strict=True)
        ]
        quarantine = [
            {k: row[k] for k in ("key", "file", "row")}
            | {"source": item.source, "error": finding.reason, "message": storable(finding.message)}
            for row, finding in zip(rows, findings, strict=True)
            if finding.state == QUARANTINED
        ]
        files = {f"{item.part}.parquet": write_table(rows, SCAN)}
        if quarantine:
            files[f"{item.part}.quarantine.parquet"] = write_table(quarantine, QUARANTINE)
        facts = _facts(findings) | ({} if lines is None else {"lines": lines})
        return PartOutput(item.part, item.source, files, _ledger(findings), facts=facts)

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = open_source(self._recipe.source(name), self._recipe.folder)
        return self._sources[name]


def run(context: StepContext, workers: int | None = None) -> None:
    """Scans every source, or in a retry what it reads again; ``workers=0`` works in this process."""
    scan = context.recipe.scan
    for number, plug_in in enumerate(scan.filters):  # before any work is done, and without making them
        load_class(plug_in.type, f"scan.filters.{number}")
    for scorer in scan.scorers:
        scorer_class(scorer)
    items = listed_items(context.store(), context.retry) if context.retry else _listed(context)
    gpus = context.recipe.resources.data_gpus if scan.scorers else 0
    parts = run_items(context, items, ScanWorker, workers=workers, gpus=gpus, unit="parts")
    facts = {"sources": _by_source(load_parts(context.store(), context.parts(parts)))}
    if context.retry:
        listing = retry_listing(context.retry)
        files = [entry(listing, context.store().get(listing))]
        context.finish(parts=parts, files=files, facts=facts, retried=retried_rows(context, items))
        return
    lines = _check_and_count(context, parts)
    rows = dump_rows(first_rows(items, lines))
    context.store().put(ROWS, rows)
    files = [entry(ITEMS, context.store().get(ITEMS)), entry(ROWS, rows)]
    context.finish(parts=parts, files=files, facts=facts)


def _listed(context: StepContext) -> list[WorkItem]:
    """The work items: as an earlier attempt listed them, else listed now. The step's address says that they agree."""
    recipe, store = context.recipe, context.store()
    listing = store.get_or_none(ITEMS)
    if listing is None:
        listing = dump_items(list_items(recipe.sources, recipe.folder, recipe.scan.item_samples))
        store.put(ITEMS, listing)
    return load_items(listing)


def _ledger(findings: Sequence[Finding]) -> Rows:
    states = Counter(f.state for f in findings)

    def reasons(state: str) -> dict[str, int]:
        return dict(sorted(Counter(f.reason for f in findings if f.state == state).items()))

    return Rows(entered=len(findings), out=states[KEPT], filtered=reasons(FILTERED), quarantined=reasons(QUARANTINED))


def _facts(findings: Sequence[Finding]) -> dict[str, Any]:
    kept = [f for f in findings if f.state == KEPT]
    facts: dict[str, Any] = {
        "dropped_pictures": sum(len(f.dropped) for f in kept),
        "faces": sum(len(i.faces) for f in kept for i in f.images),
        "held_out": sum(f.held_out for f in kept),
        "pictures": sum(len(f.images) for f in kept),
        "text_bytes": sum(f.text_bytes for f in kept),
    }
    languages = Counter(f.language for f in kept if f.language)
    return facts | ({"languages": dict(sorted(languages.items()))} if languages else {})


def _check_and_count(context: StepContext, parts: list[str]) -> dict[str, int]:
    """Lines of the parts that cover a range of lines.

    A source of which not one sample is usable is a wrong option more often than bad data: SourceError, to stop here.
    """
    ledgers: dict[str, Rows] = {}
    lines: dict[str, int] = {}
    for manifest in load_parts(context.store(), parts):
        ledgers[manifest.source] = ledgers.get(manifest.source, Rows()) + manifest.rows
        if "lines" in manifest.facts:
            lines[manifest.part] = int(manifest.facts["lines"])
    for source, rows in ledgers.items():
        if rows.out == 0:
            why = ", ".join(f"{n:,} {reason}" for reason, n in sorted({**rows.filtered, **rows.quarantined}.items()))
            raise SourceError(
                f"source {source}: none of its {rows.entered:,} rows is usable ({why or 'it is empty'}). "
                f"Check its options and the filters under `scan`; {context.store().url('parts')} says why, row by row."
            )
    return lines


def _by_source(parts: Iterable[PartManifest]) -> dict[str, dict[str, Any]]:
    """The parts' facts, summed by source; of languages the most frequent, most frequent first."""
    totals: dict[str, Counter[str]] = {}
    languages: dict[str, Counter[str]] = {}
    for part in parts:
        totals.setdefault(part.source, Counter()).update({k: part.facts[k] for k in FACTS})
        languages.setdefault(part.source, Counter()).update(part.facts.get("languages", {}))
    found: dict[str, dict[str, Any]] = {}
    for source, counts in totals.items():
        found[source] = {name: counts[name] for name in FACTS}
        if languages[source]:
            top = sorted(languages[source].items(), key=lambda entry: (-entry[1], entry[0]))[:LANGUAGES]
            found[source]["languages"] = [[language, count] for language, count in top]
    return found
