"""Reading the sequence store by number: memory-mapped on a local disk, checksummed blocks through a cache elsewhere.

The files are those of ``sequence_files.py``. Shape suffixes: B sequences asked for, T tokens, S sequences of a block, D
bytes of one sequence in all kinds of file.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.block_cache import BlockCache, block_key
from infra.store.sequence_files import (
    BLOCK,
    INFO,
    SPANS,
    SUM_BYTES,
    Bits,
    Rows,
    SequencesInfo,
    Tokens,
    checksum,
    encode_file,
    stem,
    unpack_bits,
)
from infra.store.tables import read_table

__all__ = [
    "BLOCK",
    "INFO",
    "SPANS",
    "Bits",
    "SequenceReader",
    "SequencesInfo",
    "Tokens",
    "encode_file",
    "sequence_cache",
    "stem",
]

_MAPPED_FILES = 128
"""Memory maps kept open by a reader; a slice of the full-size store is 32 files of three kinds."""
_SUMS = 128
"""Files whose checksums a reader keeps: 4 KiB each."""
_SEEN_FILES = 4096
"""Files of which a reader knows the blocks that it has verified: half a KiB each, for a TB of sequences."""
FETCHES = 8
"""Blocks that a reader fetches at once."""
FEW = 16
"""Blocks that are kept where nobody gave a cache: 9 MB at 4,096 ids."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class SequenceReader:
    """Reads sequences of one folder by number: memory-mapped on a local disk, block by block from elsewhere.

    With ``verify`` nothing unverified is handed out: on a local disk each block's checksum is checked when the block is
    first touched, from elsewhere when it is fetched. A mismatch is a StoreError that names file, block and bytes.
    Threads may share a reader; pickled, it opens the folder again.
    """

    def __init__(
        self, store: Storage, folder: str = "", *, verify: bool = True, cache: BlockCache | None = None
    ) -> None:
        """``cache`` keeps blocks that were fetched, None: a few in memory; it has no part in reading a local disk."""
        self._store = store.sub(folder) if folder else store
        self._verify = verify
        self.info = SequencesInfo.load(self._store.get(INFO), self._store.url(INFO))
        self._seen = lru_cache(maxsize=_SEEN_FILES)(lambda file: bytearray(-(-self.info.rows(file) // BLOCK)))
        self._mapped = lru_cache(maxsize=_MAPPED_FILES)(self._map)
        self._sums = lru_cache(maxsize=_SUMS)(self._fetch_sums)
        if cache is None and not store.local:
            cache = sequence_cache(None, None, self.info.length)
        self._cache, self._pool = cache, _Pool(FETCHES)

    def __reduce__(self) -> tuple[Callable[..., SequenceReader], tuple[object, ...]]:
        return _reader, (self._store, self._verify, self._cache)

    def __len__(self) -> int:
        return self.info.sequences

    def sequence(self, index: int) -> tuple[Tokens, Bits, Bits | None]:
        """One sequence: ids (T,), starts (T,) and loss bits (T,) or None where the store has none."""
        tokens_BT, starts_BT, loss_BT = self.read([index])
        return tokens_BT[0], starts_BT[0], None if loss_BT is None else loss_BT[0]

    def read(self, sequences: Sequence[int], fill: int | None = None) -> tuple[Tokens, Bits, Bits | None]:
        """Several sequences: ids (B, T), starts (B, T) and loss bits (B, T) or None where the store has none.

        With ``fill``, number -1 stands for a sequence of that id alone, without loss.
        """
        rows = {kind: np.empty((len(sequences), size), np.uint8) for kind, size in self.info.row_bytes.items()}
        wanted: list[tuple[int, int, int]] = []
        for at, index in enumerate(sequences):
            if index == -1 and fill is not None:
                rows["u16"][at].view("<u2")[:] = fill
                for kind in rows.keys() - {"u16"}:
                    rows[kind][at] = 0
                rows["starts"][at, 0] = 1
            elif 0 <= index < len(self):
                wanted.append((at, *divmod(index, self.info.file_sequences)))
            else:
                raise IndexError(f"sequence {index} of {self._store.root}, which holds {len(self)}")
        (self._copy if self._store.local else self._fetch)(wanted, rows)
        loss_BT = unpack_bits(rows["loss"], self.info.length) if self.info.loss else None
        return (
            rows["u16"].view("<u2").astype(np.uint16, copy=False),
            unpack_bits(rows["starts"], self.info.length),
            loss_BT,
        )

    def verify_block(self, file: int, block: int) -> None:
        """Checks one block of 64 sequences against its checksum, as it is stored."""
        first, last = self._rows_of(file, block)
        kinds = [self._bytes(file, kind, first * size, last * size) for kind, size in self.info.row_bytes.items()]
        found = checksum(kinds)
        expected = self._bytes(file, "sums", block * SUM_BYTES, (block + 1) * SUM_BYTES).tobytes()
        if found != expected:
            raise self._damaged(file, block, expected, found)

    def verify_all(self) -> None:
        """Checks every block; StoreError at the first that is damaged."""
        for file in range(self.info.files):
            for block in range(-(-self.info.rows(file) // BLOCK)):
                self.verify_block(file, block)

    def spans(self, file: int) -> pa.Table:
        """The sidecar of a file, ordered by sequence and offset."""
        name = f"{stem(file)}.parquet"
        return read_table(self._store.get(name), SPANS, self._store.url(name))

    # -- a local disk: memory maps

    def _copy(self, wanted: Sequence[tuple[int, int, int]], rows: dict[str, Rows]) -> None:
        for at, file, row in wanted:
            if self._verify and not (seen := self._seen(file))[row // BLOCK]:
                self.verify_block(file, row // BLOCK)
                seen[row // BLOCK] = 1
            for kind, found in rows.items():
                found[at] = self._mapped(file, kind)[row]

    def _map(self, file: int, kind: str) -> Rows:
        """A whole file (rows, bytes a row); of checksums one a row."""
        path = self._store.path(f"{stem(file)}.{kind}")
        rows, size = self._file_shape(file, kind)
        try:
            with open(path, "rb") as f:
                if (found := os.fstat(f.fileno()).st_size) != rows * size:
                    count = self.info.rows(file)
                    raise StoreError(
                        f"{path}: {found:,} bytes; {count} sequences take {rows * size:,}. Run `mix` again."
                    )
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as e:
            raise StoreError(f"{path}: no such file; the store has {self.info.files} files. Run `mix` again.") from e
        except OSError as e:
            raise StoreError(f"{path}: cannot be read ({e.strerror or e}). Check the disk or the mount.") from e
        return np.frombuffer(mapped, np.uint8).reshape(rows, size)

    # -- anywhere else: whole blocks, several at once

    def _fetch(self, wanted: Sequence[tuple[int, int, int]], rows: dict[str, Rows]) -> None:
        missing: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for at, file, row in wanted:
            place = (file, row // BLOCK)
            assert self._cache is not None, "a store that is not local has one"
            data = self._cache.row(self._key(*place, self._expected(*place)), row % BLOCK, self._row_size)
            if data is None:
                missing.setdefault(place, []).append((at, row % BLOCK))
            else:
                self._cut(np.frombuffer(data, np.uint8), at, rows)
        for place, block in zip(missing, self._pool.map(self._fetch_block, missing), strict=True):
            for at, row in missing[place]:
                self._cut(block[row], at, rows)

    def _fetch_block(self, place: tuple[int, int]) -> Rows:
        """A block, verified: its rows (S, D), each the sequence's bytes of every kind one behind the other."""
        file, block = place
        first, last = self._rows_of(file, block)
        for attempt in (1, 2):
            kinds = [
                self._bytes(file, kind, first * size, last * size).reshape(last - first, size)
                for kind, size in self.info.row_bytes.items()
            ]
            expected = self._expected(file, block)
            if not self._verify or (own := checksum(kinds)) == expected:
                break
            if attempt == 2:
                raise self._damaged(file, block, expected, own)
            self._sums.cache_clear()  # damaged on the way, or where it lies? Reading it once more tells
        found = np.concatenate(kinds, axis=1)
        if self._cache is not None:
            self._cache.put(self._key(file, block, expected), found)
        return found

    def _cut(self, row: Rows, at: int, rows: dict[str, Rows]) -> None:
        start = 0
        for kind, size in self.info.row_bytes.items():
            rows[kind][at] = row[start : start + size]
            start += size

    def _key(self, file: int, block: int, expected: bytes) -> bytes:
        """By the checksum too: a folder made anew at the same address has other blocks. Unverified ones lie apart."""
        return block_key(self._name, file, block, expected.hex(), self._verify)

    @cached_property
    def _name(self) -> str:
        return f"{self._store.root} {self.info.model_dump_json()}"

    def _expected(self, file: int, block: int) -> bytes:
        return self._sums(file)[block * SUM_BYTES : (block + 1) * SUM_BYTES]

    def _fetch_sums(self, file: int) -> bytes:
        return self._store.get(f"{stem(file)}.sums")

    # -- both

    @property
    def _row_size(self) -> int:
        return sum(self.info.row_bytes.values())

    def _damaged(self, file: int, block: int, expected: bytes, found: bytes) -> StoreError:
        first, last = self._rows_of(file, block)
        return StoreError(
            f"{self._store.url(stem(file))}: sequences {first} to {last - 1} of this file do not match their checksum "
            f"(expected {expected.hex()}, found {found.hex()}). A byte of .u16, .starts, .loss or .sums changed "
            "after it was written: delete the step's folder and run `mix` again."
        )

    def _rows_of(self, file: int, block: int) -> tuple[int, int]:
        return block * BLOCK, min((block + 1) * BLOCK, self.info.rows(file))

    def _file_shape(self, file: int, kind: str) -> tuple[int, int]:
        rows = self.info.rows(file)
        return (-(-rows // BLOCK), SUM_BYTES) if kind == "sums" else (rows, self.info.row_bytes[kind])

    def _bytes(self, file: int, kind: str, start: int, stop: int) -> Rows:
        name = f"{stem(file)}.{kind}"
        if self._store.local:
            return self._mapped(file, kind).reshape(-1)[start:stop]
        data = self._store.range(name, start, stop)
        if len(data) != stop - start:
            raise StoreError(f"{self._store.url(name)}: ends at {start + len(data)}; bytes up to {stop} were expected")
        return np.frombuffer(data, np.uint8)


class _Pool:
    """Threads for fetching, made when first needed and anew in a forked process.

    Only so many results wait to be taken: a micro-batch of thousands of blocks is never in memory whole.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._process = threads, 0

    def map(self, work: Callable[[Given], Made], given: Collection[Given]) -> Iterator[Made]:
        if len(given) < 2:
            return map(work, given)
        if self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._threads, "fetch"), os.getpid()
        return self._ahead(work, iter(given))

    def _ahead(self, work: Callable[[Given], Made], todo: Iterator[Given]) -> Iterator[Made]:
        waiting = deque(self._pool.submit(work, thing) for thing in islice(todo, 2 * self._threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(self._pool.submit(work, thing) for thing in islice(todo, 1))


def sequence_cache(folder: str | os.PathLike[str] | None, limit: int | None, length: int) -> BlockCache:
    """A cache for readers of sequences of ``length`` ids, in a folder on a local disk, or (None) in memory.

    ``limit`` in bytes; None: a few blocks.
    """
    row_bytes = 2 * length + 2 * -(-length // 8)
    if limit is None:
        limit = BlockCache.limit_of(FEW, rows=BLOCK, row_bytes=row_bytes)
    return BlockCache(folder, limit, rows=BLOCK, row_bytes=row_bytes)


def _reader(store: Storage, verify: bool, cache: BlockCache | None) -> SequenceReader:
    return SequenceReader(store, verify=verify, cache=cache)
