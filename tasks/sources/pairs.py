"""Pairs from files: lists of pictures and captions (JSONL, TSV, CSV), or pictures with ``.txt`` files beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from infra.config import Config
from infra.errors import SourceError
from infra.storage import FileInfo
from tasks.sources.base import BadRow, BaseSource, EndOfRange, RawSample, WorkItem
from tasks.sources.files import (
    UnusableRow,
    ahead,
    ends_in,
    folder_slices,
    images_storage,
    inside,
    listing_digest,
    load_image,
    read_plain,
    slice_files,
)
from tasks.sources.lines import line_items, line_key
from tasks.sources.packed import COMPRESSED
from tasks.sources.pair_lists import LISTS, Columns, Pair, columns_of, kind_of, read_pairs
from tasks.sources.root import Root, is_broken_link

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
CAPTIONS = tuple(f".txt{packed}" for packed in ("", *COMPRESSED))


class PairOptions(Config):
    """Options of type ``pairs``."""

    list: str | None = None
    """Which lists of the folder ``path``: a name, or a pattern for several (``*.tsv``). None: where ``path`` is a
    folder, the lists directly in it, or where there are none its pictures with captions beside them."""
    images: str | None = None
    """Folder that the pictures' names start from, relative to the lists' folder, or an address; None: that folder."""
    file: str = "file"
    """Field or column with the picture's name."""
    captions: tuple[str, ...] = ("captions", "caption")
    """Fields or columns with captions, each a text or a list of texts; those that a row has are used, in this order."""
    licence: str | None = "licence"
    """Field or column with the pair's licence, where it has one."""
    url: str | None = "url"
    """Field or column with the address that the picture came from, where it has one."""


@dataclass(frozen=True)
class Chosen:
    """The files of a folder that are wanted, listed anew each time."""

    root: Root
    wanted: Callable[[str], bool]

    def __iter__(self) -> Iterator[FileInfo]:
        return self.root.files(self.wanted)


class PairFiles(BaseSource):
    """Pairs from lists or a folder.

    Consecutive lines of a list that name the same picture are one pair, unless their licence or address differs.
    Lists are plain, ``.gz`` or ``.zst``. TSV is plain: columns between tabs, no quotes. CSV follows RFC 4180 and,
    since a quoted caption may run over several lines, is one work item a file. The digest covers the lists, not the
    pictures: after changing a picture in place, touch its list.
    """

    def digest(self) -> str:
        files = self._lists() or self.root().files(ends_in(*PICTURES, *CAPTIONS), broken_links=True)
        return listing_digest("pairs 3", files)

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index, locator in enumerate(self._locators(target)):
            yield WorkItem(self.config.name, index, locator)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        return self._read_folder(item.locator) if "folder" in item.locator else self._read_list(item.locator)

    @property
    def _options(self) -> PairOptions:
        return self.options(PairOptions)

    # -- which files

    def _lists(self) -> Chosen | None:
        """The lists; None where the source is a folder of pictures."""
        root, name, is_list = self.root(), self._options.list, ends_in(*LISTS)
        if root.file is None and name is None:
            there = root.storage.list()
            kinds = {kind_of(n) for n in there if is_list(n)}
            if not kinds:
                return None
            if len(kinds) > 1 or any(map(ends_in(*PICTURES), there)):
                raise SourceError(
                    f"source {self.config.name}: {root.url()} holds lists of several kinds, or lists beside pictures; "
                    "say which lists are meant in option `list`: a name, or a pattern like *.jsonl"
                )
            return Chosen(root, is_list)
        wanted = is_list
        if root.file is None and name is not None:
            folder, _, last = name.rpartition("/")
            storage = root.storage.sub(folder) if folder else root.storage
            one = not set("*?[") & set(last)
            root = Root(storage, last if one else None)
            wanted = is_list if one else lambda n: is_list(n) and PurePosixPath(n).match(last)
        found = Chosen(root, wanted)
        if next(iter(found), None) is None:
            raise SourceError(
                f"source {self.config.name}: {root.url()} is not a list of pairs, nor a folder with some; expected "
                f"names that end in {', '.join(LISTS)}, with columns {self._options.file!r} and one of "
                f"{self._options.captions}"
            )
        return found

    def _locators(self, target: int) -> Iterator[dict[str, Any]]:
        lists = self._lists()
        if lists is None:
            yield from folder_slices(self.root().files(ends_in(*PICTURES), broken_links=True), target)
            return
        storage, first = lists.root.storage, next(iter(lists))
        names = columns_of(storage, first.name)
        if names is not None and (self._options.file not in names or not set(self._options.captions) & set(names)):
            raise SourceError(
                f"source {self.config.name}: {storage.url(first.name)} has columns {names}; expected "
                f"{self._options.file!r} and one of {self._options.captions}. Name the columns in the options `file` "
                "and `captions`."
            )
        yield from line_items(storage, (f for f in lists if kind_of(f.name) != ".csv"), target)
        yield from ({"file": f.name} for f in lists if kind_of(f.name) == ".csv")

    # -- a folder

    def _read_folder(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow]:
        storage = self.root().storage

        def sample(place: tuple[int, str]) -> RawSample | BadRow:
            row, name = place
            if storage.local and is_broken_link(storage.path(name)):
                return BadRow(name, row, "missing-image", f"{name} is a link that leads to no file")
            try:
                captions = tuple(line.strip() for line in self._beside(name).splitlines() if line.strip())
                return RawSample(name, name, row, captions=captions, images=(load_image(storage, name),))
            except UnusableRow as e:
                return BadRow(name, row, e.error, e.message)

        names = slice_files(storage, locator, ends_in(*PICTURES), broken_links=True)
        yield from ahead(storage, sample, enumerate(names, locator["row"]))

    def _beside(self, name: str) -> str:
        """The captions beside a picture, one a line."""
        storage, stem = self.root().storage, str(PurePosixPath(name).with_suffix(""))
        for suffix in CAPTIONS:
            path = inside(storage, stem + suffix)
            if storage.exists(path):
                return read_plain(storage, path)
        raise UnusableRow("missing-caption", f"no {PurePosixPath(stem).name}{CAPTIONS[0]} beside it")

    # -- a list

    def _read_list(self, locator: dict[str, Any]) -> Iterator[RawSample | BadRow | EndOfRange]:
        lists, options = self._lists(), self._options
        assert lists is not None
        storage = lists.root.storage
        images = images_storage(self.config.name, storage, options.images)
        columns = Columns(options.file, options.captions, options.licence, options.url)
        file = locator["file"]

        def sample(found: Pair | BadRow | EndOfRange) -> RawSample | BadRow | EndOfRange:
            if not isinstance(found, Pair):
                return found
            try:
                image = load_image(images, found.file, found.url)
            except UnusableRow as e:
                return BadRow(file, found.row, e.error, e.message)
            captions, key = tuple(found.captions), line_key(file, found.offset)
            return RawSample(key, file, found.row, captions=captions, images=(image,), licence=found.licence)

        yield from ahead(images, sample, read_pairs(storage, locator, columns))
