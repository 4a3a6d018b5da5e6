"""Where documents lie in the packed sequences, and which documents a sequence holds: the way through ``mix``.

A position of pre-training is a place in the order of training (``model/data/order.py``); a sequence is a number within
a stage's folder. The sidecars beside the sequence files say which stretch of which document lies where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS
from infra.store.documents import DOCUMENTS
from infra.store.plan import PackedStore, Plan, load_plan
from infra.store.samples import SAMPLES
from infra.store.sequences import INFO, SPANS, SequencesInfo, stem
from infra.store.tables import Filters, damaged, read_table
from model.data.order import Order, Permutation
from tasks.addresses import Addresses

READERS = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Use:
    """One stretch of a document in a sequence."""

    store: str
    """``stages/stage-1``, ``finetune/epoch-0``, ``held-out/photos``."""
    sequence: int
    position: int | None
    """In its training's order; None for what no training sees."""
    occurrence: int
    offset: int
    length: int
    first_token: int
    """Of the document; above 0 in a piece after the first."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document in a sequence, and the sample that it was made from."""

    use: Use
    source: str
    part: str
    index: int
    """The document's row in its part of the document store, from 0."""
    sample_id: bytes
    key: str
    file: str
    row: int
    licence: str
    kind: str


@dataclass(frozen=True)
class SequenceTrace:
    """One sequence and everything in it."""

    store: str
    sequence: int
    position: int | None
    sequences: int
    """In the whole store."""
    length: int
    documents: tuple[Document, ...]


def track(items: Iterable[T], total: int, about: str, progress: Any) -> Iterator[T]:
    """The items, shown as they come by a ``rich.progress.Progress`` where there is one."""
    yield from items if progress is None else progress.track(items, total, description=about)


def packed_stores(addresses: Addresses) -> list[PackedStore]:
    """All folders of sequences: stages, epochs, then what is held out."""
    plan = _plan(addresses)
    return [*plan.stages, *plan.finetune, *plan.held_out.values()]


def sequence_at(addresses: Addresses, position: int) -> tuple[PackedStore, int]:
    """The stage and the sequence at a position of pre-training; StoreError beyond its end."""
    plan = _plan(addresses)
    order = _order(plan.stages, plan)
    if position >= len(order):
        raise StoreError(f"position {position:,}: pre-training has {len(order):,} sequences, counted from 0")
    stage, found = order.locate([position])
    return plan.stages[stage], int(found[0])


def uses_of(addresses: Addresses, part: str, index: int, progress: Any = None) -> list[Use]:
    """Every stretch of a document, in training's order; sidecars are read file by file."""
    store, plan = addresses.store("mix"), _plan(addresses)
    files = [(packed, n) for packed in packed_stores(addresses) for n in range(_info(store, packed).files)]

    def look(file: tuple[PackedStore, int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = _spans(store, *file, [("part", "==", part), ("row", "==", index)]).to_pylist()
        return rows

    found = []
    with ThreadPoolExecutor(READERS) as pool:
        shown = track(pool.map(look, files), len(files), "looking for its uses", progress)
        for (packed, _), rows in zip(files, shown, strict=True):
            found += [_use(plan, packed, row) for row in rows]
    places = {_name(packed): number for number, packed in enumerate(packed_stores(addresses))}
    return sorted(found, key=lambda use: (places[use.store], use.position or 0, use.sequence, use.offset))


def trace_sequence(
    addresses: Addresses, packed: PackedStore, sequence: int, position: int | None = None
) -> SequenceTrace:
    """The documents of one sequence, each with its sample's file, row and licence."""
    store, plan = addresses.store("mix"), _plan(addresses)
    if not 0 <= sequence < packed.sequences:
        raise StoreError(f"{packed.name}:{sequence}: it has {packed.sequences:,} sequences, counted from 0")
    rows = _spans(
        store, packed, sequence // _info(store, packed).file_sequences, [("sequence", "==", sequence)]
    ).to_pylist()
    origins: dict[str, dict[int, dict[str, Any]]] = {}
    for part in dict.fromkeys(row["part"] for row in rows):
        origins[part] = _origins(addresses, part, [row["row"] for row in rows if row["part"] == part])
    documents = tuple(
        Document(_use(plan, packed, row), row["source"], row["part"], row["row"], **origins[row["part"]][row["row"]])
        for row in rows
    )
    if position is None:
        position = _position(plan, packed, sequence)
    return SequenceTrace(_name(packed), sequence, position, packed.sequences, plan.sequence_length, documents)


def _origins(addresses: Addresses, part: str, indexes: list[int]) -> dict[int, dict[str, Any]]:
    """By row of the document store: what the sample store knows of the sample."""
    ids = _table(addresses.store("tokenize"), f"{PARTS}/{part}.parquet", DOCUMENTS, ["sample_id"])["sample_id"]
    by_index = {index: ids[index].as_py() for index in indexes}
    columns = ["sample_id", "key", "file", "row", "licence", "kind"]
    wanted: Filters = [("sample_id", "in", set(by_index.values()))]
    table = _table(addresses.store("encode"), f"{PARTS}/{part}.parquet", SAMPLES, columns, wanted)
    by_id = {row["sample_id"]: row for row in table.to_pylist()}
    return {index: by_id[found] for index, found in by_index.items()}


def _plan(addresses: Addresses) -> Plan:
    if addresses.manifest("mix") is None:
        raise StoreError(f"{addresses.root}: step mix is not finished, so that nothing has a position yet")
    return load_plan(addresses.store("mix"))


def _order(folders: list[PackedStore], plan: Plan) -> Order:
    return Order([(folder.name, folder.slices) for folder in folders], plan.seed)


def _position(plan: Plan, packed: PackedStore, sequence: int) -> int | None:
    """The reverse of the order: only the slice that holds the sequence is gone through."""
    folders = {"pretrain": plan.stages, "finetune": plan.finetune}.get(packed.kind)
    if folders is None:
        return None
    number = [f.name for f in folders].index(packed.name)
    first = 0
    for slice_number, size in enumerate(packed.slices):
        if sequence < first + size:
            places = Permutation(size, plan.seed, "order", packed.name, slice_number).all()
            start, _ = _order(folders, plan).stage_span(number)
            return start + first + int(np.flatnonzero(places == sequence - first)[0])
        first += size
    return None


def _use(plan: Plan, packed: PackedStore, row: dict[str, Any]) -> Use:
    return Use(
        _name(packed),
        row["sequence"],
        _position(plan, packed, row["sequence"]),
        row["occurrence"],
        row["offset"],
        row["length"],
        row["first_token"],
    )


def _name(packed: PackedStore) -> str:
    return packed.folder.removeprefix(f"{PARTS}/")


def _info(store: Storage, packed: PackedStore) -> SequencesInfo:
    name = f"{packed.folder}/{INFO}"
    return SequencesInfo.load(store.get(name), store.url(name))


def _spans(store: Storage, packed: PackedStore, file: int, wanted: Filters) -> pa.Table:
    return _table(store, f"{packed.folder}/{stem(file)}.parquet", SPANS, None, wanted)


def _table(
    store: Storage, name: str, schema: pa.Schema, columns: list[str] | None, wanted: Filters | None = None
) -> pa.Table:
    """Some columns and rows of a stored table; StoreError if it is not there or is none."""
    try:
        with store.open(name) as f:
            return read_table(f, schema, store.url(name), columns, wanted)
    except OSError as e:
        raise damaged(store.url(name), e) from e
