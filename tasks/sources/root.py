"""What ``path`` of a source names: a folder or a file, on a local disk or at an address like ``s3://``."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

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

    def files(self, wanted: Callable[[str], bool], *, broken_links: bool = False) -> Iterator[FileInfo]:
        """The wanted files below the folder in order of their names, hidden ones left out; or the one file, if wanted.

        ``wanted`` is asked with the name relative to the folder. With ``broken_links``, a disk's links that lead to no
        file are among them, without a size, for readers that tell of them.
        """
        if self.file is None:
            found: Iterator[FileInfo] = (f for f in self.storage.find() if wanted(f.name))
            if broken_links and self.storage.local:
                broken = sorted(n for n in _broken_links(self.storage.path()) if wanted(n))
                found = heapq.merge(found, (FileInfo(n, 0, "broken link") for n in broken), key=attrgetter("name"))
            yield from found
        elif wanted(self.file) and (one := self.storage.info(self.file)) is not None:
            yield replace(one, name=self.file)

    def url(self) -> str:
        """The address, for error messages."""
        return self.storage.url(self.file or "")


def is_broken_link(path: Path) -> bool:
    """Whether it is a link that leads to no file or folder: its target is gone, or it leads back to itself."""
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110 - Path.exists raises at a loop


def _broken_links(root: Path) -> Iterator[str]:
    """The names, relative to a folder, of the broken links below it; hidden ones are left out."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                there = [e for e in entries if not e.name.startswith(".")]
        except OSError:  # the listing of the files says so
            continue
        folders += [f"{prefix}{e.name}/" for e in there if e.is_dir(follow_symlinks=False)]
        yield from (prefix + e.name for e in there if e.is_symlink() and is_broken_link(Path(e.path)))
