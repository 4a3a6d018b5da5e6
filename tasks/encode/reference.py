"""Transform ``reference-1``: Pillow's LANCZOS on the short side, then the middle square, bit for bit.

Its geometry is also what other versions must keep to, so that a picture lies where it lay.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks.encode.decode import open_image

Pixels = npt.NDArray[np.uint8]
"""(side, side, 3), red green blue."""

MAX_ASPECT = 8
"""Of a longer picture only the middle 8:1 is resized: what lies outside is cropped anyway, and would need gigabytes."""
MAX_LENGTH = 1 << 16
"""A longer picture (no JPEG is) is first averaged below this: the weights of LANCZOS need 48 bytes for each pixel of a
length, which for a picture one pixel high is many times the picture."""
LANCZOS = Image.Resampling.LANCZOS
_LANCZOS_REACH = 3


def crop_file(data: bytes, side: int, max_pixels: int) -> Pixels:
    """:func:`crop` of a file; ImageError where it cannot be decoded."""
    return crop(open_image(data, max_pixels), side)


def pad_file(data: bytes, side: int, max_pixels: int) -> Pixels:
    """:func:`pad` of a file; ImageError where it cannot be decoded."""
    return pad(open_image(data, max_pixels), side)


def crop(image: Image.Image, side: int) -> Pixels:
    """LANCZOS until the short side is ``side``, the long side rounded; then the middle square, offsets rounded down."""
    image = _cut_to_aspect(rgb(image), MAX_ASPECT)
    size = cropped_size(*image.size, side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    if image.size == size or size == (side, side) or not _rows_first(image, size):
        image = image if image.size == size else image.resize(size, LANCZOS)
        return _pixels(image.crop((left, top, left + side, top + side)))
    return _pixels(_columns(image, size, left) if size[0] > side else _rows(image, size, top))


def pad(image: Image.Image, side: int) -> Pixels:
    """LANCZOS until the long side is ``side``, the short one rounded; white around it, offsets rounded down."""
    image = rgb(image)
    size = padded_size(*image.size, side)
    if max(image.size) > MAX_LENGTH:
        image = image.reduce((-(-image.width // MAX_LENGTH), -(-image.height // MAX_LENGTH)))
    if image.size != size:
        image = image.resize(size, LANCZOS)
    return _pixels(on_white(image, side))


def cropped_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height once the short side is ``side``."""
    short = min(width, height)
    return _scaled(width, side, short), _scaled(height, side, short)


def padded_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height once the long side is ``side``, neither less than 1."""
    long = max(width, height)
    return max(1, _scaled(width, side, long)), max(1, _scaled(height, side, long))


def on_white(image: Image.Image, side: int) -> Image.Image:
    """The picture, at most ``side`` each way, in the middle of a white square."""
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _rows_first(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether Pillow resizes rows before columns. Before version 13 it always did; now not where the height loses more
    than twice what the width does. Each pass rounds to 8 bits, so the order decides pixels."""
    lost_width, lost_height = image.width - size[0], image.height - size[1]
    return lost_height <= max(0, 2 * lost_width)


def _columns(image: Image.Image, size: tuple[int, int], left: int) -> Image.Image:
    """Of the picture resized to ``size``, whose height is the side, the square from column ``left`` on.

    Columns that will be cut off need no second pass.
    """
    side = size[1]
    if image.width != size[0]:
        image = image.resize((size[0], image.height), LANCZOS)
    return image.crop((left, 0, left + side, image.height)).resize((side, side), LANCZOS)


def _rows(image: Image.Image, size: tuple[int, int], top: int) -> Image.Image:
    """Of the picture resized to ``size``, whose width is the side, the square from row ``top`` on.

    Rows that no kept row is made of need no first pass. The others stay in their places, because the second pass's
    weights are computed from these.
    """
    side, height = size[0], image.height
    if image.width != side:
        scale = height / size[1]
        reach = _LANCZOS_REACH * max(scale, 1.0) + 1
        first, last = math.floor(top * scale - reach), math.ceil((top + side) * scale + reach)
        first, last = max(0, first), min(height, last)
        strip = image.crop((0, first, image.width, last)).resize((side, last - first), LANCZOS)
        image = Image.new("RGB", (side, height))
        image.paste(strip, (0, first))
    return image.resize(size, LANCZOS).crop((0, top, side, top + side))


def rgb(image: Image.Image) -> Image.Image:
    """The picture in mode ``RGB``; itself, not a copy, where it is."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(length: int, side: int, reference: int) -> int:
    """length·side/reference, rounded half up, in integers: no float decides a pixel."""
    return (2 * length * side + reference) // (2 * reference)


def _cut_to_aspect(image: Image.Image, aspect: int) -> Image.Image:
    width, height = image.size
    if max(width, height) <= aspect * min(width, height):
        return image
    w, h = min(width, aspect * height), min(height, aspect * width)
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.uint8)
