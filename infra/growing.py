"""Files that grow for hours, such as a training's metrics: appended to in place on a disk, uploaded again elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress

from infra.scratch import scratch_folder
from infra.storage import FileInfo, Storage


class GrowingFiles:
    """A storage's folder that local files are appended to.

    On a disk :attr:`path` is the folder itself. Elsewhere, where nothing can be appended to, it lies in scratch, and
    what changed there is stored by :meth:`keep`: of a killed process what it last kept is there.
    """

    def __init__(self, store: Storage, known: Iterable[str] = ()) -> None:
        """``known``: files to go on with, where they are there."""
        self._store, self._stack = store, ExitStack()
        self._kept: dict[str, FileInfo] = {}
        if store.local:
            self.path = store.path()
            self.path.mkdir(parents=True, exist_ok=True)
            return
        self.path = self._stack.enter_context(scratch_folder(what="a file that grows"))
        store.fetch((name for name in known if store.exists(name)), self.path)
        self._kept = {f.name: f for f in Storage(self.path).find()}

    def keep(self) -> None:
        """Stores what changed. ResourceError where it cannot be stored."""
        if self._store.local:
            return
        for found in Storage(self.path).find():
            if self._kept.get(found.name) != found:
                with suppress(FileNotFoundError):  # its writer has just moved it
                    self._store.put_file(found.name, self.path / found.name)
                    self._kept[found.name] = found

    def close(self) -> None:
        """Keeps, and lets go of scratch."""
        with self._stack:
            self.keep()
