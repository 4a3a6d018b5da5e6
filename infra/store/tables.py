"""Parquet, written so that equal rows give equal bytes: pinned settings, no times, one batch a row group.

What ``mix`` writes says what training reads and where it came from, and is read a few rows at a time, so that nobody
takes its sha256 again: its pages carry checksums, which every reader checks. The stores before it have none: with them
their bytes would be others, and every picture would have to be encoded again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StoreError

FORMAT_KEY = b"calumma.format"
ROW_GROUP = 1024
Filters = list[tuple[str, str, Any]]
"""Conditions that rows must meet, all of them: column, comparison, value."""


def write_table(
    rows: Sequence[Mapping[str, Any]] | pa.Table,
    schema: pa.Schema,
    facts: Mapping[str, str] | None = None,
    row_group: int = ROW_GROUP,
    checksums: bool = False,
) -> bytes:
    """The rows as Parquet bytes (zstd, row groups of 1,024); ``facts`` join the schema's metadata.

    Rows that are a table already, with the schema's columns, are written several times faster. With ``checksums``
    (CRC-32 of every page) a damaged page is found when it is read.
    """
    meta = {**(schema.metadata or {}), **{f"calumma.{k}".encode(): v.encode() for k, v in (facts or {}).items()}}
    schema = schema.with_metadata(meta)
    sink = io.BytesIO()
    pinned: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}
    with pq.ParquetWriter(sink, schema, **pinned, write_page_checksum=checksums) as writer:
        for start in range(0, len(rows), row_group):
            if isinstance(rows, pa.Table):
                batch = rows.slice(start, row_group).replace_schema_metadata(meta)
            else:
                batch = pa.Table.from_pylist([dict(r) for r in rows[start : start + row_group]], schema=schema)
            writer.write_table(batch, row_group_size=row_group)
    return sink.getvalue()


def read_table(
    data: bytes | IO[bytes],
    schema: pa.Schema,
    where: str,
    columns: list[str] | None = None,
    wanted: Filters | None = None,
) -> pa.Table:
    """The table, if it has the wanted format and a version no newer than ours; of an open file only what is needed.

    Args:
        data: The file, or its bytes.
        schema: Whose format it must have.
        where: Its name, for errors.
        columns: Only these.
        wanted: Only the rows that meet all of these; row groups that hold none are not read.

    Raises:
        StoreError: it is none, is another one or a newer one, or a page that is read is damaged.
    """
    file = open_table(data, schema, where)
    try:
        if wanted is None:
            return file.read(columns=columns)
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        source.seek(0)
        return pq.read_table(source, columns=columns, filters=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as e:
        raise damaged(where, e) from e


def damaged(where: str, error: Exception) -> StoreError:
    """The error for a table of which a part cannot be read."""
    return StoreError(f"{where}: it cannot be read ({error}); it may be damaged. Check it: calumma verify")


def open_table(data: bytes | IO[bytes], schema: pa.Schema, where: str) -> pq.ParquetFile:
    """The same, to be read row group by row group."""
    try:
        file = pq.ParquetFile(io.BytesIO(data) if isinstance(data, bytes) else data, page_checksum_verification=True)
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
