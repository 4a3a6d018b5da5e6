"""The samples of a part as their source has them: thumbnails with faces marked, or the first bytes of what is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from infra.errors import CalummaError
from tasks.addresses import Addresses, PartName, parse_part
from tasks.encode.decode import ImageError, open_image
from tasks.report.html import uri
from tasks.scan.facts import storable, without_images
from tasks.scan.items import read_item
from tasks.scan.selected import work_items
from tasks.sources import open_source
from tasks.sources.base import RawImage, RawSample

THUMBNAIL = 176
"""Longest side of a picture, pixels."""
FIRST_BYTES = 48
TEXT_CHARACTERS = 1200
SEGMENT_CHARACTERS = 400
"""Of each text in a document of several."""
SEGMENTS = 40
FACE = (224, 49, 122)


@dataclass(frozen=True, slots=True)
class Picture:
    """An original picture, or why there is none."""

    name: str
    uri: str = ""
    why: str = ""
    first_bytes: str = ""
    """In hex, and as text where they are printable."""


@dataclass(frozen=True, slots=True)
class Original:
    """A sample as read."""

    pictures: tuple[Picture, ...] = ()
    captions: tuple[str, ...] = ()
    pieces: tuple[dict[str, Any], ...] = ()
    """Segments in order: ``role`` and either ``text`` or ``image``, the number of one of ``pictures``."""


@dataclass
class Originals:
    """By key, what was found of the samples asked for; and why the rest is missing."""

    found: dict[str, Original] = field(default_factory=dict)
    why_not: str = ""


def read_originals(
    addresses: Addresses,
    part: str,
    keys: Collection[str],
    faces: Mapping[str, Sequence[Sequence[Mapping[str, int]]]],
    dropped: Mapping[str, Sequence[int]],
) -> Originals:
    """Reads a part's source once and keeps small pictures of the samples asked for.

    Args:
        keys: As the tables have them.
        faces: By key, the faces of each picture that stayed, in pixels of the upright original.
        dropped: By key, the numbers of the pictures that the document goes without.
    """
    originals, wanted = Originals(), set(keys)
    base = (parse_part(part) or PartName(part, 0)).base
    try:
        item = next((i for i in work_items(addresses.context("scan")) if i.part == base), None)
        if item is None:
            originals.why_not = f"scan lists no work item {base}"
            return originals
        source = open_source(addresses.recipe.source(item.source), addresses.recipe.folder)
        for raw in read_item(source, item):
            if not wanted:
                break
            if isinstance(raw, RawSample) and (key := storable(raw.key)) in wanted:
                wanted.discard(key)
                raw = without_images(raw, tuple(dropped.get(key, ())))
                originals.found[key] = _original(raw, faces.get(key, ()), addresses.recipe.scan.max_pixels)
    except (CalummaError, OSError) as e:
        originals.why_not = str(e)
    return originals


def pieces_of(segments: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Segments of a table's row (mappings) for the page; long texts and very long documents are cut."""
    found: list[dict[str, Any]] = []
    shown = [s for s in segments if s["image"] is not None or s["text"]]
    most = TEXT_CHARACTERS if len(shown) == 1 else SEGMENT_CHARACTERS
    for segment in shown[:SEGMENTS]:
        said = {"text": cut(segment["text"], most)} if segment["image"] is None else {"image": segment["image"]}
        found.append({"role": segment["role"] or "", **said})
    if len(shown) > SEGMENTS:
        found.append({"role": "", "text": f"… and {len(shown) - SEGMENTS:,} more pieces"})
    return tuple(found)


def cut(text: str, most: int = TEXT_CHARACTERS) -> str:
    """A text, or its beginning and how long it is."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _original(raw: RawSample, faces: Sequence[Sequence[Mapping[str, int]]], max_pixels: int) -> Original:
    marked = [*faces, *([()] * len(raw.images))]
    pictures = tuple(_picture(i, boxes, max_pixels) for i, boxes in zip(raw.images, marked, strict=False))
    pieces = pieces_of([{"role": s.role, "text": s.text, "image": s.image} for s in raw.segments])
    return Original(pictures, tuple(cut(c) for c in raw.captions), pieces)


def _picture(image: RawImage, faces: Sequence[Mapping[str, int]], max_pixels: int) -> Picture:
    name = storable(image.name)
    if image.data is None:
        return Picture(name, why=image.error)
    try:
        opened = open_image(image.data, max_pixels)
    except ImageError as e:
        return Picture(name, why=str(e), first_bytes=first_bytes(image.data))
    return Picture(name, uri=uri(thumbnail(opened, faces)))


def thumbnail(picture: Image.Image, faces: Sequence[Mapping[str, int]] = ()) -> Image.Image:
    """The picture at most ``THUMBNAIL`` pixels wide and high, with a box round each face."""
    width = picture.width
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    draw, scale = ImageDraw.Draw(small), small.width / max(1, width)
    for face in faces:
        x, y = face["x"] * scale, face["y"] * scale
        draw.rectangle((x, y, x + face["width"] * scale, y + face["height"] * scale), outline=FACE, width=2)
    return small


def first_bytes(data: bytes) -> str:
    """``89 50 4e 47 …  .PNG``: what a file begins with."""
    head = data[:FIRST_BYTES]
    text = "".join(chr(b) if 32 <= b < 127 else "." for b in head)
    return f"{head.hex(' ')}{' …' if len(data) > FIRST_BYTES else ''}\n{text}" if data else "(no bytes)"
