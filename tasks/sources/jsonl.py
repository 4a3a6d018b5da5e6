"""What sources of JSONL files share: a sample a line, in work items of whole lines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from infra.storage import Storage
from tasks.sources.base import BadRow, EndOfRange, RawSample, WorkItem
from tasks.sources.files import UnusableRow, ahead
from tasks.sources.lines import JsonRow, json_rows, line_items
from tasks.sources.listed import ListedSource
from tasks.sources.packed import COMPRESSED

JSONL = (".jsonl", *(f".jsonl{packed}" for packed in COMPRESSED))
Maker = Callable[[str, JsonRow], RawSample]
"""Makes a sample of (file name, line); UnusableRow where it cannot."""


class JsonlSource(ListedSource):
    """The JSONL files that ``path`` names: one, or all below a folder; plain, ``.gz`` or ``.zst``."""

    suffixes = JSONL

    @abstractmethod
    def maker(self, storage: Storage) -> Maker:
        """How a line becomes a sample; ``storage`` is of the folder that ``path`` is or lies in."""

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        return line_items(self.root().storage, self.files(), target)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        storage, file = self.root().storage, item.locator["file"]
        make = self.maker(storage)

        def sample(found: JsonRow | BadRow | EndOfRange) -> RawSample | BadRow | EndOfRange:
            if not isinstance(found, JsonRow):
                return found
            try:
                return make(file, found)
            except UnusableRow as e:
                return BadRow(file, found.row, e.error, e.message)

        yield from ahead(storage, sample, json_rows(storage, item.locator))
