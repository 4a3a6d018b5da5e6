"""Members of tar archives as a stream: forwards only, one member's bytes in memory, nothing ever written to disk.

The headers are decoded by ``tarfile.TarInfo``; the walk from one to the next is our own, because ``tarfile.TarFile``
takes a damaged header in the middle for the end of the archive, reads extended headers whole however large they say
they are, and keeps every member that it has seen.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from tasks.sources.files import MAX_FILE_BYTES
from tasks.sources.packed import DAMAGED

_BLOCK = 512
_CHUNK = 1 << 20
MAX_HEADER_BYTES = 1 << 20
"""Extended headers (long names, pax records) that are larger are not read."""
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class DamagedArchive(Exception):
    """The archive ends early, or its next header cannot be read; the members before were whole."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        """The member in which the damage lies, where its header could be read."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive, or what is in a file's place."""

    name: str
    """Without ``./`` at its start."""
    data: bytes | None = None
    """None where it was not wanted or must not be used."""
    fault: str = ""
    """Why it must not be used: a class of ``tasks/sources/faults.py``."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Extended:
    """What the extended headers before a member say of it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False
    fault: str = ""
    message: str = ""


def members(stream: IO[bytes], wanted: Callable[[str], bool], max_bytes: int = MAX_FILE_BYTES) -> Iterator[Member]:
    """The archive's files in order, of those ``wanted`` with their bytes; folders are passed over.

    Archives written one behind the other are read through. A link, a device, a name that leads out of the archive, and
    more than ``max_bytes`` give a member with a fault. Raises DamagedArchive.
    """
    extended, ended, name = _Extended(), False, None
    try:
        while block := _read(stream, _BLOCK):
            header = _header(block)
            ended = header is None
            if header is None:
                continue
            name = _plain(header.name if extended.name is None else extended.name)
            if header.type == tarfile.XGLTYPE:  # of the whole archive, such as a commit's name
                _skip(stream, _padded(header.size))
            elif header.type in _EXTENDED:
                extended = _extended(stream, header, extended)
            else:
                found = _member(stream, block, header, name, extended, wanted, max_bytes)
                if found is not None:
                    yield found
                extended = _Extended()
            name = None
    except DamagedArchive as e:
        raise DamagedArchive(str(e), name) from e
    except DAMAGED as e:
        raise DamagedArchive(str(e) or type(e).__name__, name) from e
    if not ended:
        raise DamagedArchive("the archive ends without its end mark")


def _header(block: bytes) -> tarfile.TarInfo | None:
    """A member's header; None for a block of zeros, of which two stand at an archive's end."""
    if block.count(0) == len(block):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as e:
        raise DamagedArchive(f"a member's header cannot be read ({e})") from e
    if header.size < 0:
        raise DamagedArchive(f"a member's header says that it has {header.size} bytes")
    return header


def _member(
    stream: IO[bytes],
    block: bytes,
    header: tarfile.TarInfo,
    name: str,
    extended: _Extended,
    wanted: Callable[[str], bool],
    max_bytes: int,
) -> Member | None:
    """Reads past one member; None for a folder."""
    if header.type == tarfile.GNUTYPE_SPARSE:
        more = block[482]
        while more:  # the list of its holes goes on
            more = (_read(stream, _BLOCK) + bytes(_BLOCK))[504]
    is_file = header.type in _FILES or header.type not in tarfile.SUPPORTED_TYPES
    size = header.size if extended.size is None else extended.size
    if not is_file and header.type != tarfile.GNUTYPE_SPARSE:
        size = 0  # links and devices have no data, whatever their size field says
    fault, message = extended.fault, extended.message
    if not fault and header.isdir():
        return None
    if not fault and (not is_file or extended.sparse):
        fault, message = "bad-member", f"{name[:200]!r} is no plain file (type {header.type!r})"
    if not fault and (name.startswith("/") or ".." in name.split("/")):
        fault, message = "path-escape", f"{name[:200]!r} leads out of the archive"
    if not fault and not name:
        fault, message = "bad-name", "a member without a name"
    if not fault and size > max_bytes and wanted(name):
        fault, message = "too-large", f"{name[:200]!r} has {size:,} bytes; at most {max_bytes:,} are read"
    if fault or not wanted(name):
        _skip(stream, _padded(size))
        return Member(name, None, fault, message)
    data = _read(stream, size)
    if len(data) < size:
        raise DamagedArchive(f"{name[:200]!r} ends after {len(data):,} of its {size:,} bytes")
    _skip(stream, _padded(size) - size)
    return Member(name, data)


def _extended(stream: IO[bytes], header: tarfile.TarInfo, before: _Extended) -> _Extended:
    """What an extended header adds to those before it."""
    if header.size > MAX_HEADER_BYTES:
        _skip(stream, _padded(header.size))
        return replace(before, fault="too-large", message=f"its extended header has {header.size:,} bytes")
    data = _read(stream, _padded(header.size))
    if len(data) < header.size:
        raise DamagedArchive("it ends in an extended header")
    data = data[: header.size]
    if header.type == tarfile.GNUTYPE_LONGLINK:
        return before
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return replace(before, name=data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"))
    try:
        records = dict(_records(data))
        size = int(records["size"]) if "size" in records else before.size
    except ValueError as e:
        raise DamagedArchive(f"an extended header cannot be read ({e})") from e
    if size is not None and size < 0:
        raise DamagedArchive(f"an extended header says that a member has {size} bytes")
    return replace(
        before,
        name=records.get("path", before.name),
        size=size,
        sparse=any(k.startswith("GNU.sparse") for k in records),
    )


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """The records ``LENGTH KEY=VALUE\\n`` of a pax header; ValueError where they are none."""
    position = 0
    while position < len(data) and data[position]:
        space = data.index(b" ", position, position + 20)
        length = int(data[position:space])
        record = data[space + 1 : position + length]
        if position + length > len(data) or not record.endswith(b"\n"):
            raise ValueError("a record's length is wrong")
        key, _, value = record[:-1].partition(b"=")
        yield key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        position += length


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, fewer at the end of the stream; in chunks, because a header may claim any size."""
    data = stream.read(min(size, _CHUNK))
    if len(data) == size or not data:
        return data
    chunks, left = [data], size - len(data)
    while left and (data := stream.read(min(left, _CHUNK))):
        chunks.append(data)
        left -= len(data)
    return b"".join(chunks)


def _skip(stream: IO[bytes], size: int) -> None:
    while size:
        data = stream.read(min(size, _CHUNK))
        if not data:
            raise DamagedArchive("it ends within a member")
        size -= len(data)
