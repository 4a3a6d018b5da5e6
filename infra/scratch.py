"""Scratch: folders on this machine for what must lie in a local file while a library writes or reads it.

They lie in the system's folder for temporary files (``TMPDIR``), one below another of this user, and go when they are
done with. What killed processes left goes when the next one is made.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.backends.aside import aside_name, maker_lives
from infra.backends.base import ASIDE, FULL
from infra.errors import ResourceError

FORGOTTEN_S = 86_400
"""A folder of another machine's process that has not changed for so long is nobody's any more."""
SLACK = 64 << 20
"""Bytes of a disk that are left free."""


@contextmanager
def scratch_folder(size: int = 0, what: str = "a temporary copy") -> Iterator[Path]:
    """A new, empty folder; it goes with all that is in it.

    Raises:
        ResourceError: ``size`` bytes for ``what`` are not free there, or the disk fills up inside the context.
    """
    root = Path(tempfile.gettempdir()) / f"calumma-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (about := root.lstat()).st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode):
            raise ResourceError(f"{root}: somebody else made it. Set TMPDIR to a folder of your own.")
        sweep_scratch(root)
        free = shutil.disk_usage(root).free
        if free < size + SLACK * bool(size):
            raise ResourceError(
                f"{root}: {what} needs {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. Set TMPDIR to a folder "
                "with more room, on every node that trains."
            )
        with own_folder(root) as folder:
            yield folder
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise ResourceError(
            f"{root}: {what} could not be written ({e.strerror}). Set TMPDIR to a folder with more room, then run "
            "again: finished parts are kept."
        ) from e


@contextmanager
def own_folder(root: Path) -> Iterator[Path]:
    """A new folder below ``root`` that is this process' own by its name; removed at the end."""
    folder = root / aside_name()
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(root: Path) -> None:
    """Removes what processes left below ``root`` that are no more."""
    for left in root.glob(f"{ASIDE}*"):
        lives = maker_lives(left.name)
        if lives is False or (lives is None and time.time() - _last_change(left) > FORGOTTEN_S):
            shutil.rmtree(left, ignore_errors=True)


def _last_change(folder: Path) -> float:
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest
