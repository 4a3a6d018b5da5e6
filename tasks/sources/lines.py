"""Lines of files, plain or packed: planned as byte ranges from the files' sizes, each read alone.

A line belongs to the range in which its first byte lies; whoever reads a range finds where its first line begins, and
reads its last one to the end. Rows are line numbers from 1, as editors and ``sed -n 17p`` count; where a locator does
not say which line its range begins with, they count from the range's start, and ``EndOfRange`` says how many there
are. Keys say the byte at which a line begins, which needs no counting.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any, NamedTuple

from infra.storage import FileInfo, Storage
from tasks.sources.base import BadRow, EndOfRange
from tasks.sources.files import UnusableRow
from tasks.sources.packed import COMPRESSED, DAMAGED, opened, storage_errors

MAX_LINE_BYTES = 1 << 25
"""A longer line is passed over, without being held in memory."""
SAMPLE = 1 << 20
"""Bytes of the source's first file from which the mean length of a line is taken."""
LARGE, SHORTEST = 1 << 24, 1 << 16
"""A file of more than ``LARGE`` bytes has no range of less than ``SHORTEST``, whatever its first lines look like."""
BLOCK, AHEAD = 1 << 22, 1 << 16
"""Bytes read at once within a range, and at first behind its end."""


class Line(NamedTuple):
    """A line of a file."""

    row: int
    offset: int
    """Of its first byte in the file, unpacked."""
    data: bytes
    """With its line end, where it has one."""

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class JsonRow(NamedTuple):
    """A JSON object that is a line of a file."""

    row: int
    key: str
    """``docs.jsonl@1024``: the file and the line's offset in it."""
    content: dict[str, Any]


# -- planning


