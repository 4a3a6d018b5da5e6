"""Files that a recipe names beside its sources: weights, benchmarks, a removal list. On a disk or on ``s3://``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import SourceError
from infra.storage import Storage
from tasks.scan.config import ScanConfig


def located(path: str, folder: str | Path = ".") -> tuple[Storage, str]:
    """The storage and the name in it of a file that a recipe names; a relative path starts at the recipe's folder."""
    whole = path if "://" in path else str(Path(folder).resolve() / Path(path).expanduser())
    parent, _, name = whole.rpartition("/")
    return Storage(parent), name


def file_bytes(path: str, folder: str | Path, key: str) -> bytes:
    """A whole file; SourceError names it and the recipe's key if it cannot be read."""
    storage, name = located(path, folder)
    data = storage.get_or_none(name)
    if data is None:
        raise SourceError(
            f"{storage.url(name)}: no such file; correct {key}. Relative paths start at the recipe's folder."
        )
    return data


@contextmanager
def local_file(path: str, folder: str | Path, key: str) -> Iterator[Path]:
    """The file on a local disk: itself, or a copy that goes when the context ends."""
    storage, name = located(path, folder)
    if storage.info(name) is None:
        raise SourceError(
            f"{storage.url(name)}: no such file; correct {key}. Relative paths start at the recipe's folder."
        )
    with storage.on_disk([name]) as found:
        yield found / name


def identities(config: ScanConfig, folder: str | Path) -> dict[str, str]:
    """Name, size and stamp of every file that scanning reads beside its sources: they decide what it writes.

    SourceError if one is missing.
    """
    named = {f"scan.scorers.{s.name}.weights": s.weights for s in config.scorers if s.weights is not None}
    named |= {f"scan.benchmarks.{b.name}.path": b.path for b in config.benchmarks}
    found = {}
    for key, path in named.items():
        storage, name = located(path, folder)
        info = storage.info(name)
        if info is None:
            raise SourceError(
                f"{storage.url(name)}: no such file; correct {key}. Relative paths start at the recipe's folder."
            )
        found[key] = f"{info.name} {info.size} {info.stamp}"
    return found
