"""Writing by libraries that want a local file, to a storage that has none: in scratch first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.backends.base import Backend
from infra.scratch import scratch_folder


@contextmanager
def written_in_scratch(backend: Backend, name: str) -> Iterator[Path]:
    """``Backend.writing`` of a storage that is no disk: the file is sent when the context ends, and then goes."""
    with scratch_folder(what=backend.url(name)) as folder:
        path = folder / name.rpartition("/")[2]
        yield path
        backend.put_file(name, path)
