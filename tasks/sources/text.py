"""Texts from files: JSONL, Parquet, plain text and Markdown, each line, row or file one text; also gzipped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from infra.config import Config
from infra.errors import SourceError
from tasks.sources.base import BadRow, BaseSource, RawSample, Segment, WorkItem
from tasks.sources.files import (
    LineRange,
    UnusableRow,
    files_digest,
    folder_slices,
    inside,
    json_rows,
    line_ranges,
    list_files,
    optional_text,
    read_plain,
    slice_files,
    text_field,
)

PLAIN = (".txt", ".md", ".txt.gz", ".md.gz")
LINES = (".jsonl", ".jsonl.gz")
PARQUET = (".parquet",)


class TextOptions(Config):
    """Options of type ``text``."""

    pattern: str = "*"
    """Which files of the folder, by their whole name or its end: ``*.jsonl``, ``books/*.txt``."""
    field: str = "text"
    """Field or column with the text."""
    licence_field: str | None = "licence"
    """Field or column with a text's licence, where it has one."""


class TextFiles(BaseSource):
    """Texts below ``path``, a file or a folder."""

    def digest(self) -> str:
        return files_digest("text 1", self._base(), self._files(PLAIN + LINES + PARQUET))

    def work_items(self, target: int) -> Iterator[WorkItem]:
        files = self._files(PLAIN + LINES + PARQUET)
        if not files:
            raise SourceError(
                f"source {self.config.name}: no file of {self.root()} matches {self._options.pattern!r} and ends in "
                f"{', '.join(PLAIN + LINES + PARQUET)}"
            )
        for index, locator in enumerate(self._locators(target)):
            yield WorkItem(self.config.name, index, locator)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        if "groups" in item.locator:
            return self._read_parquet(item.locator)
        if "start" in item.locator:
            return self._read_lines(item.locator)
        return self._read_plain(item.locator)

    @property
    def _options(self) -> TextOptions:
        return self.options(TextOptions)

    def _base(self) -> Path:
        root = self.root()
        return root.parent if root.is_file() else root

    def _files(self, suffixes: tuple[str, ...]) -> list[str]:
        root = self.root()
        return [n for n in list_files(root, partial(self._wanted, suffixes)) if n.endswith(suffixes)]

    def _wanted(self, suffixes: tuple[str, ...], name: str) -> bool:
        only = self.root().name if self.root().is_file() else None
        return name.endswith(suffixes) and (name == only if only else PurePosixPath(name).match(self._options.pattern))

    def _locators(self, target: int) -> Iterator[dict[str, Any]]:
        base = self._base()
        if self._files(PLAIN):
            yield from folder_slices(base, partial(self._wanted, PLAIN), target)
        for name in self._files(LINES):
            for lines in line_ranges(base / name, target):
                yield lines.locator(name)
        for name in self._files(PARQUET):
            yield from _row_groups(base / name, name, target)

    def _read_plain(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        for row, name in enumerate(slice_files(self._base(), locator, partial(self._wanted, PLAIN)), locator["row"]):
            try:
                yield RawSample(name, name, row, segments=(Segment(read_plain(inside(self._base(), name))),))
            except UnusableRow as e:
                yield BadRow(name, row, e.error, e.message)

    def _read_lines(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        file, options = locator["file"], self._options
        for found in json_rows(self._base() / file, LineRange.of(locator)):
            if isinstance(found, BadRow):
                yield BadRow(file, found.row, found.error, found.message)
            else:
                yield self._sample(file, *found, options)

    def _read_parquet(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, options, row = locator["file"], self._options, locator["row"]
        try:
            table = pq.ParquetFile(self._base() / file)
            have = table.schema_arrow.names
            columns = [c for c in (options.field, options.licence_field) if c in have]
            first, last = locator["groups"]
            for group in range(first, last):
                for content in table.read_row_group(group, columns=columns).to_pylist():
                    yield self._sample(file, row, content, options)
                    row += 1
        except (pa.ArrowException, OSError) as e:
            yield BadRow(file, row, "damaged-file", f"{e}; the rows before it were read")

    def _sample(self, file: str, row: int, content: dict[str, Any], options: TextOptions) -> RawSample | BadRow:
        try:
            text = text_field(content, options.field)
        except UnusableRow as e:
            return BadRow(file, row, e.error, e.message)
        licence = optional_text(content, options.licence_field)
        return RawSample(f"{file}#{row}", file, row, segments=(Segment(text),), licence=licence)


def _row_groups(path: Path, file: str, target: int) -> Iterator[dict[str, Any]]:
    """Locators of consecutive row groups that hold about ``target`` rows together; an unreadable file is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.ParquetFile(path).metadata
    except (pa.ArrowException, OSError):
        yield {"file": file, "groups": [0, 1], "row": 1}
        return
    first, rows, row = 0, 0, 1
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= target or group == metadata.num_row_groups - 1:
            yield {"file": file, "groups": [first, group + 1], "row": row}
            first, rows, row = group + 1, 0, row + rows
