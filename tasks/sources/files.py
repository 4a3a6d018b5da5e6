"""What the readers of files share: listing, cutting into work items, reading lines and pictures safely.

Everything a file can contain is treated as hostile: a name never leads out of its folder, a damaged line or archive
becomes a :class:`~tasks.sources.base.BadRow`. Rows are line numbers counted from 1, as editors and ``sed -n 17p`` do.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import SourceError
from tasks.sources.base import BadRow, RawImage, digest_of

BLOCK = 1 << 20
MAX_FILE_BYTES = 1 << 29
"""A picture or a plain text that is larger is not read into memory."""


class UnusableRow(Exception):
    """Why a row cannot become a sample; readers turn it into a BadRow."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.error, self.message = error, message


@dataclass(frozen=True, slots=True)
class LineRange:
    """Lines of a file: bytes ``start`` to ``stop``, the first of them being line ``row``. ``stop`` None: to the end."""

    start: int
    stop: int | None
    row: int

    def locator(self, file: str) -> dict[str, Any]:
        return {"file": file, "start": self.start, "stop": self.stop, "row": self.row}

    @classmethod
    def of(cls, locator: dict[str, Any]) -> LineRange:
        return cls(locator["start"], locator["stop"], locator["row"])


# -- listing


def list_files(root: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Names below ``root`` (or its own, if a file) that are wanted, sorted; not hidden ones, nor in linked folders."""
    if root.is_file():
        return [root.name]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        base = Path(folder).relative_to(root)
        paths = ((base / n).as_posix() for n in names if not n.startswith("."))
        found += [p for p in paths if wanted(p) and (root / p).is_file()]
    return sorted(found)


def files_digest(kind: str, root: Path, names: Sequence[str]) -> str:
    """Identity of files by name, size and time of change, without reading them."""
    stats = ((name, (root / name).stat()) for name in names)
    return digest_of(kind, *(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats))


def folder_slices(root: Path, wanted: Callable[[str], bool], target: int) -> Iterator[dict[str, Any]]:
    """Locators of at most ``target`` wanted files of one folder: its first and last name, not all of them."""
    by_folder: dict[str, list[str]] = {}
    for name in list_files(root, wanted):
        folder, _, last = name.rpartition("/")
        by_folder.setdefault(folder, []).append(last)
    for folder, names in sorted(by_folder.items()):
        for start in range(0, len(names), target):
            some = names[start : start + target]
            yield {"folder": folder, "first": some[0], "last": some[-1], "row": start + 1}


def slice_files(root: Path, locator: dict[str, Any], wanted: Callable[[str], bool]) -> list[str]:
    """The names, relative to ``root``, that a folder slice stands for, sorted."""
    folder = locator["folder"]
    names = (f"{folder}/{e.name}" if folder else e.name for e in os.scandir(root / folder) if e.is_file())
    first, last = locator["first"], locator["last"]
    return sorted(n for n in names if first <= n.rpartition("/")[2] <= last and wanted(n))


# -- lines


def line_ranges(
    path: Path, target: int, belong: Callable[[bytes, bytes], bool] | None = None, first_row: int = 1
) -> Iterator[LineRange]:
    """Cuts a file into ranges of ``target`` lines; a compressed file is one range.

    ``belong(a, b)`` says that line b must stay with the line a before it. Lines before ``first_row`` are passed over.
    The file is read once to count its lines, so that every row has its true number.
    """
    if path.suffix == ".gz":
        yield LineRange(0, None, first_row)
        return
    with open(path, "rb") as f:
        for _ in range(first_row - 1):
            f.readline()
        start, row = f.tell(), first_row
        while True:
            count, last = _skip_lines(f, target)
            while last and belong is not None:  # move the cut to where the next line no longer belongs to the last
                position = f.tell()
                line = f.readline()
                if not line or not belong(last, line):
                    f.seek(position)
                    break
                count, last = count + 1, line
            stop = f.tell()
            if stop == start:
                return
            yield LineRange(start, stop, row)
            start, row = stop, row + count


def _skip_lines(f: Any, count: int) -> tuple[int, bytes]:
    """Moves past ``count`` lines, or to the end; how many they were, and the last one."""
    number, last = 0, b""
    for number, last in enumerate(f, 1):  # noqa: B007
        if number == count:
            break
    return number, last


def read_lines(path: Path, lines: LineRange) -> Iterator[tuple[int, bytes] | BadRow]:
    """Row number and bytes of each line that is not blank. A damaged archive ends in one BadRow."""
    row = lines.row - 1
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as f:
                for number, line in enumerate(f, 1):
                    if number >= lines.row:
                        row = number
                        if line.strip():
                            yield row, line
            return
        with open(path, "rb") as plain:
            plain.seek(lines.start)
            position = lines.start
            while lines.stop is None or position < lines.stop:
                line = plain.readline()
                if not line:
                    return
                row, position = row + 1, position + len(line)
                if line.strip():
                    yield row, line
    except (OSError, EOFError, zlib.error) as e:
        yield BadRow(path.name, row + 1, "damaged-file", f"{e}; the rows before it were read")


def json_rows(path: Path, lines: LineRange) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
    """Row number and content of each JSON object."""
    for line in read_lines(path, lines):
        if isinstance(line, BadRow):
            yield line
            continue
        row, data = line
        try:
            content = json.loads(data)
        except UnicodeDecodeError as e:
            yield BadRow(path.name, row, "not-utf-8", str(e))
        except (ValueError, RecursionError) as e:
            yield BadRow(path.name, row, "bad-json", str(e))
        else:
            if isinstance(content, dict):
                yield row, content
            else:
                yield BadRow(path.name, row, "bad-json", f"expected an object, got {type(content).__name__}")


def read_plain(path: Path) -> str:
    """A whole text file, compressed or not; UnusableRow if it is damaged, too large or not UTF-8."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise UnusableRow("damaged-file", str(e)) from e
    if len(data) > MAX_FILE_BYTES:
        raise UnusableRow("too-large", f"more than {MAX_FILE_BYTES:,} bytes of text")
    try:
        return bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UnusableRow("not-utf-8", str(e)) from e


# -- fields


def field(row: dict[str, Any], name: str) -> Any:
    """A field by dotted path (``instances.0.input``); UnusableRow ``missing-field`` if it is not there or null."""
    value: Any = row
    for part in name.split("."):
        if isinstance(value, dict) and value.get(part) is not None:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UnusableRow("missing-field", f"no field {name!r}; there are {', '.join(sorted(row))[:200]}")
    return value


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that must be a text."""
    value = field(row, name)
    if not isinstance(value, str):
        raise UnusableRow("bad-field", f"field {name!r} is {type(value).__name__}; expected a text")
    return value


def optional_text(row: dict[str, Any], name: str | None) -> str:
    """A field's text, or nothing."""
    value = row.get(name) if name else None
    return value if isinstance(value, str) else ""


# -- pictures


def load_image(folder: Path, name: str) -> RawImage:
    """A picture's bytes; None in them where there is no such file. UnusableRow if the name leads out of the folder."""
    path = inside(folder, name)
    try:
        if not path.is_file():
            return RawImage(name, None)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnusableRow("too-large", f"{name}: more than {MAX_FILE_BYTES:,} bytes")
        return RawImage(name, path.read_bytes())
    except OSError:
        return RawImage(name, None)


def inside(folder: Path, name: str) -> Path:
    """The path of a name within a folder, links followed; UnusableRow ``path-escape`` if it leads elsewhere."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as e:  # too long, a NUL in it, a loop of links
        raise UnusableRow("bad-name", f"{name[:200]!r} is not a file name ({e})") from e
    if not path.is_relative_to(root):
        raise UnusableRow("path-escape", f"{name[:200]!r} leads out of its folder")
    return path


def images_folder(source: str, base: Path, name: str | None) -> Path:
    """The folder that pictures' names start from: an option relative to the list's folder; SourceError if absent."""
    folder = base if name is None else base / name
    if not folder.is_dir():
        raise SourceError(f"source {source}: {folder} is not a folder; correct option `images`")
    return folder