def line_items(storage: Storage, files: Iterable[FileInfo], target: int) -> Iterator[dict[str, Any]]:
    """Locators of about ``target`` lines each; a packed file is one. Of all the files one is read, up to ``SAMPLE``.

    ``{"file", "start", "stop", "size"}`` in bytes, with ``row`` where a file begins; ``{"file"}`` of a packed one.
    """
    mean = 0.0
    for file in files:
        if file.name.lower().endswith(COMPRESSED):
            yield {"file": file.name}
            continue
        if file.size == 0:
            continue
        mean = mean or _mean_line(storage.range(file.name, 0, SAMPLE), file.size)
        count = math.ceil(file.size / (target * mean))
        if file.size > LARGE:
            count = min(count, file.size // SHORTEST)
        for k in range(count):
            start, stop = k * file.size // count, (k + 1) * file.size // count
            yield {"file": file.name, "start": start, "stop": stop, "size": file.size} | ({} if k else {"row": 1})


def _mean_line(sample: bytes, size: int) -> float:
    """Bytes a line, at least 1; a line that the sample cuts counts with what is seen of it, if that raises the mean."""
    lines, whole = sample.count(b"\n"), sample.rfind(b"\n") + 1
    cut = len(sample) > whole
    if len(sample) >= size or not lines:
        return max(1.0, len(sample) / (lines + cut))
    return max(whole / lines, len(sample) / (lines + cut))


# -- reading


def read_lines(
    storage: Storage, locator: dict[str, Any], *, blank: bool = False, beyond: bool = False
) -> Iterator[Line | BadRow | EndOfRange]:
    """The lines of a locator that are not blank; all of them with ``blank``.

    A range ends with its EndOfRange; with ``beyond``, the lines behind it follow, to the file's end. A line that is
    too long is one BadRow, the damage of a packed file another, after what lies before it.
    """
    file, stop = locator["file"], locator.get("stop")
    first = row = locator.get("row", 1)
    with storage_errors(storage, file), _stream(storage, locator) as f:
        offset = _to_first_line(f, locator.get("start", 0))
        to_come = stop is not None
        while True:
            if to_come and stop is not None and offset >= stop:
                to_come = False
                yield EndOfRange(row - first)
                if not beyond:
                    return
            try:
                data, size = _next_line(f)
            except DAMAGED as e:
                yield BadRow(file, row, "damaged-file", f"{e}; the rows before it were read")
                return
            if size == 0:
                break
            if size > MAX_LINE_BYTES:
                yield BadRow(file, row, "too-large", f"a line of {size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
            elif blank or (data if offset else data.removeprefix(codecs.BOM_UTF8)).strip():
                yield Line(row, offset, data)
            row, offset = row + 1, offset + size
        if to_come:  # the file has become shorter
            yield EndOfRange(row - first)


def line_before(storage: Storage, locator: dict[str, Any]) -> Line | None:
    """The line before a range's first one, its row unknown (0); None at the start of a file, or if it is too long."""
    if not locator.get("start"):
        return None
    file, size = locator["file"], locator["size"]
    known = locator["start"] - 1  # a byte of the line that is looked for, perhaps its last
    start, stop, step = max(0, known - AHEAD), min(size, known + AHEAD), AHEAD
    with storage_errors(storage, file):
        around = storage.range(file, start, stop)
        head, tail = around[: known - start], around[known - start :]
        while b"\n" not in head and start and len(head) <= MAX_LINE_BYTES:
            start, end, step = max(0, start - step), start, 2 * step
            head = storage.range(file, start, end) + head
        while b"\n" not in tail and stop < size and len(tail) <= MAX_LINE_BYTES:
            begin, stop, step = stop, min(size, stop + step), 2 * step
            tail += storage.range(file, begin, stop)
    begun = head[head.rfind(b"\n") + 1 :]
    data = begun + tail[: (tail.find(b"\n") + 1) or None]
    return Line(0, known - len(begun), data) if len(data) <= MAX_LINE_BYTES else None


def json_rows(storage: Storage, locator: dict[str, Any]) -> Iterator[JsonRow | BadRow | EndOfRange]:
    """Each JSON object of a locator's lines."""
    file = locator["file"]
    for line in read_lines(storage, locator):
        if not isinstance(line, Line):
            yield line
            continue
        try:
            yield JsonRow(line.row, line_key(file, line.offset), parse_json(line.data))
        except UnusableRow as e:
            yield BadRow(file, line.row, e.error, e.message)


def parse_json(data: bytes) -> dict[str, Any]:
    """A line's JSON object; UnusableRow if it is none."""
    try:
        content = json.loads(data)
    except UnicodeDecodeError as e:
        raise UnusableRow("not-utf-8", str(e)) from e
    except (ValueError, RecursionError) as e:
        raise UnusableRow("bad-json", str(e)) from e
    if not isinstance(content, dict):
        raise UnusableRow("bad-json", f"expected an object, got {type(content).__name__}")
    return content


def line_key(file: str, offset: int) -> str:
    """The key of the sample that begins at a byte of a file."""
    return f"{file}@{offset}"


def _stream(storage: Storage, locator: dict[str, Any]) -> AbstractContextManager[IO[bytes]]:
    """The file from a byte before the range's start, if it has one, so that it shows whether a line begins there."""
    if "start" not in locator:
        return opened(storage, locator["file"])
    return nullcontext(io.BufferedReader(_Range(storage, locator), BLOCK))


def _to_first_line(f: IO[bytes], start: int) -> int:
    """Moves to the first line that begins at ``start`` or later; its offset."""
    offset = max(0, start - 1)
    while start:
        piece = f.readline(AHEAD)
        offset += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return offset


def _next_line(f: IO[bytes]) -> tuple[bytes, int]:
    """A line and its size; of one that is too long only the size."""
    data = f.readline(MAX_LINE_BYTES + 1)
    size = len(data)
    if size <= MAX_LINE_BYTES:
        return data, size
    while data and not data.endswith(b"\n"):
        data = f.readline(BLOCK)
        size += len(data)
    return b"", size


class _Range(io.RawIOBase):
    """A file from a byte before a range's start, by requests that stop where the range does, and small ones behind."""

    def __init__(self, storage: Storage, locator: dict[str, Any]) -> None:
        self._storage, self._file = storage, locator["file"]
        self._at, self._stop, self._size = max(0, locator["start"] - 1), locator["stop"], locator["size"]
        self._ahead = AHEAD

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = self._at + len(buffer)
        if self._at < self._stop:
            end = min(end, self._stop)
        else:
            end, self._ahead = min(end, self._size, self._at + self._ahead), 2 * self._ahead
        data = self._storage.range(self._file, self._at, end) if self._at < end else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
