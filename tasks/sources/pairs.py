"""Pairs from files: a list of pictures and captions (JSONL, TSV, CSV), or pictures with ``.txt`` files beside them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra.config import Config
from infra.errors import SourceError
from tasks.sources.base import BadRow, BaseSource, RawSample, WorkItem
from tasks.sources.files import (
    LineRange,
    UnusableRow,
    files_digest,
    folder_slices,
    images_folder,
    inside,
    json_rows,
    line_ranges,
    list_files,
    load_image,
    optional_text,
    read_lines,
    read_plain,
    slice_files,
    text_field,
)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
LISTS = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".csv", ".csv.gz")
_MAX_FIELD = 1 << 24


class PairOptions(Config):
    """Options of type ``pairs``."""

    list: str | None = None
    """The list of pairs in the folder ``path``; not needed where ``path`` is the list itself, or there is none."""
    images: str | None = None
    """Folder that the pictures' names start from, relative to the list's folder; None: that folder."""
    file: str = "file"
    """Field or column with the picture's name."""
    captions: tuple[str, ...] = ("captions", "caption")
    """Fields or columns with captions, each a text or a list of texts; those that a row has are used, in this order."""
    licence: str | None = "licence"
    """Field or column with the pair's licence, where it has one."""


@dataclass(slots=True)
class _Pair:
    """Consecutive rows that name the same picture."""

    row: int
    file: str
    captions: list[str] = field(default_factory=list)
    licence: str = ""


