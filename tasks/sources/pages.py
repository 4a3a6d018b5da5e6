"""What sources of pages share (HTML, Markdown): a file is a document, and names the pictures that it shows."""

from __future__ import annotations

import base64
import binascii
import posixpath
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

from infra.config import Config
from infra.errors import AccessError, ResourceError, StoreError
from infra.storage import Storage
from tasks.sources.base import BadRow, RawImage, RawSample, Segment, WorkItem
from tasks.sources.files import UnusableRow, ahead, ends_in, folder_slices, load_image, slice_files, without_file
from tasks.sources.listed import ListedSource


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture where a page shows it."""

    address: str
    """As the page names it."""
    base: str = ""
    """The address that relative ones start from, where the page names one."""


class PageOptions(Config):
    """Options that all sources of pages have."""

    site: str = ""
    """Folder, relative to ``path``, at which addresses that begin with ``/`` start."""


class PageFiles(ListedSource):
    """Pages below ``path``, a file or a folder; a work item is some files of one folder, a row is a file of its folder.

    The digest covers the pages, not their pictures: after changing a picture in place, touch the page.
    """

    max_bytes: ClassVar[int] = 1 << 26
    """A larger page is not parsed."""

    @abstractmethod
    def page_options(self) -> PageOptions:
        """The source's options, checked."""

    @abstractmethod
    def pieces(self, data: bytes) -> Iterable[str | Shown]:
        """The page's texts and pictures in reading order; UnusableRow where it cannot be read."""

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        return folder_slices(self.files(), target)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        storage, site = self.root().storage, self.page_options().site
        names = enumerate(slice_files(storage, item.locator, ends_in(*self.suffixes)), item.locator["row"])

        def document(place: tuple[int, str]) -> RawSample | BadRow:
            row, name = place
            try:
                pieces = self.pieces(_page(storage, name, self.max_bytes))
                segments, images = placed(p if isinstance(p, str) else picture(storage, name, p, site) for p in pieces)
            except UnusableRow as e:
                return BadRow(name, row, e.error, e.message)
            return RawSample(name, name, row, segments=segments, images=images)

        yield from ahead(storage, document, names)


def placed(pieces: Iterable[str | RawImage]) -> tuple[tuple[Segment, ...], tuple[RawImage, ...]]:
    """Texts and pictures in order as a sample's segments and images; neighbouring texts are one segment."""
    segments: list[Segment] = []
    images: list[RawImage] = []
    texts: list[str] = []
    for piece in [*pieces, None]:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if text := "".join(texts):
            segments.append(Segment(text=text))
        texts.clear()
        if piece is not None:
            segments.append(Segment(image=len(images)))
            images.append(piece)
    return tuple(segments), tuple(images)


def picture(storage: Storage, page: str, shown: Shown, site: str = "") -> RawImage:
    """A page's picture: embedded in it, beside it, or on the web and so not to be had, with its ``url``.

    A name that leads out of the source's folder costs the picture alone: pages are often taken from larger sites.
    """
    try:
        address = urljoin(shown.base, shown.address.strip())
        if address[:5].lower() == "data:":
            return embedded(address)
        parts = urlsplit(address)
    except ValueError:
        return RawImage(shown.address, None, error="bad-name")
    if parts.netloc:
        return without_file(shown.address, address if parts.scheme else f"https:{address}")
    if parts.scheme:
        return without_file(shown.address, address)
    if not parts.path:
        return without_file(shown.address)
    path = unquote(parts.path)
    name = posixpath.join(site, path.lstrip("/")) if path[:1] == "/" else posixpath.join(posixpath.dirname(page), path)
    try:
        return load_image(storage, name)
    except UnusableRow as e:
        return RawImage(name, None, error=e.error)


def embedded(uri: str) -> RawImage:
    """The picture of a ``data:`` address (RFC 2397)."""
    head, _, body = uri.partition(",")
    data: bytes | None = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            data = base64.b64decode(b"".join((data or b"").split()) + b"==", validate=False)
        except binascii.Error:
            data = None
    return RawImage(head, data or None, error="bad-field")


def _page(storage: Storage, name: str, max_bytes: int) -> bytes:
    try:
        found = storage.info(name)
        if found is not None and found.size > max_bytes:
            raise UnusableRow("too-large", f"{found.size:,} bytes; at most {max_bytes:,} are parsed")
        data = storage.get_or_none(name)
    except AccessError:
        raise
    except (StoreError, ResourceError, OSError) as e:
        raise UnusableRow("read-error", str(e)) from e
    if data is None:
        raise UnusableRow("read-error", "it was listed and is not there any more")
    return data
