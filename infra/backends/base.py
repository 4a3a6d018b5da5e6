"""What a kind of storage must be able to do. Names are relative to its root, with ``/``; ``""`` is the root itself."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

ASIDE = ".aside-"
"""How the names of files being written begin on a disk."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room answers."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as a listing tells of it, without opening it."""

    name: str
    """Relative to the storage's root, with ``/``."""
    size: int
    stamp: str
    """Changes when the content does: time of change on a disk, ETag on S3."""


class Backend(Protocol):
    """A disk, S3, or another file system of fsspec.

    A file that is not there is a FileNotFoundError, which :class:`~infra.storage.Storage` words for the user; every
    other error comes out as one of ``infra.errors``.
    """

    def url(self, name: str) -> str:
        """The full address, for people and error texts."""

    def info(self, name: str) -> FileInfo | None:
        """One file; None where there is none."""

    def get(self, name: str) -> bytes:
        """A whole file."""

    def get_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Many files in the given order, several read at once, a bounded number held."""

    def range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, as many as there are."""

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """The file for reading; it can seek."""

    def files(self, folder: str) -> Iterator[FileInfo]:
        """The files directly in a folder, in any order; none where there is no folder."""

    def find(self, folder: str) -> Iterator[FileInfo]:
        """The files below a folder, in order of their whole names; hidden ones and hidden folders left out."""

    def put(self, name: str, data: bytes) -> None:
        """Replaces a file, atomically."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Creates a file; False where there is one."""

    def put_file(self, name: str, path: Path) -> None:
        """Replaces a file, atomically, by a copy of a local one, which is read piece by piece."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A local path to write a file at; it replaces ``name``, atomically, when the context ends without an error."""

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""

    def sweep(self, folder: str) -> int:
        """Removes what killed writers left in a folder; how many pieces that were."""


def is_hidden(name: str) -> bool:
    """Whether a name has a part that begins with a dot."""
    return name.startswith(".") or "/." in name