class PairFiles(BaseSource):
    """Pairs from a list or a folder. Consecutive rows of a list that name the same picture are one pair.

    TSV is plain: columns between tabs, no quotes. CSV follows RFC 4180 and, since a quoted caption may run over several
    lines, is one work item. The digest covers the list, not the pictures: after changing a picture in place, touch
    the list.
    """

    def digest(self) -> str:
        found = self._list()
        if found is not None:
            return files_digest("pairs 1", found.parent, [found.name])
        root = self.root()
        return files_digest("pairs 1", root, list_files(root, partial(_ends_in, (*PICTURES, ".txt"))))

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index, locator in enumerate(self._locators(target)):
            yield WorkItem(self.config.name, index, locator)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        return self._read_folder(item.locator) if "folder" in item.locator else self._read_list(item.locator)

    @property
    def _options(self) -> PairOptions:
        return self.options(PairOptions)

    def _list(self) -> Path | None:
        """The list file; None where the source is a folder of pictures."""
        root, name = self.root(), self._options.list
        path = root if root.is_file() else root / name if name is not None else None
        if path is None:
            return None
        if not path.is_file() or not path.name.endswith(LISTS):
            raise SourceError(
                f"source {self.config.name}: {path} is not a list of pairs; expected a file that ends in "
                f"{', '.join(LISTS)}, with columns {self._options.file!r} and one of {self._options.captions}"
            )
        return path

    def _locators(self, target: int) -> Iterator[dict[str, Any]]:
        path = self._list()
        if path is None:
            yield from folder_slices(self.root(), partial(_ends_in, PICTURES), target)
            return
        header = self._header(path)
        if ".csv" in path.suffixes:
            yield LineRange(0, None, 1).locator(path.name)
        else:
            ranges = line_ranges(path, target, partial(self._same_picture, header), 2 if header else 1)
            for lines in ranges:
                yield lines.locator(path.name)

    # -- a folder

    def _read_folder(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        root = self.root()
        for row, name in enumerate(slice_files(root, locator, partial(_ends_in, PICTURES)), locator["row"]):
            try:
                text = inside(root, Path(name).with_suffix(".txt").as_posix())
                if not text.is_file():
                    raise UnusableRow("missing-caption", f"no {text.name} beside it")
                captions = tuple(line.strip() for line in read_plain(text).splitlines() if line.strip())
                yield RawSample(name, name, row, captions=captions, images=(load_image(root, name),))
            except UnusableRow as e:
                yield BadRow(name, row, e.error, e.message)

    # -- a list

    def _read_list(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        path = self._list()
        assert path is not None
        images = images_folder(self.config.name, path.parent, self._options.images)
        pair: _Pair | None = None
        for found in self._rows(path, LineRange.of(locator)):
            if isinstance(found, BadRow):
                yield BadRow(path.name, found.row, found.error, found.message)
                continue
            row, content = found
            try:
                file = text_field(content, self._options.file)
                captions = self._captions(content)
            except UnusableRow as e:
                yield BadRow(path.name, row, e.error, e.message)
                continue
            if pair is None or pair.file != file:
                if pair is not None:
                    yield _sample(pair, path.name, images)
                pair = _Pair(row, file, [], optional_text(content, self._options.licence))
            pair.captions += captions
        if pair is not None:
            yield _sample(pair, path.name, images)

    def _captions(self, content: dict[str, Any]) -> list[str]:
        """All captions of a row; a row may have none, which ``scan`` counts as an empty pair."""
        found: list[str] = []
        for name in self._options.captions:
            value = content.get(name)
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(v, str) for v in values):
                raise UnusableRow("bad-field", f"field {name!r} holds something other than texts")
            found += values
        return found

    def _rows(self, path: Path, lines: LineRange) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
        if ".jsonl" in path.suffixes:
            return json_rows(path, lines)
        return _csv_rows(path) if ".csv" in path.suffixes else self._tsv_rows(path, lines)

    def _tsv_rows(self, path: Path, lines: LineRange) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
        header = self._header(path)
        for found in read_lines(path, lines):
            if isinstance(found, BadRow):
                yield found
                continue
            row, line = found
            try:
                cells = line.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as e:
                yield BadRow(path.name, row, "not-utf-8", str(e))
                continue
            if len(cells) == len(header):
                yield row, dict(zip(header, cells, strict=True))
            else:
                yield BadRow(path.name, row, "bad-columns", f"{len(cells)} columns; the header has {len(header)}")

    def _header(self, path: Path) -> list[str]:
        """The names of a TSV's or CSV's columns; none for JSONL. SourceError if what is needed is not among them."""
        if ".jsonl" in path.suffixes:
            return []
        first = next(read_lines(path, LineRange(0, None, 1)), (1, b""))
        line = "" if isinstance(first, BadRow) else first[1].decode("utf-8-sig", "replace").rstrip("\r\n")
        names = next(csv.reader([line]), []) if ".csv" in path.suffixes else line.split("\t")
        if self._options.file not in names or not set(self._options.captions) & set(names):
            raise SourceError(
                f"source {self.config.name}: {path} has columns {names}; expected {self._options.file!r} and one of "
                f"{self._options.captions}. Name the columns in the options `file` and `captions`."
            )
        return names

    def _same_picture(self, header: list[str], a: bytes, b: bytes) -> bool:
        """Two lines name the same picture, so that they must not be cut apart."""
        name = self._options.file
        if header:
            column = header.index(name)
            cells = [line.rstrip(b"\r\n").split(b"\t") for line in (a, b)]
            return len(cells[0]) == len(cells[1]) == len(header) and cells[0][column] == cells[1][column]
        try:
            first, second = json.loads(a).get(name), json.loads(b).get(name)
        except (ValueError, AttributeError, RecursionError):
            return False
        return isinstance(first, str) and first == second


def _ends_in(suffixes: tuple[str, ...], name: str) -> bool:
    return name.lower().endswith(suffixes)


def _sample(pair: _Pair, list_name: str, images: Path) -> RawSample | BadRow:
    try:
        image = load_image(images, pair.file)
    except UnusableRow as e:
        return BadRow(list_name, pair.row, e.error, e.message)
    key = f"{list_name}#{pair.row}"
    return RawSample(key, list_name, pair.row, captions=tuple(pair.captions), images=(image,), licence=pair.licence)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
    """Rows of a whole CSV file, by the line that each ends on; other bytes than UTF-8 come through as surrogates."""
    csv.field_size_limit(_MAX_FIELD)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as f:
        reader = csv.DictReader(f)
        while True:
            try:
                content = next(reader, None)
            except csv.Error as e:
                yield BadRow(path.name, reader.line_num, "bad-csv", str(e))
                continue
            except (OSError, EOFError, zlib.error) as e:
                yield BadRow(path.name, reader.line_num + 1, "damaged-file", f"{e}; the rows before it were read")
                return
            if content is None:
                return
            if None in content or None in content.values():
                yield BadRow(path.name, reader.line_num, "bad-columns", "not as many columns as the header has")
            else:
                yield reader.line_num, dict(content)
