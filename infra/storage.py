"""Storage: a folder on a local disk or on S3, behind one small interface.

Everything that Calumma keeps goes through :class:`Storage`. Names are relative, with ``/``. Two writes exist:
``put`` replaces, and is atomic; ``put_new`` creates, and exactly one of several writers wins.

On S3 what may pass is tried again by itself (``infra/backends/s3_client.py``); what remains is a ResourceError that
names the address, the operation, the attempts and what to do. ``docs/storage.md`` has the guarantees.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from infra.backends.base import Backend, FileInfo
from infra.backends.disk import Disk
from infra.errors import ResourceError, StoreError
from infra.scratch import scratch_folder

__all__ = ["FileInfo", "Storage"]

BLOCK = 16 << 20
"""Bytes copied at once."""


class Storage:
    """A root folder: ``Storage("/data/run")``, ``Storage("s3://bucket/run")``.

    Pickled as its root alone: another process connects by its own environment. Threads may share one.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        kind, separator, rest = str(root).rpartition("://")
        self.root = kind + separator + (rest.rstrip("/") or rest[:1])
        self._backend = _backend_of(self.root)
        self.local = isinstance(self._backend, Disk)

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.root,)

    def sub(self, name: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(f"{self.root.rstrip('/')}/{name}")

    def url(self, name: str = "") -> str:
        """The whole address of a file: a path on a disk, ``s3://bucket/key`` on S3."""
        return self._backend.url(name)

    def path(self, name: str = "") -> Path:
        """The local path of a file; an error on S3, where there is none."""
        if not isinstance(self._backend, Disk):
            raise StoreError(f"{self.root}: {name} was wanted as a local file, and this storage is not on a local disk")
        return self._backend.path(name)

    # -- reading. A file that is not there is a StoreError, if nothing else is said.

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name; a folder is none."""
        return self._backend.info(name) is not None

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if (found := self._backend.info(name)) is None:
            raise self._missing(name)
        return found.size

    def get(self, name: str) -> bytes:
        """A whole file."""
        try:
            return self._backend.get(name)
        except FileNotFoundError:
            raise self._missing(name) from None

    def get_or_none(self, name: str) -> bytes | None:
        """A whole file; None where there is none."""
        try:
            return self._backend.get(name)
        except FileNotFoundError:
            return None

    def get_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """The content of many small files, in the order of ``names``: several are read at once, few are held."""
        try:
            yield from self._backend.get_many(names)
        except FileNotFoundError as e:
            raise self._missing(str(e)) from None

    def range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a file, fewer where it ends before, none where it ends before ``start``."""
        if start < 0:
            raise ValueError(
                f"{self.url(name)}: a range that starts at {start}; counting from the end is not supported"
            )
        try:
            return self._backend.range(name, start, stop)
        except FileNotFoundError:
            raise self._missing(name) from None

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Copies files into a local folder, under their names, piece by piece. StoreError where one is not there."""
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.open(name) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, BLOCK)

    @contextmanager
    def on_disk(self, names: Iterable[str]) -> Iterator[Path]:
        """A local folder that holds these files, for libraries that read files themselves.

        On a disk it is the storage's own folder; elsewhere copies in scratch, which go when the context ends.

        Raises:
            StoreError: One of them is not there.
            ResourceError: There is no room for copies.
        """
        names = list(names)
        sizes = [self.size(name) for name in names]
        if self.local:
            yield self.path()
            return
        with scratch_folder(sum(sizes), f"a copy of {self.root}") as folder:
            self.fetch(names, folder)
            yield folder

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file for reading; it can seek. On S3: ranged reads, a few MiB ahead, all of one version of the object."""
        with ExitStack() as stack:
            try:
                f = stack.enter_context(self._backend.open(name))
            except FileNotFoundError:
                raise self._missing(name) from None
            yield f

    def list(self, folder: str = "", suffix: str = "") -> list[str]:
        """The files directly in a folder, sorted, by name; files being written are not shown."""
        names = (f.name.rsplit("/", 1)[-1] for f in self._backend.files(folder))
        return sorted(n for n in names if n.endswith(suffix))

    def info(self, name: str = "") -> FileInfo | None:
        """What a listing says of one file; None where there is none (a folder is none)."""
        return self._backend.info(name)

    def find(self, folder: str = "") -> Iterator[FileInfo]:
        """Every file below a folder, in order of whole names (as Python sorts them), on a disk as on S3.

        Names with a part that begins with a dot are left out. On a disk, links to files are files and links to
        folders are not followed. One folder (disk) or 1,000 names (S3) are held at a time; a server that lists out of
        order (``infra/backends/s3.py``) makes it all of them.
        """
        yield from self._backend.find(folder)

    def _missing(self, name: str) -> StoreError:
        return StoreError(f"{self.url(name)}: no such file")

    # -- writing

    def put(self, name: str, data: bytes) -> None:
        """Writes a whole file, atomically: a reader sees the old one or the new one. On S3, what is stored is verified.

        Raises:
            ResourceError: it could not be written; what was there before still is.
        """
        self._backend.put(name, data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Creates a file unless it exists; False if it did. Of several writers exactly one gets True.

        On S3 an answer can be lost after the object was stored. The repeated request is then refused by our own
        object, so after a repetition equal bytes count as ours. Writers who must know which of them won put something
        of their own into the bytes: two with the same bytes may then both get True.
        """
        return self._backend.put_new(name, data)

    def put_file(self, name: str, path: Path) -> None:
        """Writes a copy of a local file, as ``put`` does; of a large one a few pieces are in memory at a time.

        What is appended to the local file meanwhile may be missing from the copy.
        """
        self._backend.put_file(name, path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path for a library to write a file at, which becomes ``name``, whole, when the block has ended.

        On a disk it lies beside its place and is moved there; elsewhere it lies in scratch (``infra/scratch.py``) and
        is uploaded. If the block raises, nothing is written. Errors as of ``put``.
        """
        with self._backend.writing(name) as path:
            yield path

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""
        self._backend.delete(name)

    def sweep(self, folder: str = "") -> int:
        """Removes what killed writers left in a folder; how many files (on S3: unfinished uploads) that were."""
        return self._backend.sweep(folder)

    def free_bytes(self) -> int | None:
        """Free space on the disk; None where there is no such number (S3)."""
        if not self.local:
            return None
        folder = self.path()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def need(self, size: int, what: str) -> None:
        """Raises ResourceError unless ``size`` bytes (and 2% of slack) are free."""
        free = self.free_bytes()
        if free is not None and free < size * 1.02 + (16 << 20):
            raise ResourceError(
                f"{self.root}: {what} needs {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. "
                "Free some space or choose another folder with --workdir."
            )


def _backend_of(root: str) -> Backend:
    kind, separator, rest = root.partition("://")
    if not separator:
        return Disk(root)
    if kind in ("file", "local"):
        return Disk(rest)
    if kind in ("s3", "s3a"):
        from infra.backends.s3 import S3  # half a second of imports that a local run has no use for

        return S3(rest)
    from infra.backends.other import Other

    return Other(root)
