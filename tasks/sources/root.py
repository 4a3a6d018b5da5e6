"""What ``path`` of a source names: a folder or a file, on a local disk or at an address like ``s3://``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from infra.storage import FileInfo, Storage


@dataclass(frozen=True)
class Root:
    """What ``path`` of a source names: a folder, or one file."""

    storage: Storage
    """Of the folder; of the file's folder where ``path`` names a file."""
    file: str | None = None
    """The file's name where ``path`` names one."""

    @classmethod
    def of(cls, url: str) -> Root | None:
        """The file or folder at a local path or an address like ``s3://bucket/prefix``; None if nothing is there."""
        folder = Storage(url)
        if folder.local:
            path = folder.path()
            return cls(Storage(path.parent), path.name) if path.is_file() else cls(folder) if path.is_dir() else None
        kind, _, rest = folder.root.partition("://")
        parent, _, name = rest.rpartition("/")
        if parent and name and (file := Storage(f"{kind}://{parent}")).info(name) is not None:
            return cls(file, name)
        return cls(folder) if next(folder.find(), None) is not None else None

    def files(self, wanted: Callable[[str], bool]) -> Iterator[FileInfo]:
        """The wanted files below the folder in order of their names, hidden ones left out; or the one file, if wanted.

        ``wanted`` is asked with the name relative to the folder.
        """
        if self.file is None:
            yield from (f for f in self.storage.find() if wanted(f.name))
        elif wanted(self.file) and (found := self.storage.info(self.file)) is not None:
            yield replace(found, name=self.file)

    def url(self) -> str:
        """The address, for error messages."""
        return self.storage.url(self.file or "")
