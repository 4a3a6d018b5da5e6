"""The ledger, checked: in = out + filtered + duplicate + quarantined + removed, in every part and from step to step.

``scan``, ``select``, ``encode`` and ``tokenize`` make one part a work item, so that what leaves a part of one step must
enter the part of the same name in the next. A retry adds parts (``emoji-000003.r1``) for rows that were quarantined:
those rows have two lines, and count once, where they ended, in the net sum. Manifests are read in batches and summed
as they come, so that memory does not grow with the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infra.errors import StoreError
from infra.store.commit import load_parts
from infra.store.manifest import Rows
from tasks.addresses import Addresses
from tasks.ledger_parts import Ledger, SourceLedger, StepLedger, StoreCheck, open_by, part_name, short
from tasks.scan.selected import work_items
from tasks.steps import STORES

BATCH = 1024
"""Parts whose manifests are in memory together."""
OnPart = Callable[[str, Mapping[str, Rows | None]], None]


def check_ledger(
    addresses: Addresses, *, step: str | None = None, source: str | None = None, on_part: OnPart | None = None
) -> Ledger:
    """Sums and checks the whole ledger, or one step's or source's.

    Args:
        on_part: Given each part's name and its rows by step (None where it is not made) as soon as they are checked.
    """
    wanted, sources = addresses.steps(step), addresses.sources(source)
    ledger = Ledger()
    stores = [s for s in wanted if s in STORES]
    if stores:
        before = STORES[max(0, STORES.index(stores[0]) - 1)]
        read = [s for s in STORES if s in stores or (s == before and s in addresses.prints)]
        checks = [StoreCheck(addresses, s, ledger if s in stores else Ledger(), set(sources)) for s in read]
        _check_parts(addresses, checks, sources, on_part)
        for check in checks:
            if check.step in stores:
                check.finish()
                ledger.steps.append(check.found)
    for name in wanted:
        if name not in STORES and (found := _other_step(addresses, name, ledger, sources)) is not None:
            ledger.steps.append(found)
    return ledger


def _check_parts(
    addresses: Addresses, checks: Sequence[StoreCheck], sources: Sequence[str], on_part: OnPart | None
) -> None:
    """Goes through all parts, in the work items' order, then those of retries."""
    try:
        items = [item.part for item in work_items(addresses.context("scan"))]
    except StoreError:  # scan has not listed them yet
        items = None
    made = set().union(*(check.done for check in checks))
    known = set(items if items is not None else (p for p in made if not part_name(p).retry))
    for check in checks:
        check.expect(known if items is not None else None)
    names = [*(items if items is not None else sorted(known)), *sorted(made - known)]
    names = [n for n in names if part_name(n).source in ("", *sources)]
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        loaded = [check.load(batch) for check in checks]
        for part in batch:
            found = [manifests.get(part) for manifests in loaded]
            for number, (check, manifest) in enumerate(zip(checks, found, strict=True)):
                if manifest is not None:
                    check.add(manifest, part, found[number - 1] if number else None, first=number == 0)
                elif part in known:
                    check.lacks(part)
            if on_part is not None:
                on_part(part, {c.step: None if m is None else m.rows for c, m in zip(checks, found, strict=True)})


def _other_step(addresses: Addresses, step: str, ledger: Ledger, sources: Sequence[str]) -> StepLedger | None:
    """A step whose parts are other things than work items, such as files of sequences; None if it keeps no ledger."""
    manifest = addresses.manifest(step)
    if manifest is None or not manifest.rows:
        return None
    found = StepLedger(step, addresses.folder(step), "done", len(manifest.parts), len(manifest.parts))
    summed: dict[str, Rows] = {}
    for part in load_parts(addresses.store(step), manifest.parts):
        if part.rows.balance:
            ledger.fault(open_by(part.rows), step, part.source, part.part)
        summed[part.source] = summed.get(part.source, Rows()) + part.rows
    documents = addresses.manifest("tokenize") if step == "mix" else None
    own = [s.name for s in addresses.recipe.sources]
    for source in sorted(manifest.rows, key=lambda name: (own.index(name) if name in own else len(own), name)):
        rows = manifest.rows[source]
        if rows == Rows() or source not in (sources if source in own or len(sources) < len(own) else manifest.rows):
            continue
        found.sources[source] = SourceLedger(rows)
        if rows.balance:
            ledger.fault(open_by(rows), step, source)
        if source in summed and summed[source] != rows:
            ledger.fault(
                f"the step's manifest says {short(rows)}, its parts sum to {short(summed[source])}", step, source
            )
        if documents is not None and source in documents.rows and documents.rows[source].out != rows.entered:
            ledger.fault(
                f"{documents.rows[source].out:,} documents left tokenize and {rows.entered:,} entered", step, source
            )
    return found if found.sources else None
