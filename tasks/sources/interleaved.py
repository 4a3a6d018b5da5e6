"""Interleaved documents from JSONL: each line an object with a list of texts and pictures in reading order."""

from __future__ import annotations

from typing import Any, Literal

from infra.config import Config
from infra.storage import Storage
from tasks.sources.base import RawImage, RawSample, Segment
from tasks.sources.files import (
    UnusableRow,
    field,
    images_storage,
    load_image,
    optional_text,
    text_field,
    without_file,
)
from tasks.sources.jsonl import JsonlSource, Maker
from tasks.sources.lines import JsonRow

BETWEEN = "\n\n"
"""Between two segments; a picture is a paragraph of its own."""


class InterleavedOptions(Config):
    """Options of type ``interleaved``."""

    segments: str = "segments"
    """Field with the list: texts, ``{"type": "text" | "heading", "text": …}``, ``{"type": "image", "image": name}``,
    the last also with the ``url`` that the picture came from."""
    title: str | None = "title"
    """Field with the document's title, written first as a heading, where it has one."""
    images: str | None = None
    """Folder that the pictures' names start from, relative to the folder that ``path`` is or lies in, or an address;
    None: that folder."""
    caption: Literal["caption", "alt", "none"] = "caption"
    """Which of a picture's own texts follows it as a paragraph."""
    licence: str | None = "licence"


class InterleavedFiles(JsonlSource):
    """Documents of JSONL files. A picture that is missing or cannot be read stays in its place, without its bytes."""

    format = "interleaved 2"

    def maker(self, storage: Storage) -> Maker:
        options = self.options(InterleavedOptions)
        images = images_storage(self.config.name, storage, options.images)
        return lambda file, line: _sample(file, line, options, images)


def segments_from(
    value: Any, images: Storage, role: str = "", first: int = 0, caption: str = "none"
) -> tuple[list[Segment], list[RawImage]]:
    """A list of segments in JSON as ours, paragraphs parted by an empty line; pictures count from ``first`` on.

    A picture that is missing, or of which name or file are unusable, says so in its ``error``. UnusableRow if ``value``
    is not such a list.
    """
    if not isinstance(value, list):
        raise UnusableRow("bad-field", f"segments are {type(value).__name__}; expected a list")
    blocks: list[str | RawImage] = []
    for entry in value:
        if isinstance(entry, str):
            blocks.append(entry)
            continue
        if not isinstance(entry, dict):
            raise UnusableRow("bad-field", f"a segment is {type(entry).__name__}; expected a text or an object")
        kind = entry.get("type", "image" if "image" in entry else "text")
        if kind == "image":
            blocks.append(_image(images, entry))
            blocks.append(optional_text(entry, caption))
        elif kind in ("text", "heading"):
            blocks.append(("## " if kind == "heading" else "") + text_field(entry, "text"))
        else:
            raise UnusableRow("bad-field", f"a segment has type {kind!r}; expected text, heading or image")
    return _parted([b for b in blocks if b], role, first)


def _image(images: Storage, entry: dict[str, Any]) -> RawImage:
    url = optional_text(entry, "url")
    if entry.get("image") is None:
        return without_file("", url)
    name = text_field(entry, "image")
    try:
        return load_image(images, name, url)
    except UnusableRow as e:
        return RawImage(name, None, url, e.error)


def _parted(blocks: list[str | RawImage], role: str, first: int) -> tuple[list[Segment], list[RawImage]]:
    segments: list[Segment] = []
    images: list[RawImage] = []
    text = ""
    for number, block in enumerate(blocks):
        if number:
            text += BETWEEN
        if isinstance(block, str):
            text += block
            continue
        if text:
            segments.append(Segment(text=text, role=role))
            text = ""
        segments.append(Segment(image=first + len(images), role=role))
        images.append(block)
    if text:
        segments.append(Segment(text=text, role=role))
    return segments, images


def _sample(file: str, line: JsonRow, options: InterleavedOptions, folder: Storage) -> RawSample:
    value = field(line.content, options.segments)
    title = optional_text(line.content, options.title)
    if title and isinstance(value, list):
        value = [f"# {title}", *value]
    segments, images = segments_from(value, folder, caption=options.caption)
    licence = optional_text(line.content, options.licence)
    return RawSample(line.key, file, line.row, segments=tuple(segments), images=tuple(images), licence=licence)
