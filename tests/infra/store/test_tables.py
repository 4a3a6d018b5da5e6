from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import StoreError
from infra.store.documents import DOCUMENTS
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import FORMAT_KEY, read_table, write_table

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


@pytest.mark.parametrize("schema", [SAMPLES, DOCUMENTS, QUARANTINE])
def test_every_schema_is_versioned(schema: pa.Schema) -> None:
    name, version = schema.metadata[FORMAT_KEY].decode().split()
    assert name.startswith("calumma-")
    assert int(version) >= 1
