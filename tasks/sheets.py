"""Sheets: many small pictures in one PNG, as plain tiles that are cut apart again or labelled for people to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WHITE = (255, 255, 255)
INK = (32, 36, 42)
FAINT = (120, 126, 134)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def png(picture: Image.Image, *, small: bool = True) -> bytes:
    """The picture as PNG bytes; equal pictures give equal bytes under one build of Pillow.

    ``small=False`` takes a tenth of the time, for who is waited for.
    """
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=small)
    return out.getvalue()


def tiles(rows: Sequence[Sequence[Image.Image | None]], side: int) -> bytes:
    """Pictures in a grid without gaps, each ``side`` pixels; None is white. Read back with :func:`cut`."""
    return png(grid(rows, side))


def grid(rows: Sequence[Sequence[Image.Image | None]], side: int) -> Image.Image:
    """What :func:`tiles` makes, not yet a file."""
    width = max((len(row) for row in rows), default=0)
    sheet = Image.new("RGB", (max(1, width) * side, max(1, len(rows)) * side), WHITE)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is not None:
                sheet.paste(fit(picture, side), (x * side, y * side))
    return sheet


def cut(data: bytes, side: int) -> list[list[Image.Image]]:
    """The rows of a grid made by :func:`tiles`."""
    sheet = Image.open(io.BytesIO(data)).convert("RGB")
    return [
        [sheet.crop((x, y, x + side, y + side)) for x in range(0, sheet.width, side)]
        for y in range(0, sheet.height, side)
    ]


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture scaled to a square of ``side``; much smaller ones are enlarged without smoothing."""
    if picture.size == (side, side):
        return picture
    grows = max(picture.size) * 2 <= side
    return picture.resize((side, side), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Cell:
    """A picture with lines of words under it; the first is dark, the others grey."""

    picture: Image.Image
    words: Sequence[str] = ()


def labelled(cells: Sequence[Cell], *, side: int = 128, columns: int = 8, title: str = "") -> Image.Image:
    """A contact sheet for people: cells in rows, words under each, cut to the cell's width."""
    gap, line = 12, 15
    font, heading = ImageFont.load_default(12), ImageFont.load_default(18)
    lines = max((len(c.words) for c in cells), default=0)
    columns = max(1, min(columns, len(cells)))
    step_x, step_y = side + gap, side + gap + line * lines + 4
    top = 40 if title else gap
    count = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * step_x + gap, top + max(1, count) * step_y), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 10), title, INK, heading)
    for i, cell in enumerate(cells):
        x, y = gap + i % columns * step_x, top + i // columns * step_y
        sheet.paste(fit(cell.picture, side), (x, y))
        for k, text in enumerate(cell.words):
            draw.text((x, y + side + 3 + k * line), _shorten(draw, text, side, font), FAINT if k else INK, font)
    return sheet


def wrapped(draw: ImageDraw.ImageDraw, text: str, width: int, font: Font, lines: int) -> list[str]:
    """A text as at most so many lines of ``width`` pixels, broken at spaces where there are any."""
    found, rest = list[str](), " ".join(text.split())
    while rest and len(found) < lines - 1 and draw.textlength(rest, font) > width:
        end = next((n for n in range(1, len(rest)) if draw.textlength(rest[: n + 1], font) > width), len(rest))
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        found.append(rest[:end])
        rest = rest[end:].lstrip()
    return [*found, _shorten(draw, rest, width, font)] if rest else found


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int, font: Font) -> str:
    """The longest beginning that fits ``width`` pixels, with an ellipsis where something is left out."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
