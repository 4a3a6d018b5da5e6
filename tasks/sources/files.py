"""What the readers of files share: listing, names that stay in their folder, reading pictures, texts and archives.

Everything a file can contain is treated as hostile: a name never leads out of its folder, what is read into memory has
a bound, and a damaged row, file or archive becomes a :class:`~tasks.sources.base.BadRow`.
"""

from __future__ import annotations

import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import AccessError, ResourceError, SourceError, StoreError
from infra.storage import FileInfo, Storage
from tasks.sources.base import RawImage, digest_of
from tasks.sources.packed import DAMAGED, opened, storage_errors
from tasks.sources.root import is_broken_link

MAX_FILE_BYTES = 1 << 29
"""A picture or a plain text that is larger is not read into memory."""
MAX_NAME_BYTES = 255
"""Longest part of a name that disks have."""
MAX_KEY_BYTES = 1024
"""Longest name that S3 has."""
AT_ONCE = 16
"""Samples whose pictures are fetched at the same time."""
Given = TypeVar("Given")
Made = TypeVar("Made")


class UnusableRow(Exception):
    """Why a row cannot become a sample; readers turn it into a BadRow."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.error, self.message = error, message


# -- listing


def listing_digest(kind: str, files: Iterable[FileInfo]) -> str:
    """Identity of files by name, size and stamp, without reading them. ``kind`` names the format and its version."""
    return digest_of(kind, *(f"{f.name} {f.size} {f.stamp}" for f in files))


def ends_in(*suffixes: str) -> Callable[[str], bool]:
    """Whether a name ends in one of these, in small or capital letters."""
    return lambda name: name.lower().endswith(suffixes)


def images_storage(source: str, base: Storage, name: str | None) -> Storage:
    """Where pictures' names start from: an option, relative to the list's folder or an address; SourceError if absent.

    On S3 a folder exists only by what is in it; one that is not there shows as pictures that are missing.
    """
    if name is None:
        return base
    if "://" in name:
        return Storage(name)
    if not base.local:
        kind, _, rest = base.root.partition("://")
        return Storage(f"{kind}://{posixpath.normpath(posixpath.join(rest, name))}")
    folder = base.path() / name
    if not folder.is_dir():
        raise SourceError(f"source {source}: {folder} is not a folder; correct option `images`")
    return Storage(folder)


# -- slices of folders


def folder_slices(files: Iterable[FileInfo], target: int) -> Iterator[dict[str, Any]]:
    """Locators of at most ``target`` files of one folder: its first and last name, not all of them.

    ``files`` are in order of their names, so that a folder is done when a name outside it comes.
    """
    open_: list[dict[str, Any]] = []  # a slice for each folder that may go on: those around the present one
    for file in files:
        folder, _, name = file.name.rpartition("/")
        while open_ and not f"{folder}/".startswith(f"{open_[-1]['folder']}/") and open_[-1]["folder"]:
            yield from _closed(open_.pop())
        if not open_ or open_[-1]["folder"] != folder:
            open_.append({"folder": folder, "row": 1, "count": 0})
        now = open_[-1]
        now |= {"first": now.get("first", name), "last": name, "count": now["count"] + 1}
        if now["count"] == target:
            yield from _closed(now)
            open_[-1] = {"folder": folder, "row": now["row"] + target, "count": 0}
    while open_:
        yield from _closed(open_.pop())


def _closed(slice_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if slice_["count"]:
        yield {k: slice_[k] for k in ("folder", "first", "last", "row")}


def slice_files(
    storage: Storage, locator: dict[str, Any], wanted: Callable[[str], bool], *, broken_links: bool = False
) -> list[str]:
    """The names, relative to the storage, that a folder slice stands for, sorted; ``broken_links`` as for the listing.

    The folder's names are gone through for every slice of it. On a disk that is all, and only the slice's own files are
    looked at; elsewhere all of them are listed.
    """
    folder, first, last = locator["folder"], locator["first"], locator["last"]

    def ours(name: str) -> bool:
        return first <= name <= last and not name.startswith(".") and wanted(f"{folder}/{name}" if folder else name)

    if storage.local:
        with storage_errors(storage, folder), os.scandir(storage.path(folder)) as entries:
            names = sorted(e.name for e in entries if ours(e.name) and _is_file(e, broken_links))
    else:
        names = [n for n in storage.list(folder) if ours(n)]
    return [f"{folder}/{n}" if folder else n for n in names]


def _is_file(entry: os.DirEntry[str], broken_links: bool) -> bool:
    """Whether it is a file or a link to one; the listing says so of most, without looking at the file."""
    try:
        if entry.is_file():
            return True
    except OSError:  # a loop of links
        pass
    return broken_links and entry.is_symlink() and is_broken_link(Path(entry.path))


# -- reading


def ahead(storage: Storage, work: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """``map(work, given)``; where the storage is far away, several at once, in order, a few of them held."""
    if storage.local:
        yield from map(work, given)
        return
    waiting, todo = deque[Future[Made]](), iter(given)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            waiting.extend(pool.submit(work, thing) for thing in islice(todo, 2 * AT_ONCE))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, thing) for thing in islice(todo, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def read_plain(storage: Storage, name: str) -> str:
    """A whole text file, compressed or not; UnusableRow if it is damaged, too large, no UTF-8 or unreadable."""
    try:
        with opened(storage, name) as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except DAMAGED as e:
        raise UnusableRow("damaged-file", str(e)) from e
    except AccessError:
        raise
    except (StoreError, ResourceError) as e:
        raise UnusableRow("read-error", str(e)) from e
    if len(data) > MAX_FILE_BYTES:
        raise UnusableRow("too-large", f"more than {MAX_FILE_BYTES:,} bytes of text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UnusableRow("not-utf-8", str(e)) from e


def load_image(storage: Storage, name: str, url: str = "") -> RawImage:
    """A picture's bytes; without them and with the fault's class where there is no such file or it cannot be read.

    An address on the web is no file's name. UnusableRow if the name is none, leads out of the folder, or names a file
    that is too large; AccessError where no picture of the storage could be read.
    """
    if name.lower().startswith(("http://", "https://")):
        return without_file(name, url or name)
    path = inside(storage, name)
    if not path:
        return without_file(name, url)
    try:
        found = storage.info(path)
        if found is not None and found.size > MAX_FILE_BYTES:
            raise UnusableRow("too-large", f"{name}: {found.size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        data = None if found is None else storage.get_or_none(path)
    except AccessError:
        raise
    except (StoreError, ResourceError, OSError):
        return RawImage(name, None, url, "read-error")
    return RawImage(name, data, url)


def without_file(name: str, url: str = "") -> RawImage:
    """A picture of which the source has neither bytes nor a file's name, at most an address."""
    return RawImage(name, None, url, "not-downloaded" if url else "no-picture")


