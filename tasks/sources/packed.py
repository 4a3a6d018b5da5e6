"""Reading files that may be packed, ``.gz`` or ``.zst``, as if they were not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from infra.errors import StoreError
from infra.storage import Storage

COMPRESSED = (".gz", ".zst")
DAMAGED: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)
"""What unpacking a damaged or cut archive raises; errors of the storage itself are of ``infra.errors``."""


def unreadable(storage: Storage, name: str, error: OSError) -> StoreError:
    """What to raise where a disk failed while a file was read."""
    return StoreError(
        f"{storage.url(name)}: cannot be read to its end ({error.strerror or error}). Check the disk or the mount, and "
        "run again: finished parts are kept."
    )


@contextmanager
def storage_errors(storage: Storage, name: str) -> Iterator[None]:
    """A disk that fails while a file is read (EIO, a stale mount) is a StoreError, not damage of the file."""
    try:
        yield
    except gzip.BadGzipFile:  # an OSError too
        raise
    except OSError as e:
        raise unreadable(storage, name, e) from e


@contextmanager
def opened(storage: Storage, name: str) -> Iterator[IO[bytes]]:
    """A file for reading from start to end, unpacked where its name ends in ``.gz`` or ``.zst``.

    What a damaged archive raises is in ``DAMAGED``, after all that lies before the damage was given; a disk that fails
    is a StoreError.
    """
    with storage_errors(storage, name), storage.open(name) as f:
        if name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=f) as unpacked:
                yield unpacked  # type: ignore[misc]
        elif name.lower().endswith(".zst"):
            yield io.BufferedReader(_Zstandard(f), 1 << 18)
        else:
            yield f


class _Zstandard(io.RawIOBase):
    """Frames of zstandard, one after another. The library's own reader takes a cut file for a whole one."""

    PIECE = 1 << 12
    """Packed bytes at a time: they hold at most a thousand blocks of 128 KiB, whatever they claim."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._rest, self._begun = packed, b"", False
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            if self._frame.eof:
                self._rest, self._begun = self._frame.unused_data, False
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            piece, self._rest = self._rest or self._packed.read(self.PIECE), b""
            if not piece:
                if self._begun:
                    raise EOFError("the file ends before its last frame does")
                return 0
            self._begun = True
            self._unpacked = memoryview(self._frame.decompress(piece))
        count = min(len(buffer), len(self._unpacked))
        buffer[:count], self._unpacked = self._unpacked[:count], self._unpacked[count:]
        return count
