"""Rows of lists of pairs (JSONL, TSV, CSV), and which of them make one pair."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from infra.storage import Storage
from tasks.sources.base import BadRow, EndOfRange
from tasks.sources.files import UnusableRow, optional_text, text_field
from tasks.sources.lines import AHEAD, SAMPLE, Line, line_before, parse_json, read_lines
from tasks.sources.packed import COMPRESSED

KINDS = (".jsonl", ".tsv", ".csv")
LISTS = tuple(f"{kind}{packed}" for kind in KINDS for packed in ("", *COMPRESSED))
MAX_FIELD = 1 << 24
"""Characters of a CSV's field; a quote that is never closed would swallow the whole file."""


class Columns(NamedTuple):
    """Which fields or columns hold what."""

    file: str
    captions: tuple[str, ...]
    licence: str | None
    url: str | None


@dataclass(slots=True)
class Row:
    """A line of a list; ``error`` is what is wrong with it, even where it names its picture."""

    row: int
    offset: int
    end: int
    file: str | None = None
    captions: list[str] = field(default_factory=list)
    licence: str = ""
    url: str = ""
    error: BadRow | None = None


@dataclass(slots=True)
class Pair:
    """Consecutive lines that name the same picture, with the same licence and address."""

    row: int
    offset: int
    file: str
    captions: list[str]
    licence: str
    url: str


def kind_of(name: str) -> str:
    """A list's suffix, packed or not."""
    name = name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return f".{name.rpartition('.')[2]}"


def columns_of(storage: Storage, file: str) -> list[str] | None:
    """The names in the first line of a TSV or CSV; None for JSONL."""
    if kind_of(file) == ".jsonl":
        return None
    packed = file.lower().endswith(COMPRESSED)
    locator = {"file": file} if packed else {"file": file, "start": 0, "stop": AHEAD, "size": SAMPLE}
    first = next(read_lines(storage, locator, blank=True), None)
    line = first.data.decode("utf-8-sig", "replace").rstrip("\r\n") if isinstance(first, Line) else ""
    return next(csv.reader([line]), []) if kind_of(file) == ".csv" else line.split("\t")


def read_pairs(storage: Storage, locator: dict[str, Any], columns: Columns) -> Iterator[Pair | BadRow | EndOfRange]:
    """The pairs of a list's locator, and the rows that are none; EndOfRange at the end of a range."""
    file = locator["file"]
    if kind_of(file) == ".csv":
        yield from _grouped(_csv_rows(storage, file, columns), None)
        return
    header = columns_of(storage, file)
    parse = parse_json if header is None else partial(_cells, header)

    def row(line: Line) -> Row:
        found = Row(line.row, line.offset, line.end)
        try:
            _fill(found, parse(line.data), columns)
        except UnusableRow as e:
            found.error = BadRow(file, line.row, e.error, e.message)
        return found

    def is_row(line: Line) -> bool:
        return header is None or line.offset > 0  # the first line of a TSV is its header

    before = line_before(storage, locator)
    lines = read_lines(storage, locator, beyond=True)
    rows = (row(x) if isinstance(x, Line) else x for x in lines if not isinstance(x, Line) or is_row(x))
    yield from _grouped(rows, row(before) if before is not None and is_row(before) else None)


def _grouped(rows: Iterator[Row | BadRow | EndOfRange], before: Row | None) -> Iterator[Pair | BadRow | EndOfRange]:
    """Consecutive lines of the same picture, licence and address, as one pair of the range that the first lies in.

    ``before`` is the row before the first; lines that go on with its pair are passed over, as those behind a range that
    go on with its last pair are taken. A line that names no picture parts what is around it, and so does a blank one.
    EndOfRange comes last, wherever it was.
    """
    pair: Pair | None = None
    end: EndOfRange | None = None
    last, ours = before, False
    for found in rows:
        if isinstance(found, EndOfRange):
            end = found
            if not ours:
                break
            continue
        joins = isinstance(found, Row) and last is not None and _join(last, found)
        if not joins:
            if end is not None:
                break
            if pair is not None:
                yield pair
            pair, ours = None, True
        last = found if isinstance(found, Row) else None
        if not ours:
            continue
        if isinstance(found, BadRow):
            yield found
        elif found.error is not None:
            yield found.error
        elif pair is not None:
            pair.captions += found.captions
        else:
            pair = Pair(found.row, found.offset, found.file or "", found.captions, found.licence, found.url)
    if pair is not None:
        yield pair
    if end is not None:
        yield end


def _join(a: Row, b: Row) -> bool:
    same = (a.file, a.licence, a.url) == (b.file, b.licence, b.url)  # a licence of one row must not cover another
    return a.file is not None and same and a.end == b.offset


def _fill(row: Row, content: dict[str, Any], columns: Columns) -> None:
    row.file = text_field(content, columns.file)
    row.licence, row.url = optional_text(content, columns.licence), optional_text(content, columns.url)
    row.captions = _captions(content, columns.captions)  # last: where they are at fault, the rest still tells the pair


def _captions(content: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """All captions of a row; a row may have none, which ``scan`` counts as an empty pair."""
    found: list[str] = []
    for name in names:
        value = content.get(name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in values):
            raise UnusableRow("bad-field", f"field {name!r} holds something other than texts")
        found += values
    return found


def _cells(header: list[str], data: bytes) -> dict[str, Any]:
    """A TSV's line as fields."""
    try:
        return _fields(header, data.decode().rstrip("\r\n").split("\t"))
    except UnicodeDecodeError as e:
        raise UnusableRow("not-utf-8", str(e)) from e


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise UnusableRow("bad-columns", f"{len(cells)} columns; the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


# -- CSV


class _BrokenLine(Exception):
    """A line that cannot be given to ``csv.reader``."""

    def __init__(self, row: BadRow) -> None:
        super().__init__(row)
        self.row = row


class _Feed:
    """A file's lines as texts for ``csv.reader``; a broken one is raised, and the next call goes on behind it."""

    def __init__(self, lines: Iterator[Line | BadRow | EndOfRange]) -> None:
        self._lines = lines
        self.record: list[Line] = []
        """The first and the last line of the present record."""

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        found = next(self._lines)
        if isinstance(found, BadRow):
            raise _BrokenLine(found)
        assert isinstance(found, Line)
        self.record[1:] = [found]
        # What is not UTF-8 costs its row; the reader must get through it to find where the row ends.
        return found.data.decode("utf-8" if found.offset else "utf-8-sig", "surrogateescape")


def _csv_rows(storage: Storage, file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Rows of a whole CSV file, each by the line that it begins on."""
    csv.field_size_limit(MAX_FIELD)
    feed = _Feed(read_lines(storage, {"file": file}, blank=True))
    reader, header = csv.reader(feed), list[str]()
    while True:
        feed.record = []
        try:
            cells = next(reader, None)
        except _BrokenLine as e:
            yield e.row
            continue
        except csv.Error as e:
            yield BadRow(file, feed.record[0].row, "bad-csv", str(e))
            continue
        if cells is None:
            return
        if not header:
            header = cells
        elif cells:  # a blank line has none
            first, last = feed.record[0], feed.record[-1]
            row = Row(first.row, first.offset, last.end)
            try:
                "".join(cells).encode()
                _fill(row, _fields(header, cells), columns)
            except UnicodeEncodeError:
                row.error = BadRow(file, first.row, "not-utf-8", "a caption or a name is not UTF-8")
            except UnusableRow as e:
                row.error = BadRow(file, first.row, e.error, e.message)
            yield row
