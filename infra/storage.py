"""Storage: a folder on a local disk or on S3, behind one small interface over fsspec.

Everything that Calumma keeps goes through :class:`Storage`. Names are relative, with ``/``. Two writes exist:
``put`` replaces, and is atomic; ``put_new`` creates, and exactly one of several writers wins.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from infra.errors import ResourceError, StoreError

_ASIDE = ".aside-"


class Storage:
    """A root folder: ``Storage("/data/run")``, ``Storage("s3://bucket/run")``."""

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        self.root = str(root).rstrip("/") or "/"
        self._fs, self._base = fsspec.core.url_to_fs(self.root, **options)
        self.local = self._fs.protocol in ("file", "local") or "file" in self._fs.protocol

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def sub(self, name: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(f"{self.root}/{name}")

    def url(self, name: str = "") -> str:
        return f"{self._base}/{name}" if name else str(self._base)

    def path(self, name: str = "") -> Path:
        """The local path of a file; an error on S3, where there is none."""
        if not self.local:
            raise StoreError(f"{self.root}: {name} was wanted as a local file, and this storage is not on a local disk")
        return Path(self.url(name))

    # -- reading

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self.url(name)))

    def size(self, name: str) -> int:
        return int(self._fs.size(self.url(name)))

    def get(self, name: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(self.url(name)))
        except FileNotFoundError as e:
            raise StoreError(f"{self.url(name)}: no such file") from e

    def get_or_none(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self.url(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._fs.open(self.url(name), "rb") as f:
            yield f

    def list(self, folder: str = "", suffix: str = "") -> list[str]:
        """The files directly in a folder, sorted, by name; files being written are not shown."""
        try:
            entries = self._fs.ls(self.url(folder) if folder else self._base, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        names = (e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "file")
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith(_ASIDE))

    # -- writing

    def put(self, name: str, data: bytes) -> None:
        """Writes a whole file, atomically: a reader sees the old one or the new one."""
        if not self.local:
            self._fs.pipe_file(self.url(name), data)
            return
        target = self.path(name)
        aside = self._write_aside(target, data)
        aside.replace(target)

    def put_new(self, name: str, data: bytes) -> bool:
        """Creates a file unless it exists; False if it did. Of several writers exactly one gets True."""
        if not self.local:
            try:
                self._fs.pipe_file(self.url(name), data, mode="create")
            except FileExistsError:
                return False
            return True
        target = self.path(name)
        aside = self._write_aside(target, data)
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self.url(name))

    def sweep(self, folder: str = "") -> int:
        """Removes what killed writers left aside; how many files that were."""
        if not self.local:
            return 0  # an unfinished S3 upload leaves no object behind
        found = list(self.path(folder).glob(f"{_ASIDE}*")) if self.path(folder).is_dir() else []
        for f in found:
            f.unlink(missing_ok=True)
        return len(found)

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

    def _write_aside(self, target: Path, data: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f"{_ASIDE}{uuid.uuid4().hex}"
        try:
            with open(aside, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            aside.unlink(missing_ok=True)
            raise ResourceError(
                f"{target}: could not write {len(data):,} bytes ({e.strerror}). "
                "Free some space or choose another folder with --workdir, then run again: finished parts are kept."
            ) from e
        return aside
