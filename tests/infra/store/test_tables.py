from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import StoreError
from infra.store.documents import DOCUMENTS
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import FORMAT_KEY, Filters, read_table, write_table

ROW = {"source": "a", "key": "k", "file": "f", "row": 3, "error": "bad-json", "message": "m"}


def test_equal_rows_give_equal_bytes() -> None:
    rows = [{**ROW, "row": i} for i in range(3000)]
    assert write_table(rows, QUARANTINE) == write_table(iter_to_list(rows), QUARANTINE)
    table = read_table(write_table(rows, QUARANTINE), QUARANTINE, "x")
    assert table.to_pylist() == rows


def iter_to_list(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [dict(reversed(r.items())) for r in rows]


def test_another_table_is_refused() -> None:
    with pytest.raises(StoreError, match="this is calumma-quarantine; expected calumma-samples"):
        read_table(write_table([ROW], QUARANTINE), SAMPLES, "x")


def test_a_newer_version_is_refused() -> None:
    newer = QUARANTINE.with_metadata({FORMAT_KEY: b"calumma-quarantine 9"})
    with pytest.raises(StoreError, match="version 9"):
        read_table(write_table([ROW], newer), QUARANTINE, "x")


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="part-7: not a Parquet file"):
        read_table(write_table([ROW], QUARANTINE)[:-9], QUARANTINE, "part-7")


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("wanted", [None, [("row", ">=", 0)]])
def test_with_checksums_a_damaged_page_is_found_whoever_reads(wanted: Filters | None) -> None:
    rows = [{**ROW, "row": 17 * i % 1009} for i in range(1000)]
    data = write_table(rows, QUARANTINE, checksums=True)
    about = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    for number in range(about.num_columns):
        column = about.column(number)
        last = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        for bit in range(8):  # the last byte of a column's pages is never one of a page's head
            with pytest.raises(StoreError, match="part-7: it cannot be read .* Check it: calumma verify"):
                read_table(flipped(data, last, bit), QUARANTINE, "part-7", wanted=wanted)
    assert read_table(data, QUARANTINE, "part-7", wanted=wanted).to_pylist() == rows
    assert read_table(write_table(rows, QUARANTINE), QUARANTINE, "part-7", wanted=wanted).to_pylist() == rows


def test_hardly_any_flipped_bit_gives_other_rows() -> None:
    rows = [{**ROW, "row": 17 * i % 1009} for i in range(1000)]
    data = write_table(rows, QUARANTINE, checksums=True)
    silent = 0
    rng = np.random.default_rng(0)
    for at in rng.integers(4, len(data) - 8, 200).tolist():
        with suppress(StoreError):
            silent += read_table(flipped(data, at, int(rng.integers(8))), QUARANTINE, "x").to_pylist() != rows
    assert silent <= 4  # in a page's head or the footer, which have no checksum


def test_only_the_rows_that_are_wanted_and_only_of_the_right_format() -> None:
    data = write_table([{**ROW, "row": i} for i in range(9)], QUARANTINE)
    assert read_table(data, QUARANTINE, "x", ["row"], [("row", ">", 6)]).to_pylist() == [{"row": 7}, {"row": 8}]
    with pytest.raises(StoreError, match="expected calumma-samples"):
        read_table(data, SAMPLES, "x", None, [("row", ">", 6)])


@pytest.mark.parametrize("schema", [SAMPLES, DOCUMENTS, QUARANTINE])
def test_every_schema_is_versioned(schema: pa.Schema) -> None:
    name, version = schema.metadata[FORMAT_KEY].decode().split()
    assert name.startswith("calumma-")
    assert int(version) >= 1
