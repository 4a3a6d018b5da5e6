"""True row numbers of line files that are read in byte ranges.

Nobody counts lines before they are read, so a range's reader counts from its own start and tells at the end how many
lines the range covers. When all parts are scanned, :func:`first_rows` adds these up, file by file. ``scan``'s own
tables keep the rows as they were counted; everything later reads with the true ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from infra.storage import Storage
from tasks.sources.base import WorkItem

ROWS = "rows.json"
"""The step file of ``scan`` with the first row of every part that does not start at its file's first."""


def first_rows(items: Iterable[WorkItem], lines: Mapping[str, int]) -> dict[str, int]:
    """The first row (1-based) of every part that does not start at row 1 of its file, by the part's name.

    ``lines`` holds how many lines each part covers, where its reader told. Ranges of one file follow each other.
    """
    found: dict[str, int] = {}
    place, row = ("", ""), 1
    for item in items:
        here = (item.source, str(item.locator.get("file")))
        if here != place or item.locator.get("start") == 0:
            place, row = here, 1
        if row > 1 and item.part in lines:
            found[item.part] = row
        row += lines.get(item.part, 0)
    return found


def dump_rows(rows: Mapping[str, int]) -> bytes:
    """One fixed text for equal rows."""
    return (json.dumps(rows, sort_keys=True, separators=(",", ":")) + "\n").encode()


def load_rows(scan: Storage) -> dict[str, int]:
    """What :func:`dump_rows` wrote in ``scan``'s folder; empty while ``scan`` is not finished."""
    data = scan.get_or_none(ROWS)
    return {} if data is None else dict(json.loads(data))


def base_part(item: WorkItem) -> str:
    """The part of the item as it was listed first, before any retry."""
    return replace(item, retry=0).part


def with_first_row(item: WorkItem, rows: Mapping[str, int]) -> WorkItem:
    """The item with its first row in the locator, for the reader to count from.

    ``before`` says the same to :func:`tasks.scan.items.read_item`, which compares keys as scan's tables have them.
    """
    row = rows.get(base_part(item))
    return item if row is None else replace(item, locator={**item.locator, "row": row, "before": row - 1})
