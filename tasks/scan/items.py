"""Work items of a recipe's sources, and how one is read: the one place where a source's limit is applied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from infra.errors import SourceError
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Source, WorkItem
from tasks.sources.config import SourceConfig

ITEMS = "items.json"
"""The step file of ``scan`` that lists every work item, in source order."""


def list_items(sources: Sequence[SourceConfig], folder: str | Path, target: int) -> list[WorkItem]:
    """The work items of all sources, in order, about ``target`` samples each; SourceError if a source has none."""
    found: list[WorkItem] = []
    for config in sources:
        source = open_source(config, folder)
        items = list(_limited(source, target if config.limit is None else min(target, config.limit), config.limit))
        if not items:
            raise SourceError(f"source {config.name}: nothing to read in {config.path or config.type}")
        found += items
    return found


def read_item(source: Source, item: WorkItem) -> Iterator[RawSample | BadRow]:
    """The item's rows in order; of the item in which the source's limit falls, only those before it."""
    return islice(source.read(item), item.locator.get("take"))


def dump_items(items: Sequence[WorkItem]) -> bytes:
    """The items as JSON, one fixed text for equal items."""
    return (json.dumps([asdict(i) for i in items], sort_keys=True, indent=0, ensure_ascii=True) + "\n").encode()


def load_items(data: bytes) -> list[WorkItem]:
    """The items that :func:`dump_items` wrote."""
    return [WorkItem(**entry) for entry in json.loads(data)]


def _limited(source: Source, target: int, limit: int | None) -> Iterator[WorkItem]:
    """Items up to the limit. Only a source that has one is read to count its rows, and no further than the limit."""
    left = limit
    for item in source.work_items(target):
        if left is None:
            yield item
            continue
        if left == 0:
            return
        count = sum(1 for _ in islice(source.read(item), left))
        if count:
            yield replace(item, locator={**item.locator, "take": count})
        left -= count
