"""Pairs from WebDataset archives: tars in which the files of one sample stand together and share a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

from infra.config import Config
from tasks.sources.archives import DamagedArchive, Member, members
from tasks.sources.base import BadRow, RawImage, RawSample, WorkItem
from tasks.sources.files import MAX_FILE_BYTES, UnusableRow, optional_text
from tasks.sources.files import field as field_at
from tasks.sources.lines import parse_json
from tasks.sources.listed import ListedSource, captions_of
from tasks.sources.packed import COMPRESSED, opened
from tasks.sources.pairs import PICTURES


class WebdatasetOptions(Config):
    """Options of type ``webdataset``."""

    images: tuple[str, ...] = tuple(s.removeprefix(".") for s in PICTURES)
    """Extensions of pictures; where a sample has several, the first of them is taken."""
    captions: tuple[str, ...] = ("txt", "json.caption", "json.captions")
    """Where captions are: an extension (the file is one caption), or ``json.`` and a field of the sample's ``.json``
    that is a text or a list of texts. Those that a sample has are used, in this order, equal ones once."""
    licence: str | None = "licence"
    """Field of the ``.json`` with the pair's licence, where it has one."""
    url: str | None = "url"
    """Field of the ``.json`` with the picture's address, where it has one."""


@dataclass(slots=True)
class Group:
    """The members of one sample, by extension."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    """Also of members that were not read."""
    size: int = 0
    fault: UnusableRow | None = None
    """The first thing that makes the sample unusable."""


class WebdatasetFiles(ListedSource):
    """Pairs of the tars below ``path``, plain, gzipped or zstd; one tar is one work item.

    A sample's files stand together, named alike up to the first dot of the name without folders; a key that comes back
    later in the tar is a ``duplicate-member``. Rows are samples of their tar, counted from 1; a sample's key is its
    tar's name, ``/`` and the key in the tar.
    """

    format = "webdataset 1"
    suffixes = (".tar", *(f".tar{packed}" for packed in COMPRESSED))

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        return ({"file": file.name} for file in self.files())

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        file = item.locator["file"]
        with opened(self.root().storage, file) as stream:
            for _, sample in read_tar(stream, file, self._options):
                yield sample

    @cached_property
    def _options(self) -> WebdatasetOptions:
        return self.options(WebdatasetOptions)


def read_tar(stream: IO[bytes], file: str, options: WebdatasetOptions) -> Iterator[tuple[str, RawSample | BadRow]]:
    """Key (within the tar) and sample of each group of members; damage ends it with one BadRow, whose key is empty."""
    row = 0
    group: Group | None = None
    seen: set[str] = set()
    wanted = {*options.images, *(c.split(".")[0] for c in options.captions)}
    if options.licence or options.url:
        wanted.add("json")
    try:
        for member in members(stream, lambda name: _split(name)[1] in wanted):
            key, extension = _split(member.name)
            if key.endswith("/") or not key:
                continue  # hidden, as some archivers leave them
            if group is None or group.key != key:
                if group is not None:
                    yield group.key, sample_of(group, file, row, options)
                row += 1
                group = Group(key)
                if key in seen:
                    group.fault = UnusableRow("duplicate-member", f"{key[:200]!r} was in the archive before")
                seen.add(key)
            _add(group, extension, member)
    except DamagedArchive as e:
        if group is not None and (e.name is None or _split(e.name)[0] != group.key):
            last = sample_of(group, file, row, options)
            if isinstance(last, RawSample) or e.name is not None:
                yield group.key, last
                row += 1
        elif group is None:
            row = 1
        yield "", BadRow(file, row, "damaged-file", f"{e}; the samples before it were read")
        return
    if group is not None:
        yield group.key, sample_of(group, file, row, options)


def _split(name: str) -> tuple[str, str]:
    """``train/0001.seg.png`` as ``train/0001`` and ``seg.png``."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _add(group: Group, extension: str, member: Member) -> None:
    if group.fault is not None:
        return
    if member.fault:
        group.fault = UnusableRow(member.fault, member.message)
    elif extension in group.names:
        group.fault = UnusableRow("duplicate-member", f"two members {member.name[:200]!r}")
    elif member.data is not None:
        group.size += len(member.data)
        group.files[extension] = member.data
        if group.size > MAX_FILE_BYTES:
            group.fault = UnusableRow("too-large", f"its members have more than {MAX_FILE_BYTES:,} bytes together")
    group.names.add(extension)
    if group.fault is not None:
        group.files.clear()


def sample_of(
    group: Group, file: str, row: int, options: WebdatasetOptions, key: str | None = None
) -> RawSample | BadRow:
    """What becomes of a group; ``key`` is the sample's, if not the file and the group's key."""
    try:
        if group.fault is not None:
            raise group.fault
        picture = next((e for e in options.images if e in group.files), None)
        if picture is None:
            raise UnusableRow("no-picture", f"no picture among {', '.join(sorted(group.names))[:200]}")
        about = parse_json(group.files["json"]) if "json" in group.files else {}
        captions = captions_of(_texts(group, about, options.captions), options.captions)
        image = RawImage(f"{group.key}.{picture}", group.files[picture], optional_text(about, options.url))
    except UnusableRow as e:
        return BadRow(file, row, e.error, f"{group.key[:200]}: {e.message}")
    licence = optional_text(about, options.licence)
    return RawSample(key or f"{file}/{group.key}", file, row, captions=captions, images=(image,), licence=licence)


def _texts(group: Group, about: dict[str, Any], places: tuple[str, ...]) -> dict[str, Any]:
    """What is at the places where captions may be."""
    found = {p: _text(group.files[p]) for p in places if p in group.files}
    for place in places:
        if place.startswith("json."):
            with suppress(UnusableRow):
                found[place] = field_at(about, place.removeprefix("json."))
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as e:
        raise UnusableRow("not-utf-8", str(e)) from e
