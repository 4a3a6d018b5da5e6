"""Parquet, written so that equal rows give equal bytes: pinned settings, no times, one batch a row group."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError

FORMAT_KEY = b"calumma.format"
ROW_GROUP = 1024


def write_table(
    rows: Sequence[Mapping[str, Any]] | pa.Table,
    schema: pa.Schema,
    facts: Mapping[str, str] | None = None,
    row_group: int = ROW_GROUP,
) -> bytes:
    """The rows as Parquet bytes (zstd, row groups of 1,024); ``facts`` join the schema's metadata.

    Rows that are a table already, with the schema's columns, are written several times faster.
    """
    meta = {**(schema.metadata or {}), **{f"calumma.{k}".encode(): v.encode() for k, v in (facts or {}).items()}}
    schema = schema.with_metadata(meta)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3, version="2.6") as writer:
        for start in range(0, len(rows), row_group):
            if isinstance(rows, pa.Table):
                batch = rows.slice(start, row_group).replace_schema_metadata(meta)
            else:
                batch = pa.Table.from_pylist([dict(r) for r in rows[start : start + row_group]], schema=schema)
            writer.write_table(batch, row_group_size=row_group)
    return sink.getvalue()


def read_table(data: bytes | IO[bytes], schema: pa.Schema, where: str, columns: list[str] | None = None) -> pa.Table:
    """The table, if it has the wanted format and a version no newer than ours; of an open file only what is needed."""
    return open_table(data, schema, where).read(columns=columns)


def open_table(data: bytes | IO[bytes], schema: pa.Schema, where: str) -> pq.ParquetFile:
    """The same, to be read row group by row group."""
    try:
        file = pq.ParquetFile(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (pa.ArrowInvalid, OSError) as e:
        raise StoreError(
            f"{where}: not a Parquet file ({e}). Delete its manifest; the next run makes the part anew."
        ) from e
    want = (schema.metadata or {})[FORMAT_KEY].decode().split()
    have = (file.schema_arrow.metadata or {}).get(FORMAT_KEY, b"unmarked 0").decode().split()
    if have[0] != want[0]:
        raise StoreError(f"{where}: this is {have[0]}; expected {want[0]}")
    if int(have[1]) > int(want[1]):
        raise StoreError(f"{where}: {have[0]} version {have[1]}; this Calumma reads up to {want[1]}. Use a newer one.")
    return file
