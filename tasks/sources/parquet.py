"""Rows of Parquet files: planned by the sizes of files, read by batches.

Planning reads one footer, that of the source's first file: how many slices a file is cut into follows from its size.
A slice takes its share of the file's rows, whatever their number turns out to be. A slice that begins inside a row
group has to read that from its start; so a group of very many rows makes larger slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from infra.storage import FileInfo, Storage
from tasks.sources.base import BadRow
from tasks.sources.packed import unreadable

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
BATCH_BYTES, BATCH_ROWS = 1 << 25, 1024
"""How much is in memory at once: a batch of rows, of about as many bytes by the file's own account."""
BUFFER = 1 << 20
"""Bytes of a column that are read at once."""
CUTS = 8
"""At most so many slices share a row group: it is then read four and a half times, not hundreds of times."""
FOOTERS = 8
"""Files that are tried for a footer to plan by; if none has one, every file is one slice."""


def slices(storage: Storage, files: Iterable[FileInfo], target: int) -> Iterator[dict[str, Any]]:
    """Locators ``{"file", "slice": k, "of": n}`` of about ``target`` rows each."""
    slices_a_byte, tries = 0.0, FOOTERS
    for file in files:
        if not slices_a_byte and tries:
            count, largest_group = _rows(storage, file.name)
            slices_a_byte = count / max(1, file.size) / max(target, largest_group / CUTS)
            tries -= 1
        count = max(1, math.ceil(file.size * slices_a_byte))
        for k in range(count):
            yield {"file": file.name, "slice": k, "of": count}


def rows(
    storage: Storage, locator: dict[str, Any], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
    """A slice's rows as (number in the file from 1, values by column), those columns that the file has.

    A row that cannot be read costs itself, a damaged row group what lies behind the damage; the row of its BadRow is
    the first that was not read. Of a file without a readable footer every slice is one BadRow, numbered by slice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, k, of = locator["file"], locator["slice"], locator["of"]
    with storage.open(file) as f:
        try:
            table = pq.ParquetFile(f, buffer_size=BUFFER, pre_buffer=False)
            about = [table.metadata.row_group(g) for g in range(table.num_row_groups)]
            wanted = [c for c in columns if c in table.schema_arrow.names]
        except (pa.ArrowException, OSError) as e:
            _require_storage(storage, file, e)
            yield BadRow(file, k + 1, "damaged-file", f"no readable footer: {e}")
            return
        total = sum(group.num_rows for group in about)
        start, stop = k * total // of, (k + 1) * total // of
        first = 0
        for group, info in enumerate(about):
            count = info.num_rows
            at, end = max(start, first), min(stop, first + count)
            if at < end:
                position = first
                size = max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(1, info.total_byte_size)))
                try:
                    for batch in table.iter_batches(size, [group], wanted, use_threads=False):
                        here = batch.slice(max(0, at - position), max(0, end - max(at, position)))
                        position += batch.num_rows
                        for content in _contents(here):
                            at += 1
                            yield BadRow(file, at, *content) if isinstance(content, tuple) else (at, content)
                        if at >= end:
                            break
                except (pa.ArrowException, OSError) as e:
                    _require_storage(storage, file, e)
                    yield BadRow(file, at + 1, "damaged-file", f"{e}; the rows of its group before it were read")
            first += count


def _rows(storage: Storage, name: str) -> tuple[int, int]:
    """How many rows a file has, and its largest row group; (0, 0) where that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open(name) as f:
            about = pq.read_metadata(f)
            groups = [about.row_group(g).num_rows for g in range(about.num_row_groups)]
    except (pa.ArrowException, OSError) as e:
        _require_storage(storage, name, e)
        return 0, 0
    return sum(groups), max(groups, default=0)


def _require_storage(storage: Storage, name: str, error: Exception) -> None:
    """StoreError where a disk failed: its errors bear a number, those that Arrow raises for damage do not."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise unreadable(storage, name, error) from error


def _contents(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """Each row's values, or the class and message of what is wrong with it."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass  # one value spoils a batch: row by row it spoils its row
    for n in range(batch.num_rows):
        try:
            yield from batch.slice(n, 1).to_pylist()
        except UnicodeDecodeError as e:
            yield "not-utf-8", str(e)
        except (ValueError, OverflowError) as e:
            yield "bad-field", str(e)
