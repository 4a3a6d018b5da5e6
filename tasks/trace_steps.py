"""What each step's part says of a sample: the rows of tables, of quarantine, and what no manifest tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS, load_part, part_manifest_name
from tasks.addresses import Addresses, parse_part
from tasks.ledger_table import gone_words
from tasks.quarantine import quarantine_table
from tasks.steps import STORES

LONG = ("picture", "captions", "segments", "tokens", "loss", "near")
"""Columns that are not read to tell where a sample came from."""
NOT_THERE, UNKNOWN = "not there", "cannot tell"


@dataclass(frozen=True, slots=True)
class Stop:
    """What one step's part says of the sample."""

    step: str
    index: int | None
    """Its row in the part's table, from 0; None where it is not in it."""
    state: str
    """kept, filtered, quarantined, dropped, left out, ``not there``; ``cannot tell``: a manifest is missing."""
    reason: str = ""
    message: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    """The table's row, without what is long: codes and ids."""


def _made_once(addresses: Addresses, step: str, part: str) -> bool:
    """Whether the step must have had the part: its manifest lists it, or ``mix`` was made from it."""
    manifest = addresses.manifest(step)
    if manifest is not None and part in manifest.parts:
        return True
    name = parse_part(part)
    return name is not None and not name.retry and addresses.manifest("mix") is not None


def stops(addresses: Addresses, part: str, wanted: bytes) -> Iterator[Stop]:
    """What each step's part of this name says."""
    key, came, maybe = "", False, False
    for step in (s for s in STORES if s in addresses.prints):
        store = addresses.store(step)
        made = store.exists(part_manifest_name(part))
        index = index_of(store, part, wanted) if made else None
        row = {} if index is None else row_at(store, part, index)
        key = row.get("key", key)
        lost = next((q for q in quarantine_table(store, part) if q["key"] == key), None) if made and key else None
        if lost is not None:
            yield Stop(step, index, "quarantined", lost["error"], lost["message"], row)
        elif index is None and made and came:  # tokenize counts what it leaves out, and does not list it
            gone = "; ".join(gone_words(load_part(store, part).rows))
            yield Stop(step, None, "left out", f"this part has {gone}" if gone else "nothing says why")
        elif not made and maybe and _made_once(addresses, step, part):
            yield Stop(step, None, UNKNOWN, f"{part_manifest_name(part)} is missing")
            came = False
            continue
        elif index is None:
            yield Stop(step, None, NOT_THERE)
        elif step == "scan":
            yield Stop(step, index, row["state"], row["reason"], row=row)
        elif step == "select":
            yield Stop(step, index, "kept" if row["keep"] else "dropped", row["reason"], row=row)
        else:
            yield Stop(step, index, "kept", row=row)
        kept = row.get("state", "kept") == "kept" and row.get("keep", True)
        came = maybe = lost is None and index is not None and kept


def index_of(store: Storage, part: str, wanted: bytes) -> int | None:
    """The row of a sample in a part's table; None where it has none."""
    with store.open(f"{PARTS}/{part}.parquet") as f:
        index: int = pc.index(pq.ParquetFile(f).read(columns=["sample_id"])["sample_id"], wanted).as_py()
    return None if index < 0 else index


def row_at(store: Storage, part: str, index: int) -> dict[str, Any]:
    """One row of a part's table without ids and codes; only its row group is read."""
    with store.open(f"{PARTS}/{part}.parquet") as f:
        file, first = pq.ParquetFile(f), 0
        columns = [name for name in file.schema_arrow.names if name not in LONG]
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if index < first + count:
                row: dict[str, Any] = file.read_row_group(group, columns=columns).slice(index - first, 1).to_pylist()[0]
                for image in row.get("images", []):
                    image.pop("codes", None)
                return row
            first += count
    raise StoreError(f"{store.url(part)}: no row {index}; it has {first:,}, counted from 0")
