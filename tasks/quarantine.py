"""What lies in quarantine: rows by step, part, class, file and row; and which of them are worth another try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS, done_parts, load_parts
from infra.store.samples import QUARANTINE
from infra.store.tables import read_table
from tasks.addresses import Addresses, PartName, parse_part
from tasks.retry import is_transient
from tasks.scan.items import AGAIN, KEYS
from tasks.scan.selected import first_row, work_items
from tasks.sources.faults import FAULTS
from tasks.steps import STORES

Tries = Mapping[str, Collection[tuple[int, str]]]
"""By the name of an item's first part: (retry, key) of every row that a retry took out of quarantine."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One row that could not be used, and that no later retry took out."""

    step: str
    part: str
    source: str
    key: str
    file: str
    row: int
    error: str
    message: str


def quarantined(addresses: Addresses, step: str | None = None, source: str | None = None) -> Iterator[Quarantined]:
    """All rows in quarantine, step by step and part by part."""
    sources = addresses.sources(source)
    for name in (s for s in STORES if s in addresses.prints and step in (None, s)):
        store = addresses.store(name)
        done = done_parts(store)
        parts = sorted(p for p in done if (found := parse_part(p)) and found.source in sources)
        tries = tried_again(addresses, name, done)
        first = first_row(addresses.context("scan")) if name == "scan" else {}
        for manifest in load_parts(store, parts):
            if manifest.rows.quarantined:
                yield from rows_of_part(store, name, manifest.part, tries, first.get(manifest.part, 1))


def rows_of_part(store: Storage, step: str, part: str, tries: Tries, first: int = 1) -> Iterator[Quarantined]:
    """A part's rows in quarantine, without those that a later retry read again.

    ``first`` is the true number of the row that the part calls 1: scan's tables count from where a range begins.
    """
    name = parse_part(part) or PartName(part, 0)
    later = {key for retry, key in tries.get(name.base, ()) if retry > name.retry}
    for row in quarantine_table(store, part):
        if row["key"] not in later:
            yield Quarantined(step, part, **row | {"row": row["row"] + first - 1})


def tried_again(addresses: Addresses, step: str, done: Collection[str]) -> Tries:
    """What retries took out of a step's quarantine; ``done`` are the step's committed parts."""
    found: dict[str, set[tuple[int, str]]] = {}
    field = {"scan": KEYS, "encode": AGAIN}.get(step)
    if field is None:
        return found
    try:
        items = work_items(addresses.context("scan"))
    except StoreError:  # scan has not listed them yet
        return found
    for item in items:
        if (name := parse_part(item.part)) and name.retry and item.part in done:
            found.setdefault(name.base, set()).update((name.retry, key) for key in item.locator.get(field, ()))
    return found


def quarantine_table(store: Storage, part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part's quarantine file; none where it has no such file."""
    name = f"{PARTS}/{part}.quarantine.parquet"
    if (data := store.get_or_none(name)) is not None:
        for batch in read_table(data, QUARANTINE, store.url(name)).to_batches():
            yield from batch.to_pylist()


def about(error: str) -> str:
    """What a class of faults means, in words."""
    return FAULTS[error].about if error in FAULTS else "the picture's file itself is at fault"


def render_quarantine(rows: Iterable[Quarantined], limit: int) -> Iterator[RenderableType]:
    """Rows by class, the first ``limit`` of each, and a table of the classes with what ``retry`` would do."""
    shown: dict[str, list[Quarantined]] = {}
    counts = Counter[str]()
    for row in rows:
        counts[row.error] += 1
        if counts[row.error] <= limit:
            shown.setdefault(row.error, []).append(row)
    if not counts:
        yield Text("Nothing is in quarantine.", "green")
        return
    for error, count in counts.most_common():
        own = shown.get(error, [])
        table = Table(title=Text(f"{error}: {count:,} row{'' if count == 1 else 's'}"), title_justify="left")
        for column in ("step", "part", "file", "row", "message"):
            table.add_column(column, justify="right" if column == "row" else "left", overflow="fold")
        for row in own:
            table.add_row(row.step, row.part, Text(row.file), f"{row.row:,}", Text(row.message))
        if count > len(own):
            table.add_row("", "", f"… and {count - len(own):,} more (--limit)", "", "")
        yield table
    classes = Table(title="What calumma retry would do", title_justify="left")
    for column in ("class", "rows", "tried again", "what it means"):
        classes.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for error, count in counts.most_common():
        again = Text("yes", "green") if is_transient(error) else Text("no", "dim")
        classes.add_row(error, f"{count:,}", again, about(error))
    yield classes


def as_json(rows: Iterable[Quarantined], limit: int) -> dict[str, Any]:
    """By class: how many, whether a retry would try them, and the first ``limit`` rows."""
    found: dict[str, Any] = {}
    for row in rows:
        own = found.setdefault(row.error, {"count": 0, "transient": is_transient(row.error), "rows": []})
        own["count"] += 1
        own["rows"] += [asdict(row)] if own["count"] <= limit else []
    return found
