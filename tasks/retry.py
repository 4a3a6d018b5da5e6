"""What ``calumma retry`` reads again: quarantined samples whose fault a later moment may have mended.

A retry is numbered. Its work items are listed once, in ``items.r1.jsonl`` beside the scan's own list, and each names
the samples it reads; every store then gets a supplementary part (``photos-000003.r1``) and a manifest of its own
(``manifest.r1.json``). Nothing that was committed before is touched, and no other sample is read, hashed or encoded
again. What is killed in the middle goes on with the same list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.store.commit import holds_retry, load_own_manifest, load_parts
from infra.store.manifest import PartManifest
from infra.store.samples import QUARANTINE
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.encode.decode import ERROR_CLASSES
from tasks.scan.items import AGAIN, KEYS, dump_items, listed_items, listed_retries, retry_listing
from tasks.sources.base import WorkItem
from tasks.sources.faults import FAULTS
from tasks.steps import STORES


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """One retry: its number, how many samples of each class it reads again, and whether it was begun before."""

    number: int
    classes: dict[str, int]
    begun: bool
    steps: tuple[str, ...]
    """The stores that exist and are added to, in order."""


def is_transient(error: str) -> bool:
    """Whether reading the same place again may succeed; an unknown class, of a plug-in, is given another chance."""
    if error == "memory":  # another worker may have more of it
        return True
    return error not in ERROR_CLASSES and (error not in FAULTS or FAULTS[error].transient)


def plan_retry(context: StepContext) -> RetryPlan | None:
    """Lists the next retry's work items, or finds the one that was begun; None where there is nothing to try again.

    ``context`` is the scan's, which must be finished. Later stores that are not finished are left to the next run,
    which reads what the retry found along with everything else.
    """
    manifest = context.manifest("scan")
    steps = tuple(s for s in STORES if load_own_manifest(context.store(s), 0) is not None)
    for number in listed_retries(context.store("scan")):  # one that was killed, or of which a part was repaired
        if not all(holds_retry(context.store(s), number) for s in steps):
            items = listed_items(context.store("scan"), number)
            return RetryPlan(number, _classes(context, items), True, steps)
    waiting = {step: _waiting(context, step) for step in ("scan", "encode") if step in steps}
    items = [
        replace(
            item,
            retry=manifest.retry + 1,
            locator={
                **item.locator,
                KEYS: sorted(waiting["scan"].get((item.source, item.index), {})),
                AGAIN: sorted(waiting.get("encode", {}).get((item.source, item.index), {})),
            },
        )
        for item in listed_items(context.store("scan"), 0)
        if any((item.source, item.index) in keys for keys in waiting.values())
    ]
    if not items:
        return None
    context.store("scan").put_new(retry_listing(manifest.retry + 1), dump_items(items))
    found = Counter(error for by_item in waiting.values() for keys in by_item.values() for error in keys.values())
    return RetryPlan(manifest.retry + 1, dict(sorted(found.items())), False, steps)


def retried_rows(context: StepContext, items: list[WorkItem]) -> dict[str, dict[str, int]]:
    """Of the samples that a step's retry tried again, how many of each source and class its quarantine held before."""
    field = {"scan": KEYS, "encode": AGAIN}.get(context.step)
    found: dict[str, Counter[str]] = {}
    if field is None:
        return {}
    before = _waiting(context, context.step, up_to=context.retry - 1)
    for item in items:
        known = before.get((item.source, item.index), {})
        found.setdefault(item.source, Counter()).update(known[k] for k in item.locator[field] if k in known)
    return {source: dict(sorted(counts.items())) for source, counts in found.items() if counts}


def _waiting(context: StepContext, step: str, up_to: int | None = None) -> dict[tuple[str, int], dict[str, str]]:
    """The step's samples in quarantine for a transient class: by work item, key to class."""
    manifest = load_own_manifest(context.store(step), 0)
    assert manifest is not None
    waiting: dict[tuple[str, int], dict[str, str]] = {}
    for item, part in _lossy_parts(context, step, up_to):
        keys = waiting.setdefault((item.source, item.index), {})
        for key in item.locator.get(KEYS if step == "scan" else AGAIN, ()) if item.retry else ():
            keys.pop(key, None)
        if any(map(is_transient, part.rows.quarantined)):
            store, name = context.store(step), f"parts/{part.part}.quarantine.parquet"
            for row in read_table(store.get(name), QUARANTINE, name, ["key", "error"]).to_pylist():
                if is_transient(row["error"]):
                    keys[row["key"]] = row["error"]
    return {place: keys for place, keys in waiting.items() if keys}


def _lossy_parts(context: StepContext, step: str, up_to: int | None) -> Iterator[tuple[WorkItem, PartManifest]]:
    """Parts that quarantined something for a transient class, and all parts of retries; in the order they were made."""
    for retry in (0, *listed_retries(context.store("scan"))):
        if (up_to is not None and retry > up_to) or (retry and not holds_retry(context.store(step), retry)):
            return
        items = listed_items(context.store("scan"), retry)
        parts = load_parts(context.store(step), [item.part for item in items])
        for item, part in zip(items, parts, strict=True):
            if retry or any(map(is_transient, part.rows.quarantined)):
                yield item, part


def _classes(context: StepContext, items: list[WorkItem]) -> dict[str, int]:
    """How many samples of each class the listed retry reads again."""
    found: Counter[str] = Counter()
    for step, field in (("scan", KEYS), ("encode", AGAIN)):
        if any(item.locator[field] for item in items):
            before = _waiting(context, step, up_to=items[0].retry - 1)
            for item in items:
                known = before.get((item.source, item.index), {})
                found.update(known[k] for k in item.locator[field] if k in known)
    return dict(sorted(found.items()))
