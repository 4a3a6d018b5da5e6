"""Any other file system of fsspec. It serves ``memory://`` in tests, and promises nothing on faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from infra.backends.base import FileInfo, is_hidden
from infra.backends.by_scratch import written_in_scratch


class Other:
    """A root given as a URL that fsspec knows."""

    def __init__(self, root: str) -> None:
        self._fs, self._base = fsspec.core.url_to_fs(root)

    def url(self, name: str) -> str:
        return f"{self._base}/{name}" if name else str(self._base)

    def info(self, name: str) -> FileInfo | None:
        try:
            found = self._fs.info(self.url(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _info(name, found) if found["type"] == "file" else None

    def get(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(self.url(name)))

    def get_many(self, names: Iterable[str]) -> Iterator[bytes]:
        return map(self.get, names)

    def range(self, name: str, start: int, stop: int) -> bytes:
        return bytes(self._fs.cat_file(self.url(name), start=start, end=max(start, stop)))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._fs.open(self.url(name), "rb") as f:
            yield f

    def files(self, folder: str) -> Iterator[FileInfo]:
        try:
            entries = self._fs.ls(self.url(folder), detail=True)
        except FileNotFoundError:
            return
        prefix = f"{folder}/" if folder else ""
        for entry in entries:
            if entry["type"] == "file":
                yield _info(prefix + entry["name"].rsplit("/", 1)[-1], entry)

    def find(self, folder: str) -> Iterator[FileInfo]:
        start = len(self.url(folder).rstrip("/")) + 1
        prefix = f"{folder}/" if folder else ""
        for path, entry in sorted(self._fs.find(self.url(folder), detail=True).items()):
            if path[start:] and not is_hidden(path[start:]):
                yield _info(prefix + path[start:], entry)

    def put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self.url(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self.url(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, name: str, path: Path) -> None:
        self._fs.put_file(str(path), self.url(name))

    def writing(self, name: str) -> AbstractContextManager[Path]:
        return written_in_scratch(self, name)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self.url(name))

    def sweep(self, folder: str) -> int:
        return 0


def _info(name: str, entry: dict[str, Any]) -> FileInfo:
    return FileInfo(name, int(entry["size"] or 0), str(entry.get("created") or entry.get("mtime") or ""))
