"""``calumma trace``: from anything that a run made back to the file, row and licence that it came from.

A sample is found by its id, its key or its row in a part; a place in training by its position or by stage and sequence.
Tables are read part by part and only the columns that are looked at; nothing is kept but what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS, done_parts, load_part, part_manifest_name
from infra.store.plan import PackedStore
from tasks.addresses import Addresses, parse_part
from tasks.ledger_table import gone_words
from tasks.occurrences import (
    SequenceTrace,
    Use,
    packed_stores,
    sequence_at,
    trace_sequence,
    track,
    uses_of,
)
from tasks.quarantine import quarantine_table
from tasks.scan.facts import storable
from tasks.scan.items import read_item
from tasks.scan.selected import first_row, work_items
from tasks.sources import open_source
from tasks.sources.base import RawSample, sample_id
from tasks.steps import STORES

READERS = 8
Progress = Any
"""A ``rich.progress.Progress``, or None."""
LONG = ("picture", "captions", "segments", "tokens", "loss", "near")
"""Columns that are not read to tell where a sample came from."""
NOT_THERE = "not there"


@dataclass(frozen=True, slots=True)
class Stop:
    """What one step's part says of the sample."""

    step: str
    index: int | None
    """Its row in the part's table, from 0; None where it is not in it."""
    state: str
    """kept, filtered, quarantined, dropped, left out, or ``not there``."""
    reason: str = ""
    message: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    """The table's row, without what is long: codes and ids."""


@dataclass(frozen=True)
class Generation:
    """One pass of the sample through the steps: the first, or a retry's."""

    part: str
    stops: tuple[Stop, ...]


@dataclass(frozen=True)
class SampleTrace:
    """A sample's way."""

    source: str
    sample_id: bytes
    key: str
    file: str
    row: int
    """In its file, from 1 or as its reader counts."""
    licence: str
    kind: str
    generations: tuple[Generation, ...]
    uses: tuple[Use, ...] = ()
    uses_known: bool = False
    """False where ``mix`` is not finished, so that nobody knows where it will be used."""


def trace(addresses: Addresses, what: str, progress: Progress = None) -> list[SampleTrace] | SequenceTrace:
    """Finds what is asked for.

    Args:
        what: A sample id (32 hex digits), ``SOURCE:KEY`` or ``KEY``, ``PART#ROW`` (a row of the sample store, from 0);
            a position of pre-training, or ``STAGE:SEQUENCE``.

    Raises:
        StoreError: There is no such thing, or a step that is needed is not there.
    """
    names = [s.name for s in addresses.recipe.sources]
    if re.fullmatch("[0-9a-f]{32}", what):
        return _samples(addresses, {name: bytes.fromhex(what) for name in names}, what, progress)
    if what.isdecimal():
        return trace_sequence(addresses, *sequence_at(addresses, int(what)), position=int(what))
    head, _, tail = what.rpartition("#")
    if (part := parse_part(head)) and part.source in names and tail.isdecimal():
        wanted = _id_in_part(addresses, head, int(tail))
        return _samples(addresses, {part.source: wanted}, what, progress, part.base)
    head, _, tail = what.rpartition(":")
    if head and tail.isdecimal() and head not in names and (store := _packed_store(addresses, head)):
        return trace_sequence(addresses, store, int(tail))
    head, sign, tail = what.partition(":")
    if sign and head in names:
        return _samples(addresses, {head: sample_id(head, storable(tail))}, what, progress)
    return _samples(addresses, {name: sample_id(name, storable(what)) for name in names}, what, progress)


def raw_sample(addresses: Addresses, found: SampleTrace) -> RawSample:
    """The sample as its source has it now; SourceError or StoreError if it can no longer be read."""
    base = parse_part(found.generations[0].part)
    for item in work_items(addresses.context("scan")):
        if base is not None and item.part == base.base:
            source = open_source(addresses.recipe.source(item.source), addresses.recipe.folder)
            for raw in read_item(source, item):
                if isinstance(raw, RawSample) and storable(raw.key) == found.key:
                    return raw
    raise StoreError(f"source {found.source} has no sample {found.key!r} any more, or the row is no sample at all")


