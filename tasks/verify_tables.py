"""What a part's files must hold: the step's table, as many rows as the ledger says, whole codes, unbroken sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS
from infra.store.documents import DOCUMENTS
from infra.store.manifest import PartManifest
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.sequences import BLOCK, INFO, SPANS, SequenceReader
from infra.store.tables import read_table
from tasks.recipe import Recipe
from tasks.scan.tables import SCAN, SELECT

TABLES: dict[str, pa.Schema] = {"scan": SCAN, "select": SELECT, "encode": SAMPLES, "tokenize": DOCUMENTS}
COLUMNS = {
    "scan": ["sample_id"],
    "select": ["sample_id"],
    "encode": ["images"],
    "tokenize": ["picture", "captions", "tokens", "lengths"],
}
"""What is read of each, to count and check."""

Finding = tuple[str, Literal["table", "rows", "codes", "checksum"], str, str]
"""File relative to the step's folder, what is wrong, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the recipe says of every picture."""

    codes_per_image: int
    image_codes: int

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        return cls(recipe.image_tokenizer.codes_per_image, recipe.vocabulary.image_codes)


def check_rows(store: Storage, step: str, manifest: PartManifest, shape: Shape) -> Iterator[Finding]:
    """What is wrong inside a part's files, whose bytes are those that the manifest names."""
    rows = manifest.rows
    for entry in manifest.files:
        name = f"{PARTS}/{entry.name}"
        if step in TABLES and entry.name == f"{manifest.part}.parquet":
            yield from _check_table(store, step, name, rows.entered if step in ("scan", "select") else rows.out, shape)
        elif entry.name.endswith(".quarantine.parquet"):
            yield from _count(store, name, QUARANTINE, sum(rows.quarantined.values()))
        elif step == "mix" and entry.name.endswith(".u16"):
            yield from _check_sequences(store, name)
        elif step == "mix" and entry.name.endswith(".parquet") and "/seq-" in entry.name:
            yield from _check_spans(store, name, rows.out)


def _check_table(store: Storage, step: str, name: str, expected: int, shape: Shape) -> Iterator[Finding]:
    try:
        table = read_table(store.get(name), TABLES[step], store.url(name), COLUMNS[step])
    except (StoreError, pa.ArrowException) as e:
        yield name, "table", f"a table of {step}", str(e)
        return
    if table.num_rows != expected:
        yield name, "rows", f"{expected:,}, as the ledger says", f"{table.num_rows:,}"
    if step == "encode":
        yield from _check_codes(name, table["images"].combine_chunks(), shape)
    elif step == "tokenize":
        yield from _check_lengths(name, table)


def _count(store: Storage, name: str, schema: pa.Schema, expected: int) -> Iterator[Finding]:
    try:
        found = read_table(store.get(name), schema, store.url(name), ["key"]).num_rows
    except (StoreError, pa.ArrowException) as e:
        yield name, "table", "a table of what is in quarantine", str(e)
        return
    if found != expected:
        yield name, "rows", f"{expected:,}, as the ledger says", f"{found:,}"


def _check_codes(name: str, images: pa.Array, shape: Shape) -> Iterator[Finding]:
    codes = pc.struct_field(images.flatten(), "codes")
    lengths = pc.binary_length(codes).to_numpy(zero_copy_only=False)
    wrong = int((lengths != 2 * shape.codes_per_image).sum())
    if wrong:
        found = sorted({int(n) for n in lengths})[:5]
        yield name, "codes", f"{2 * shape.codes_per_image:,} bytes a picture", f"{wrong:,} pictures of {found} bytes"
        return
    values = np.frombuffer(b"".join(codes.to_pylist()), "<u2")
    if len(values) and int(values.max()) >= shape.image_codes:
        yield name, "codes", f"codes below {shape.image_codes:,}", f"code {int(values.max()):,}"


def _check_lengths(name: str, table: pa.Table) -> Iterator[Finding]:
    """A document's length is that of its ids; a pair has one a caption, with ``<s>`` and ``</s>``."""
    said, captions = table["lengths"].combine_chunks(), table["captions"].combine_chunks()
    uses, each = _numbers(pc.list_value_length(said)), _numbers(pc.list_value_length(captions))
    pair = each > 0
    if not np.array_equal(uses, np.where(pair, each, 1)):
        yield name, "codes", "a length a caption, else one", "another number of lengths"
        return
    picture, whole = _numbers(pc.binary_length(table["picture"])), _numbers(pc.binary_length(table["tokens"]))
    expected = np.repeat(np.where(pair, picture // 2 + 2, whole // 2), uses)
    expected[np.repeat(pair, uses)] += _numbers(pc.binary_length(captions.flatten())) // 2
    if not np.array_equal(_numbers(said.flatten()), expected):
        yield name, "codes", "lengths of the ids that are there", "other lengths"


def _check_sequences(store: Storage, name: str) -> Iterator[Finding]:
    folder, _, file = name.rpartition("/")
    if not store.exists(f"{folder}/{INFO}"):
        return  # written when all files are
    try:
        reader, number = SequenceReader(store, folder), int(file.removeprefix("seq-").removesuffix(".u16"))
        for block in range(-(-reader.info.rows(number) // BLOCK)):
            reader.verify_block(number, block)
    except (StoreError, ValueError) as e:
        yield name, "checksum", "blocks that match their checksums", str(e)


def _check_spans(store: Storage, name: str, expected: int) -> Iterator[Finding]:
    try:
        table = read_table(store.get(name), SPANS, store.url(name), ["first_token"])
    except (StoreError, pa.ArrowException) as e:
        yield name, "table", "a table of spans", str(e)
        return
    begun = int(pc.sum(pc.equal(table["first_token"], 0)).as_py() or 0)
    if begun != expected:
        yield name, "rows", f"{expected:,} documents begun, as the ledger says", f"{begun:,}"


def _numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (
        column.to_numpy(zero_copy_only=False).astype(np.int64)
        if isinstance(column, pa.Array)
        else column.to_numpy().astype(np.int64)
    )
    return found
