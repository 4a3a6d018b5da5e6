"""What sources of one JSONL file share: a sample a line, in work items of whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from infra.errors import SourceError
from tasks.sources.base import BadRow, BaseSource, RawSample, WorkItem
from tasks.sources.files import LineRange, UnusableRow, files_digest, json_rows, line_ranges

Maker = Callable[[str, int, dict[str, Any]], RawSample]
"""Makes a sample of (file name, row, the line's content); UnusableRow where it cannot."""


class JsonlSource(BaseSource):
    """The file ``path``, plain or ``.gz``. A subclass names its ``format`` and says how a line becomes a sample."""

    format: ClassVar[str]
    """Name and version of how lines are read; another version is another content."""

    def maker(self, folder: Path) -> Maker:
        """How a line becomes a sample; ``folder`` is the file's."""
        raise NotImplementedError

    def digest(self) -> str:
        return files_digest(self.format, self._file().parent, [self._file().name])

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index, lines in enumerate(line_ranges(self._file(), target)):
            yield WorkItem(self.config.name, index, lines.locator(self._file().name))

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        path = self._file()
        make = self.maker(path.parent)
        for found in json_rows(path, LineRange.of(item.locator)):
            if isinstance(found, BadRow):
                yield found
                continue
            row, content = found
            try:
                yield make(path.name, row, content)
            except UnusableRow as e:
                yield BadRow(path.name, row, e.error, e.message)

    def _file(self) -> Path:
        path = self.root()
        if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
            raise SourceError(f"source {self.config.name}: {path} is not a JSONL file; set `path` to one")
        return path