def _samples(
    addresses: Addresses, wanted: dict[str, bytes], what: str, progress: Progress, base: str | None = None
) -> list[SampleTrace]:
    """The samples with these ids, one a source at most."""
    store = addresses.store("scan") if "scan" in addresses.prints else None
    done = done_parts(store) if store is not None else set()
    parts = sorted(p for p in done if (n := parse_part(p)) and not n.retry and n.source in wanted)
    if base is not None:
        parts = [p for p in parts if p == base]
    left, found = dict(wanted), []

    def look(part: str) -> bool:
        name = parse_part(part)
        own = left.get(name.source) if name else None
        return own is not None and store is not None and _index(store, part, own) is not None

    with ThreadPoolExecutor(READERS) as pool:
        for part, here in zip(parts, track(pool.map(look, parts), len(parts), "looking for it", progress), strict=True):
            if here and (name := parse_part(part)):
                found.append(_sample(addresses, part, name.source, left.pop(name.source), progress))
            if not left:
                pool.shutdown(cancel_futures=True)
                break
    if not found:
        among = f"{len(parts):,} scanned parts of {', '.join(wanted)}"
        raise StoreError(
            f"{what}: no such sample in {among}. Give a sample id (32 hex digits), SOURCE:KEY, PART#ROW, a position in "
            "training, or STAGE:SEQUENCE. While scan is under way, only what it has committed is known."
        )
    return found


def _sample(addresses: Addresses, part: str, source: str, wanted: bytes, progress: Progress) -> SampleTrace:
    later = sorted(
        (name.retry, p)
        for p in done_parts(addresses.store("scan"))
        if (name := parse_part(p)) and name.base == part and name.retry
    )
    generations = [Generation(p, tuple(_stops(addresses, p, wanted))) for p in (part, *(p for _, p in later))]
    generations = [g for g in generations if any(s.index is not None or s.state != NOT_THERE for s in g.stops)]
    row = next(s.row for s in generations[0].stops if s.step == "scan")
    encoded = [s.row for g in generations for s in g.stops if s.step == "encode" and s.index is not None]
    offset = first_row(addresses.context("scan")).get(part, 1) - 1
    documents = [(g.part, s.index) for g in generations for s in g.stops if s.step == "tokenize"]
    planned = addresses.manifest("mix") is not None
    uses = [
        u for p, index in documents if index is not None and planned for u in uses_of(addresses, p, index, progress)
    ]
    config = addresses.recipe.source(source)
    return SampleTrace(
        source,
        wanted,
        row["key"],
        row["file"],
        encoded[-1]["row"] if encoded else row["row"] + offset,
        encoded[-1]["licence"] if encoded else config.licence,
        config.kind,
        tuple(generations),
        tuple(uses),
        planned,
    )


def _stops(addresses: Addresses, part: str, wanted: bytes) -> Iterator[Stop]:
    """What each step's part of this name says."""
    key, came = "", False
    for step in (s for s in STORES if s in addresses.prints):
        store = addresses.store(step)
        made = store.exists(part_manifest_name(part))
        index = _index(store, part, wanted) if made else None
        row = {} if index is None else _row(store, part, index)
        key = row.get("key", key)
        lost = next((q for q in quarantine_table(store, part) if q["key"] == key), None) if made and key else None
        if lost is not None:
            yield Stop(step, index, "quarantined", lost["error"], lost["message"], row)
        elif index is None and made and came:  # tokenize counts what it leaves out, and does not list it
            gone = "; ".join(gone_words(load_part(store, part).rows))
            yield Stop(step, None, "left out", f"this part has {gone}" if gone else "nothing says why")
        elif index is None:
            yield Stop(step, None, NOT_THERE)
        elif step == "scan":
            yield Stop(step, index, row["state"], row["reason"], row=row)
        elif step == "select":
            yield Stop(step, index, "kept" if row["keep"] else "dropped", row["reason"], row=row)
        else:
            yield Stop(step, index, "kept", row=row)
        came = lost is None and index is not None and row.get("state", "kept") == "kept" and row.get("keep", True)


def _index(store: Storage, part: str, wanted: bytes) -> int | None:
    """The row of a sample in a part's table; None where it has none."""
    with store.open(f"{PARTS}/{part}.parquet") as f:
        index: int = pc.index(pq.ParquetFile(f).read(columns=["sample_id"])["sample_id"], wanted).as_py()
    return None if index < 0 else index


def _row(store: Storage, part: str, index: int) -> dict[str, Any]:
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


def _id_in_part(addresses: Addresses, part: str, index: int) -> bytes:
    """The id of a row of the sample store; of the scan's table where the store does not have the part."""
    for step in ("encode", "scan"):
        if step in addresses.prints and (store := addresses.store(step)).exists(part_manifest_name(part)):
            found: bytes = _row(store, part, index)["sample_id"]
            return found
    raise StoreError(f"{part}: no such part in {addresses.root}; calumma ledger --parts lists them")


def _packed_store(addresses: Addresses, name: str) -> PackedStore | None:
    """The packed store that a name means: ``stage-1``, ``epoch-0``, ``held-out/shapes``."""
    if addresses.manifest("mix") is None:
        return None
    return next((s for s in packed_stores(addresses) if name in (s.name, s.folder.removeprefix(f"{PARTS}/"))), None)
