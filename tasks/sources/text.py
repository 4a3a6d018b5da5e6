"""Texts from files: JSONL, Parquet, plain text and Markdown, each line, row or file one text; also packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from infra.config import Config
from infra.errors import SourceError
from tasks.sources import parquet
from tasks.sources.base import BadRow, BaseSource, EndOfRange, RawSample, Segment, WorkItem
from tasks.sources.files import (
    UnusableRow,
    ahead,
    ends_in,
    folder_slices,
    inside,
    listing_digest,
    optional_text,
    read_plain,
    slice_files,
    text_field,
)
from tasks.sources.jsonl import JSONL
from tasks.sources.lines import JsonRow, json_rows, line_items
from tasks.sources.packed import COMPRESSED

PLAIN = tuple(f"{kind}{packed}" for kind in (".txt", ".md") for packed in ("", *COMPRESSED))
SUFFIXES = (*PLAIN, *JSONL, parquet.SUFFIX)


class TextOptions(Config):
    """Options of type ``text``."""

    pattern: str = "*"
    """Which files of the folder, by their whole name or its end: ``*.jsonl``, ``books/*.txt``."""
    field: str = "text"
    """Field or column with the text."""
    licence_field: str | None = "licence"
    """Field or column with a text's licence, where it has one."""


class TextFiles(BaseSource):
    """Texts below ``path``, a file or a folder: first those of plain files, then of JSONL, then of Parquet."""

    def digest(self) -> str:
        return listing_digest("text 2", self.root().files(self._wanted(*SUFFIXES)))

    def work_items(self, target: int) -> Iterator[WorkItem]:
        root = self.root()
        if next(root.files(self._wanted(*SUFFIXES)), None) is None:
            raise SourceError(
                f"source {self.config.name}: no file of {root.url()} matches {self._options.pattern!r} and ends in "
                f"{', '.join(SUFFIXES)}"
            )
        locators = chain(
            folder_slices(root.files(self._wanted(*PLAIN)), target),
            line_items(root.storage, root.files(self._wanted(*JSONL)), target),
            parquet.slices(root.storage, root.files(self._wanted(parquet.SUFFIX)), target),
        )
        for index, locator in enumerate(locators):
            yield WorkItem(self.config.name, index, locator)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        if "slice" in item.locator:
            return self._read_parquet(item.locator)
        return self._read_plain(item.locator) if "folder" in item.locator else self._read_lines(item.locator)

    @property
    def _options(self) -> TextOptions:
        return self.options(TextOptions)

    def _wanted(self, *suffixes: str) -> Callable[[str], bool]:
        """Whether a name ends in one of the suffixes and is not left out by ``pattern``; that of one file never is."""
        fits, pattern = ends_in(*suffixes), self._options.pattern
        if self.root().file or pattern == "*":
            return fits
        return lambda name: fits(name) and PurePosixPath(name).match(pattern)

    def _read_plain(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        storage = self.root().storage
        names = enumerate(slice_files(storage, locator, self._wanted(*PLAIN)), locator["row"])

        def text(place: tuple[int, str]) -> RawSample | BadRow:
            row, name = place
            try:
                return RawSample(name, name, row, segments=(Segment(read_plain(storage, inside(storage, name))),))
            except UnusableRow as e:
                return BadRow(name, row, e.error, e.message)

        yield from ahead(storage, text, names)

    def _read_lines(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow | EndOfRange]:
        options = self._options
        for found in json_rows(self.root().storage, locator):
            yield _sample(locator["file"], *found, options) if isinstance(found, JsonRow) else found

    def _read_parquet(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        options, file = self._options, locator["file"]
        columns = [c for c in (options.field, options.licence_field) if c is not None]
        for found in parquet.rows(self.root().storage, locator, columns):
            if isinstance(found, BadRow):
                yield found
            else:
                row, content = found
                yield _sample(file, row, f"{file}#{row}", content, options)


def _sample(file: str, row: int, key: str, content: dict[str, Any], options: TextOptions) -> RawSample | BadRow:
    try:
        text = text_field(content, options.field)
    except UnusableRow as e:
        return BadRow(file, row, e.error, e.message)
    return RawSample(key, file, row, segments=(Segment(text),), licence=optional_text(content, options.licence_field))
