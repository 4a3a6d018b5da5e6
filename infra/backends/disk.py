"""Storage on a local disk, or one that is mounted like it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from infra.backends.aside import aside_name, maker_lives
from infra.backends.base import ASIDE, FULL, FileInfo
from infra.errors import ResourceError, StoreError

READERS = 8
"""Files read at once by ``get_many``: of use on mounted disks, where each open waits for the network."""

BLOCK = 1 << 20
"""Bytes copied at once."""

BATCH = 16
"""Files that one of them reads in a row."""

FORGOTTEN_S = 3600
"""A file aside that has not grown for so long is nobody's any more, wherever its writer was."""

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
"""What disks without hard links (some mounted ones) answer to one."""


class Disk:
    """A folder. Links to files count as files; links to folders are not followed below the root."""

    def __init__(self, root: str) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))  # noqa: PTH100, PTH111 - resolve() follows links

    def url(self, name: str) -> str:
        return str(self.path(name))

    def path(self, name: str) -> Path:
        return self.root / name if name else self.root

    # -- reading

    def info(self, name: str) -> FileInfo | None:
        try:
            found = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise self._unreadable(name, e) from e
        return _info(name, found) if stat.S_ISREG(found.st_mode) else None

    def get(self, name: str) -> bytes:
        with self.open(name) as f:
            return f.read()

    def get_many(self, names: Iterable[str]) -> Iterator[bytes]:
        def read(batch: Sequence[str]) -> list[bytes]:  # a batch a task: on a fast disk the task costs more than a read
            return [self.get(name) for name in batch]

        waiting, todo = deque[Future[list[bytes]]](), iter(names)
        batches = iter(lambda: tuple(islice(todo, BATCH)), ())
        with ThreadPoolExecutor(READERS) as pool:
            try:
                waiting.extend(pool.submit(read, batch) for batch in islice(batches, 2 * READERS))
                while waiting:
                    yield from waiting.popleft().result()
                    waiting.extend(pool.submit(read, batch) for batch in islice(batches, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    def range(self, name: str, start: int, stop: int) -> bytes:
        with self.open(name) as f:
            f.seek(start)
            return f.read(max(0, stop - start))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            f = open(self.path(name), "rb")  # noqa: SIM115 - closed below; an error inside the block is not ours
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
            raise FileNotFoundError(name) from e
        except OSError as e:
            raise self._unreadable(name, e) from e
        with f:
            yield f

    def files(self, folder: str) -> Iterator[FileInfo]:
        prefix = f"{folder}/" if folder else ""
        for entry in self._scan(folder):
            if not entry.name.startswith(ASIDE) and (found := _regular(entry)) is not None:
                yield _info(prefix + entry.name, found)

    def find(self, folder: str) -> Iterator[FileInfo]:
        # A folder's place among its neighbours is that of its name with the slash: so whole names come in order.
        levels = [iter(self._sorted(folder))]
        while levels:
            step = next(levels[-1], None)
            if step is None:
                levels.pop()
            elif isinstance(step, FileInfo):
                yield step
            else:
                levels.append(iter(self._sorted(step)))

    def _sorted(self, folder: str) -> list[FileInfo | str]:
        """A folder's files, and its folders as their names, in the order of whole names."""
        prefix, found = f"{folder}/" if folder else "", list[tuple[str, FileInfo | str]]()
        for entry in self._scan(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found.append((entry.name + "/", prefix + entry.name))
            elif (about := _regular(entry)) is not None:
                found.append((entry.name, _info(prefix + entry.name, about)))
        return [step for _, step in sorted(found, key=lambda f: f[0])]

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path(folder)) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            raise self._unreadable(folder, e) from e

    def _unreadable(self, name: str, error: OSError) -> StoreError:
        return StoreError(f"{self.url(name)}: cannot be read ({error.strerror})")

    # -- writing

    def put(self, name: str, data: bytes) -> None:
        target = self.path(name)
        self._move(self._write_aside(target, lambda f: f.write(data), len(data)), target)

    def put_file(self, name: str, path: Path) -> None:
        target = self.path(name)
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            self._move(self._write_aside(target, lambda f: shutil.copyfileobj(source, f, BLOCK), size), target)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / aside_name()
        try:
            yield aside
            with open(aside, "rb") as f:
                os.fsync(f.fileno())
            self._move(aside, target)
        except OSError as e:
            if e.errno not in FULL:  # what the writer tripped over elsewhere
                raise
            raise self._unwritten(target, e) from e
        finally:
            aside.unlink(missing_ok=True)

    def put_new(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        aside = self._write_aside(target, lambda f: f.write(data), len(data))
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
        except FileNotFoundError as e:
            raise self._lost(target) from e
        except OSError as e:
            if e.errno not in NO_LINKS:
                raise self._unwritten(target, e, len(data)) from e
            return self._claim(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def sweep(self, folder: str) -> int:
        """Files aside go if their writer, a process of this machine, is no more; those of others after an hour."""
        count = 0
        for f in self.path(folder).glob(f"{ASIDE}*") if self.path(folder).is_dir() else ():
            try:
                if maker_lives(f.name) is False or time.time() - f.stat().st_mtime > FORGOTTEN_S:
                    f.unlink()
                    count += 1
            except FileNotFoundError:  # its writer has just moved it, or somebody else sweeps
                continue
        return count

    def _claim(self, aside: Path, target: Path) -> bool:
        """Without hard links: whoever creates the file, empty, may move the written one over it."""
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        try:
            self._move(aside, target)
        except BaseException:
            target.unlink(missing_ok=True)  # an empty file would count as the winner's for ever
            raise
        return True

    def _move(self, aside: Path, target: Path) -> None:
        try:
            aside.replace(target)
        except FileNotFoundError as e:
            raise self._lost(target) from e
        except OSError as e:
            aside.unlink(missing_ok=True)
            raise StoreError(f"{target}: cannot be put in place ({e.strerror}). Remove what is in its way.") from e

    def _lost(self, target: Path) -> StoreError:
        return StoreError(
            f"{target}: what was written for it was removed before it was in place. Does another program, or a run on "
            "another machine with another clock, clean up in this folder? Run again: finished parts are kept."
        )

    def _write_aside(self, target: Path, write: Callable[[IO[bytes]], object], size: int) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / aside_name()
        try:
            with open(aside, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            aside.unlink(missing_ok=True)
            raise self._unwritten(target, e, size) from e
        return aside

    def _unwritten(self, target: Path, error: OSError, size: int | None = None) -> ResourceError:
        return ResourceError(
            f"{target}: could not write {'it' if size is None else f'{size:,} bytes'} ({error.strerror}). "
            "Free some space or choose another folder with --workdir, then run again: finished parts are kept."
        )


def _regular(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What the disk says of a file or a link to one; None for anything else, and for what has just gone."""
    try:
        found = entry.stat()
    except OSError:  # a link to nowhere
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _info(name: str, found: os.stat_result) -> FileInfo:
    return FileInfo(name, found.st_size, str(found.st_mtime_ns))