def inside(storage: Storage, name: str) -> str:
    """A name within a storage in its shortest form, links on disks followed; empty for the storage's own folder.

    UnusableRow ``path-escape`` if it leads elsewhere, ``bad-name`` if no file can have it.
    """
    shown = repr(name[:200])
    try:
        encoded = os.fsencode(name) if storage.local else name.encode()
    except UnicodeEncodeError as e:
        raise UnusableRow("bad-name", f"{shown} is not a file name ({e.reason})") from e
    too_long = max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES if storage.local else len(encoded) > MAX_KEY_BYTES
    if too_long or b"\0" in encoded:
        raise UnusableRow("bad-name", f"{shown} is not a file name (it is too long, or has a NUL in it)")
    if not storage.local:
        path = posixpath.normpath(name) if name else "."
        if path.startswith(("/", "../")) or path == "..":
            raise UnusableRow("path-escape", f"{shown} leads out of its folder")
        return "" if path == "." else path
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." not in parts and not name.startswith("/") and not _has_link(storage.path(), parts):
        return "/".join(parts)
    try:
        root = storage.path().resolve()
        path_ = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as e:  # a loop of links
        raise UnusableRow("bad-name", f"{shown} is not a file name ({e})") from e
    if not path_.is_relative_to(root):
        raise UnusableRow("path-escape", f"{shown} leads out of its folder")
    found = path_.relative_to(root).as_posix()
    return "" if found == "." else found


def _has_link(root: Path, parts: list[str]) -> bool:
    """Whether one of the steps from a folder to a file in it is a link; following all of them costs much more."""
    path = str(root)
    return any(os.path.islink(path := f"{path}/{part}") for part in parts)  # noqa: PTH114 - half as fast as a Path


# -- fields


def field(row: dict[str, Any], name: str) -> Any:
    """A field by dotted path (``instances.0.input``); UnusableRow ``missing-field`` if it is not there or null."""
    value: Any = row
    parts = name.split(".")
    for n, part in enumerate(parts, 1):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UnusableRow("missing-field", f"no field {name!r}; there are {', '.join(sorted(row))[:200]}")
        if value is None:
            raise UnusableRow("missing-field", f"field {'.'.join(parts[:n])!r} is null")
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
