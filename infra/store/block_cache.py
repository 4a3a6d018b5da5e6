"""A bounded cache of sequence blocks that were fetched from far away: on a local disk for all processes, or in memory.

It is one file of fixed size. Its head is a table of slots, at least sixteen to a set where there are so many; a block's
key says which set it belongs to, and within the set the slot that was used least recently gives way. So nothing is
listed, counted or tidied up, and the limit holds whoever writes.

Nothing in the file is trusted. A block is stored row by row with a digest of each row, keyed by the block and the row's
number; a row is copied out and then verified, every time. A row that a killed writer left half written, that another
process was just overwriting, or that the disk damaged, is therefore a miss like any other and is fetched anew. Locks
only keep writers out of each other's way.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from infra.backends.aside import aside_name
from infra.backends.disk import Disk
from infra.errors import ResourceError

WAYS = 16
"""Slots of a set; more where they do not come out even."""
DIGEST = 8
_HEAD = struct.Struct("<16sQQQ24x")  # magic, bytes a slot, rows a slot, slots
_MAGIC = b"calumma-blocks 2"
_ENTRY = struct.Struct("<16sQ8x")  # the block's key, zeros for an empty slot; nanoseconds when it was last used
_EMPTY = bytes(16)

Rows = npt.NDArray[np.uint8]


class BlockCache:
    """A cache of blocks of up to ``rows`` rows of up to ``row_bytes`` bytes.

    Threads and processes may share a folder; processes that use it with other limits or sizes start it anew, and those
    that have it open keep the old one until they end. Pickled, it opens the same folder again.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit: int, *, rows: int, row_bytes: int) -> None:
        """``folder`` on a local disk, None for memory of this process; ``limit`` in bytes.

        Raises:
            ResourceError: the limit is below one block, or the disk is too full or cannot be written.
        """
        self.folder = None if folder is None else Path(folder)
        self.limit, self.rows, self.row_bytes = limit, rows, row_bytes
        self.slot_bytes = rows * (DIGEST + row_bytes)
        self.slots = (limit - _HEAD.size) // (self.slot_bytes + _ENTRY.size)
        if self.slots < 1:
            raise ResourceError(
                f"a cache of {limit:,} bytes: one block takes {self.slot_bytes + _ENTRY.size + _HEAD.size:,}. "
                "Give it more."
            )
        self._sets = max(1, self.slots // WAYS)
        self._ways = self.slots // self._sets
        self._data = _HEAD.size + self.slots * _ENTRY.size
        self._lock = threading.Lock()
        self._closing: weakref.finalize[[int], BlockCache] | None = None
        self._open()
        self.hits = self.misses = self.damaged = 0
        """Of :meth:`row` in this process; ``damaged`` ones are misses too."""

    @staticmethod
    def limit_of(blocks: int, *, rows: int, row_bytes: int) -> int:
        """The limit at which this many blocks have room."""
        return _HEAD.size + blocks * (rows * (DIGEST + row_bytes) + _ENTRY.size)

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (None if self.folder is None else str(self.folder), self.limit, self.rows, self.row_bytes)

    def row(self, block: bytes, number: int, size: int) -> bytes | None:
        """A row of a block as it was stored, ``size`` bytes; None where it is not there whole.

        ``block`` names it, 16 bytes.
        """
        self._follow_fork()
        slot = self._find(block)
        if slot is not None:
            at = self._data + slot * self.slot_bytes
            place = at + self.rows * DIGEST + number * size
            digest = self._map[at + number * DIGEST : at + (number + 1) * DIGEST]
            data = self._map[place : place + size]
            if _digest(data, block, number) == digest:
                _ENTRY.pack_into(self._map, _HEAD.size + slot * _ENTRY.size, block, time.time_ns())
                self.hits += 1
                return data
            self.damaged += 1
        self.misses += 1
        return None

    def put(self, block: bytes, rows_SD: Rows) -> None:
        """Stores a block's rows (S, D) uint8, S ≤ rows and D ≤ row_bytes; silently not where the disk is full."""
        self._follow_fork()
        count, size = rows_SD.shape
        if count > self.rows or size > self.row_bytes:
            raise ValueError(f"a block of {count} rows of {size} bytes; room is for {self.rows} of {self.row_bytes}")
        digests = b"".join(_digest(rows_SD[n].data, block, n) for n in range(count)).ljust(self.rows * DIGEST, b"\0")
        with self._exclusive():
            slot = self._find(block)
            if slot is None:
                slot = self._oldest(block)
            entry, at = _HEAD.size + slot * _ENTRY.size, self._data + slot * self.slot_bytes
            self._map[entry : entry + 16] = _EMPTY
            if self._write(at, digests) and self._write(at + len(digests), rows_SD.tobytes()):
                _ENTRY.pack_into(self._map, entry, block, time.time_ns())

    def blocks(self) -> int:
        """How many are in it; looks at every slot."""
        return sum(self._key(slot) != _EMPTY for slot in range(self.slots))

    # -- slots

    def _set(self, block: bytes) -> int:
        """The first slot of a block's set."""
        return int.from_bytes(block[:8], "little") % self._sets * self._ways

    def _key(self, slot: int) -> bytes:
        at = _HEAD.size + slot * _ENTRY.size
        return self._map[at : at + 16]

    def _find(self, block: bytes) -> int | None:
        first = self._set(block)
        table = self._map[_HEAD.size + first * _ENTRY.size : _HEAD.size + (first + self._ways) * _ENTRY.size]
        for way in range(self._ways):
            if table.startswith(block, way * _ENTRY.size):
                return first + way
        return None

    def _oldest(self, block: bytes) -> int:
        first = self._set(block)

        def used(slot: int) -> int:
            key, when = _ENTRY.unpack_from(self._map, _HEAD.size + slot * _ENTRY.size)
            return 0 if key == _EMPTY else int(when)

        return min(range(first, first + self._ways), key=used)

    # -- the file

    def _open(self) -> None:
        self._process = os.getpid()
        self._fd: int | None = None
        if self._closing is not None:
            self._closing()  # in a forked process: its parent's, which stays open there
        size = self._data + self.slots * self.slot_bytes
        if self.folder is None:
            self._map = mmap.mmap(-1, size)
            return
        name = self.folder / f"blocks-{self.rows}x{self.row_bytes}.cache"
        head = _HEAD.pack(_MAGIC, self.slot_bytes, self.rows, self.slots)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._fits(name, head, size):
                    self._create(name, head, size)
                self._fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            self._closing = weakref.finalize(self, os.close, self._fd)
            self._closing.atexit = False  # threads may still be reading; the process' end closes it anyway
            self._map = mmap.mmap(self._fd, size)
        except OSError as e:
            raise ResourceError(
                f"{name}: a cache of {self.limit:,} bytes cannot be made there ({e.strerror or e}). Choose another "
                "folder on a local disk, or make room."
            ) from e

    @staticmethod
    def _fits(name: Path, head: bytes, size: int) -> bool:
        try:
            with open(name, "rb") as f:
                return f.read(len(head)) == head and os.fstat(f.fileno()).st_size == size
        except FileNotFoundError:
            return False

    def _create(self, name: Path, head: bytes, size: int) -> None:
        """A new file with an empty table. Its blocks take room on the disk only when they are written."""
        disk = os.statvfs(name.parent)
        free = disk.f_bavail * disk.f_frsize
        if name.exists():
            free += name.stat().st_blocks * 512  # it gives way
        if free < size:
            raise OSError(f"{free:,} bytes are free")
        Disk(str(name.parent)).sweep("")
        aside = name.parent / aside_name()
        try:
            with open(aside, "wb") as f:
                # Real zeros: writing to a hole through a map would kill the process where the disk is full.
                f.write(head + bytes(self._data - len(head)))
                f.truncate(size)
            aside.replace(name)
        finally:
            aside.unlink(missing_ok=True)

    def _write(self, at: int, data: bytes) -> bool:
        if self._fd is None:
            self._map[at : at + len(data)] = data
            return True
        try:
            return os.pwrite(self._fd, data, at) == len(data)
        except OSError:  # the disk is full, or gone: everything still works, from afar
            return False

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if self._fd is not None:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _follow_fork(self) -> None:
        """A forked process opens the file for itself: with its parent's it would share the lock, not wait for it."""
        if os.getpid() != self._process:
            self._lock = threading.Lock()
            self._open()


def block_key(*facts: str | int) -> bytes:
    """A block's name from what it is: 16 bytes."""
    return hashlib.blake2b("\0".join(map(str, facts)).encode(), digest_size=16).digest()


def _digest(data: bytes | memoryview, block: bytes, number: int) -> bytes:
    digest = xxhash.xxh3_64(block + number.to_bytes(8, "little"))
    digest.update(data)
    return digest.digest()


def _again(folder: str | None, limit: int, rows: int, row_bytes: int) -> BlockCache:
    return BlockCache(folder, limit, rows=rows, row_bytes=row_bytes)
