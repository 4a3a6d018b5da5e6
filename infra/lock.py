"""One run a work folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import ResourceError

LOCK = "runs/lock"
_held: set[Path] = set()


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the folder's lock; within it, taking it again does nothing. ResourceError names the process that has it."""
    root = root.resolve()
    if root in _held:
        yield
        return
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            f.seek(0)
            raise ResourceError(
                f"{root}: another run is active in this folder (process {f.read().strip() or 'unknown'}). "
                "Wait for it, stop it, or choose another folder with --workdir."
            ) from None
        f.truncate(0)
        f.write(f"{os.getpid()}\n")
        f.flush()
        _held.add(root)
        try:
            yield
        finally:
            _held.discard(root)
