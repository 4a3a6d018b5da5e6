"""Interleaved documents from Parquet in the form of OBELICS: parallel lists of texts and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from infra.config import Config
from infra.storage import Storage
from tasks.sources.base import RawImage, RawSample
from tasks.sources.files import UnusableRow, field, images_storage, optional_text
from tasks.sources.listed import ParquetSource, image_of
from tasks.sources.pages import embedded, placed

BETWEEN = "\n\n"
"""Between two places of the lists."""
_ALT = ("alt_text", "alt")
_SOURCES = ("src", "unformatted_src")


class ObelicsOptions(Config):
    """Options of type ``obelics``."""

    texts: str = "texts"
    """Column with the texts: a list, null where a picture is."""
    images: str = "images"
    """Column with the pictures: a list, null where a text is. A picture is an address, a name, its bytes, or
    ``{bytes, path}``."""
    image_bytes: str | None = None
    """Column with the pictures' bytes, a list parallel to the others, where addresses have been fetched."""
    folder: str | None = None
    """Folder that names start from, relative to the folder of ``path``, or an address; None: that folder."""
    metadata: str | None = "metadata"
    """Column with JSON: a list parallel to the others that tells of each picture (``alt_text``, ``src``)."""
    caption: Literal["alt", "none"] = "none"
    """Whether a picture's alternative text, from the metadata, follows it as a paragraph."""
    licence: str | None = "licence"
    """Column with the document's licence, where there is one."""


class Obelics(ParquetSource):
    """Documents of the Parquet files below ``path``, one a row; texts and pictures are parted by an empty line.

    An address without bytes is a missing picture with its ``url``.
    """

    format = "obelics 1"

    def columns(self) -> Sequence[str | None]:
        o = self._options
        return o.texts, o.images, o.image_bytes, o.metadata, o.licence

    def sample(self, file: str, row: int, content: dict[str, Any]) -> RawSample:
        key = f"{file}#{row}"
        pieces: list[str | RawImage] = []
        for piece in self._pieces(content, key):
            pieces += [BETWEEN, piece] if pieces else [piece]
        segments, images = placed(pieces)
        licence = optional_text(content, self._options.licence)
        return RawSample(key, file, row, segments=segments, images=images, licence=licence)

    @cached_property
    def _options(self) -> ObelicsOptions:
        return self.options(ObelicsOptions)

    @cached_property
    def _folder(self) -> Storage:
        return images_storage(self.config.name, self.root().storage, self._options.folder)

    def _pieces(self, content: dict[str, Any], key: str) -> Iterator[str | RawImage]:
        options = self._options
        texts, images = _list(content, options.texts), _list(content, options.images)
        count = len(texts)
        data = _list(content, options.image_bytes) if options.image_bytes else [None] * count
        about = _about(content, options.metadata, count)
        if not len(images) == len(data) == count:
            raise UnusableRow("bad-structure", f"{count} texts, {len(images)} pictures and {len(data)} pictures' bytes")
        for n, (text, image, fetched) in enumerate(zip(texts, images, data, strict=True)):
            if (text is None) == (image is None and fetched is None):
                found = "neither a text nor a picture" if text is None else "a text and a picture"
                raise UnusableRow("bad-structure", f"place {n} has {found}; exactly one is expected")
            if text is not None:
                if not isinstance(text, str):
                    raise UnusableRow("bad-field", f"text {n} is {type(text).__name__}")
                if text:
                    yield text
                continue
            yield self._image(image, fetched, about[n], f"{key}/{n}")
            alt = next((about[n][k] for k in _ALT if isinstance(about[n].get(k), str)), "").strip()
            if alt and options.caption == "alt":
                yield alt

    def _image(self, value: Any, fetched: Any, about: dict[str, Any], name: str) -> RawImage:
        url = next((about[k] for k in _SOURCES if isinstance(about.get(k), str)), "")
        if isinstance(value, str) and value[:5].lower() == "data:":
            return embedded(value)
        if isinstance(value, str) and "://" in value:
            name = url = value
            value = None
        try:
            return image_of(value if fetched is None else fetched, self._folder, name, url)
        except UnusableRow as e:
            if e.error == "bad-field":
                raise
            return RawImage(name, None, url, e.error)


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = field(content, name)
    if not isinstance(value, list):
        raise UnusableRow("bad-field", f"column {name!r} is {type(value).__name__}; expected a list")
    return value


def _about(content: dict[str, Any], name: str | None, count: int) -> list[dict[str, Any]]:
    """What the metadata say of each place; nothing where there are none, or they do not fit."""
    value = content.get(name) if name else None
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != count:
        return [{}] * count
    return [entry if isinstance(entry, dict) else {} for entry in found]
