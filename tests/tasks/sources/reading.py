"""What the tests of readers share: making a source of a folder, and reading all of it as the steps do."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from infra.storage import Storage
from tasks.sources import open_source
from tasks.sources.base import BadRow, EndOfRange, RawSample, Source, WorkItem
from tasks.sources.config import SourceConfig

PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
"""How the content of a file is packed, by the end of its name."""


class FailingDisk(Storage):
    """A folder of which no file can be read beyond its first ``after`` bytes."""

    def __init__(self, root: Path, after: int) -> None:
        super().__init__(root)
        self.after = after

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with super().open(name) as f:
            yield io.BufferedReader(cast("io.RawIOBase", _Failing(f, self.after)), 16)

    def range(self, name: str, start: int, stop: int) -> bytes:
        if stop > self.after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().range(name, start, stop)


class _Failing(io.RawIOBase):
    def __init__(self, f: IO[bytes], after: int) -> None:
        self._f, self._after = f, after

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._f.seek(offset, whence)

    def tell(self) -> int:
        return self._f.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._f.read(len(buffer))
        if data and self._f.tell() > self._after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        buffer[: len(data)] = data
        return len(data)


def source(folder: Path, kind: str, path: str, **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=kind, kind=kind, path=path, options=options), folder)


def items_of(found: Source, target: int = 100) -> list[WorkItem]:
    """The work items, taken through JSON as ``scan`` does."""
    return [WorkItem(**json.loads(json.dumps(asdict(item)))) for item in found.work_items(target)]


def rows(found: Source, target: int = 100) -> list[RawSample | BadRow]:
    """Every row of every work item."""
    return [r for item in items_of(found, target) for r in found.read(item) if not isinstance(r, EndOfRange)]


def numbered(found: Source, target: int = 100) -> list[RawSample | BadRow]:
    """Every row of every work item, read once more with the rows that each range's end makes known."""
    next_row: dict[str, int] = {}
    result: list[RawSample | BadRow] = []
    for item in items_of(found, target):
        file = item.locator["file"]
        if "start" in item.locator:
            item = WorkItem(item.source, item.index, item.locator | {"row": next_row.get(file, 1)})
        for row in found.read(item):
            if isinstance(row, EndOfRange):
                next_row[file] = next_row.get(file, 1) + row.lines
            else:
                result.append(row)
    return result


def samples(found: Source, target: int = 100) -> list[RawSample]:
    result = rows(found, target)
    assert not [r for r in result if isinstance(r, BadRow)]
    return [r for r in result if isinstance(r, RawSample)]


def errors(found: Source) -> list[str]:
    return [r.error for r in rows(found) if isinstance(r, BadRow)]


def json_lines(content: list[Any]) -> bytes:
    return "".join(json.dumps(c) + "\n" for c in content).encode()


def jsonl(path: Path, content: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(content))


def upload(url: str, folder: Path) -> None:
    """Everything below a folder, to a storage."""
    storage = Storage(url)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
