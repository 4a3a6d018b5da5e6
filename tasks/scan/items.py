"""Work items of a recipe's sources, and how one is read: the one place where a source's limit is applied.

``scan`` lists the items in ``items.jsonl``; what the k-th ``calumma retry`` reads again is listed in ``items.rK.jsonl``
beside it. All hold one JSON object a line, so that 100,000 items are written and read in a second or two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from infra.errors import SourceError, StoreError
from infra.storage import Storage
from infra.store.commit import step_manifest_name
from tasks.scan.facts import storable
from tasks.sources import open_source
from tasks.sources.base import BadRow, EndOfRange, RawSample, Source, WorkItem
from tasks.sources.config import SourceConfig

ITEMS = "items.jsonl"
"""The step file of ``scan`` that lists every work item, in source order."""
KEYS = "keys"
"""In a retry item's locator: keys that ``scan`` had in quarantine and reads again."""
AGAIN = "again"
"""In a retry item's locator: keys that ``encode`` lost after ``scan`` had kept them; ``scan`` leaves them alone."""
_RETRY = re.compile(r"items\.r([1-9][0-9]*)\.jsonl")


def retry_listing(retry: int) -> str:
    """The step file of ``scan`` that lists the items of the k-th retry; of the step itself for 0."""
    return f"items.r{retry}.jsonl" if retry else ITEMS


def list_items(sources: Sequence[SourceConfig], folder: str | Path, target: int) -> Iterator[WorkItem]:
    """The work items of all sources, in order, about ``target`` samples each; SourceError if a source has none."""
    for config in sources:
        source, empty = open_source(config, folder), True
        for item in _limited(source, target if config.limit is None else min(target, config.limit), config.limit):
            empty = False
            yield item
        if empty:
            raise SourceError(f"source {config.name}: nothing to read in {config.path or config.type}")


def read_item(source: Source, item: WorkItem) -> Iterator[RawSample | BadRow]:
    """The item's rows in order: of the item in which the source's limit falls those before it, of a retry its keys."""
    return (row for row in read_range(source, item) if not isinstance(row, EndOfRange))


def read_range(source: Source, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
    """As :func:`read_item`, and at the end how many lines the item covers, from readers that tell."""
    rows = source.read(item)
    take, keys = item.locator.get("take"), item.locator.get(KEYS)
    rows = rows if take is None else islice(rows, take)
    if keys is None:
        yield from rows
        return
    wanted = set(keys)
    for row in rows:
        # What was no sample then, for a file that could not be read, may be one now, with a key of its own.
        if isinstance(row, EndOfRange) or key_of(row, item) in wanted or _place_of(row, item) in wanted:
            yield row


def key_of(row: RawSample | BadRow, item: WorkItem) -> str:
    """The key that scan's tables have. A row that is no sample has ``file#row``, in a byte range ``file@start#row``.

    The row is counted from the range's start, since the scan knows no other number.
    """
    return storable(row.key) if isinstance(row, RawSample) else _place_of(row, item)


def _place_of(row: RawSample | BadRow, item: WorkItem) -> str:
    start = item.locator.get("start")
    place = f"@{start}" if start else ""
    return storable(f"{row.file}{place}#{row.row - item.locator.get('before', 0)}")


def dump_items(items: Iterable[WorkItem]) -> bytes:
    """The items as JSON lines, one fixed text for equal items."""
    return b"".join((json.dumps(_entry(item), sort_keys=True, separators=(",", ":")) + "\n").encode() for item in items)


def load_items(data: bytes) -> list[WorkItem]:
    """The items that :func:`dump_items` wrote."""
    try:
        return [WorkItem(**json.loads(line)) for line in data.splitlines()]
    except (ValueError, TypeError) as e:
        raise StoreError(
            f"a list of work items is damaged ({e}). calumma verify WORKDIR names its file; --repair has it made again."
        ) from e


def listed_items(scan: Storage, retry: int = 0) -> list[WorkItem]:
    """The items of the step (0) or of its k-th retry, in source order, from ``scan``'s folder."""
    data = scan.get_or_none(retry_listing(retry))
    if data is None:
        raise StoreError(f"{scan.url(retry_listing(retry))}: no such file. Run step scan first: --only scan.")
    return load_items(data)


def all_items(scan: Storage, finished: bool = False) -> list[WorkItem]:
    """Every item in ``scan``'s folder: those of the step in source order, then those of each retry.

    ``finished``: only of retries that ``scan`` has finished, which are those that later steps can read.
    """
    retries = listed_retries(scan)
    if finished:
        retries = [retry for retry in retries if scan.exists(step_manifest_name(retry))]
    return [item for retry in (0, *retries) for item in listed_items(scan, retry)]


def listed_retries(scan: Storage) -> list[int]:
    """The numbers of the retries that were begun, in order."""
    return sorted(int(found[1]) for name in scan.list(suffix=".jsonl") if (found := _RETRY.fullmatch(name)))


def _entry(item: WorkItem) -> dict[str, Any]:
    entry: dict[str, Any] = {"source": item.source, "index": item.index, "locator": item.locator}
    return entry | {"retry": item.retry} if item.retry else entry


def _limited(source: Source, target: int, limit: int | None) -> Iterator[WorkItem]:
    """Items up to the limit. Only a source that has one is read to count its rows, and no further than the limit."""
    left = limit
    for item in source.work_items(target):
        if left is None:
            yield item
            continue
        if left == 0:
            return
        rows = (row for row in source.read(item) if not isinstance(row, EndOfRange))
        count = sum(1 for _ in islice(rows, left))
        if count:
            yield item if count < left else replace(item, locator={**item.locator, "take": count})
        left -= count
