"""Transform ``fast-1``: the reference's geometry and colours, with cheaper decoding and resizing.

- A JPEG in RGB or grey without a foreign colour profile is decoded by OpenCV, and a large one at a half, quarter or
  eighth of its size, which JPEG's blocks give almost for nothing. Every other file is decoded as the reference does.
- Shrinking is Pillow's LANCZOS over the part that is kept; enlarging, and shrinking by so little that nothing can
  alias, is OpenCV's bicubic interpolation.

The pixels differ from the reference's by a little: `docs/pictures.md` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from model.processor.colour import UPRIGHT, is_srgb, orientation, upright_rgb
from tasks.encode import reference
from tasks.encode.decode import opened
from tasks.encode.reference import LANCZOS, MAX_ASPECT, MAX_LENGTH, Pixels

cv2.setNumThreads(1)  # one worker, one core; and the same pixels on any number of cores

REDUCTIONS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_END_OF_JPEG = b"\xff\xd9"
_END_WITHIN = 64
_INTERPOLATED_BELOW = 1.25
"""Shrunk by less than this, a picture is interpolated: measured, the difference is no greater than in enlarging."""
_REACH = 3
"""Source pixels beyond an edge that bicubic interpolation may need."""
_SEARCHED = 24
"""Target pixels among which a good place to cut is sought."""
_MIRRORS_X, _MIRRORS_Y = (2, 3, 7, 8), (3, 4, 6, 7)
"""EXIF orientations that reverse the stored columns and rows."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A picture as stored, perhaps at a fraction of its size."""

    pixels: Pixels | Image.Image
    width: int
    height: int
    """As the file declares them; ``pixels`` has these over ``reduction``, rounded up."""
    reduction: int = 1
    orientation: int = 1
    """Still to be applied."""


def crop(image: Image.Image, side: int) -> Pixels:
    """The middle square of an upright picture."""
    return _crop(_Decoded(reference.rgb(image), *image.size), side)


def pad(image: Image.Image, side: int) -> Pixels:
    """An upright picture whole, on white."""
    return _pad(_Decoded(reference.rgb(image), *image.size), side)


def crop_file(data: bytes, side: int, max_pixels: int) -> Pixels:
    """The middle square of a file's picture; ImageError where it cannot be decoded."""
    return _crop(_decoded(data, max_pixels, side, min), side)


def pad_file(data: bytes, side: int, max_pixels: int) -> Pixels:
    """A file's picture whole, on white; ImageError where it cannot be decoded."""
    return _pad(_decoded(data, max_pixels, side, max), side)


def _decoded(data: bytes, max_pixels: int, side: int, measured: Callable[[int, int], int]) -> _Decoded:
    with opened(data, max_pixels) as image:
        width, height = image.size
        if _plain_jpeg(image, data):
            reduction = next(r for r in REDUCTIONS if r == 1 or measured(width, height) >= r * side)
            pixels = _cv2_decoded(data, reduction)
            if pixels is not None and pixels.shape[:2] == (-(-height // reduction), -(-width // reduction)):
                return _Decoded(pixels, width, height, reduction, orientation(image))
        upright = upright_rgb(image)
    return _Decoded(upright, *upright.size)


def _plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether OpenCV would read the same picture as the reference: RGB or grey, sRGB, and not cut off.

    Of a file cut off OpenCV gives what there is; the reference refuses it. MPO is several JPEGs, of which both read
    the first.
    """
    whole = data.rfind(_END_OF_JPEG, -_END_WITHIN) >= 0
    return whole and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and is_srgb(image)


def _cv2_decoded(data: bytes, reduction: int) -> Pixels | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCTIONS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None  # the reference's decoder says what is wrong, or reads it
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _crop(picture: _Decoded, side: int) -> Pixels:
    width, height = picture.width, picture.height
    if max(width, height) > MAX_ASPECT * min(width, height):
        return reference.crop(_turned(_image(picture.pixels), picture.orientation), side)
    size = reference.cropped_size(width, height, side)
    left, top = _offsets(size, side, picture.orientation)
    if _interpolates(picture, min(width, height), side):
        square = _interpolated(picture, size, left, top, side)
    else:
        x, y = width / size[0], height / size[1]
        box = (left * x, top * y, min(width, (left + side) * x), min(height, (top + side) * y))
        square = np.asarray(_shrunk(picture, (side, side), box))
    return _upright(square, picture.orientation)


def _pad(picture: _Decoded, side: int) -> Pixels:
    width, height = picture.width, picture.height
    if max(width, height) > MAX_LENGTH:
        return reference.pad(_turned(_image(picture.pixels), picture.orientation), side)
    size = reference.padded_size(width, height, side)
    if _interpolates(picture, max(width, height), side):
        resized = Image.fromarray(_resized(np.asarray(picture.pixels), size))
    else:
        resized = _shrunk(picture, size, (0, 0, width, height))
    return np.asarray(reference.on_white(_turned(resized, picture.orientation), side))


def _offsets(size: tuple[int, int], side: int, orientation: int) -> tuple[int, int]:
    """Where the middle square begins in the picture as stored; upright, both are rounded down."""
    left, top = size[0] - side, size[1] - side
    return (left + (orientation in _MIRRORS_X)) // 2, (top + (orientation in _MIRRORS_Y)) // 2


def _shrunk(picture: _Decoded, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """The part ``box`` of the picture, in the file's pixels, resized to ``size``."""
    image, reduction = _image(picture.pixels), picture.reduction
    left, top, right, bottom = (edge / reduction for edge in box)
    return image.resize(size, LANCZOS, (left, top, min(right, image.width), min(bottom, image.height)))


def _interpolates(picture: _Decoded, length: int, side: int) -> bool:
    return picture.reduction == 1 and length < side * _INTERPOLATED_BELOW


def _interpolated(picture: _Decoded, size: tuple[int, int], left: int, top: int, side: int) -> Pixels:
    """Of the picture interpolated to ``size``, the square at (left, top); little more than that is computed."""
    column, right, x, x_end = _window(left, left + side, picture.width, size[0])
    row, bottom, y, y_end = _window(top, top + side, picture.height, size[1])
    pixels = np.asarray(picture.pixels)[y:y_end, x:x_end]
    part = _resized(pixels, (right - column, bottom - row))
    return part[top - row : top - row + side, left - column : left - column + side]


def _window(first: int, last: int, source: int, target: int) -> tuple[int, int, int, int]:
    """A range of target pixels around [first, last), and the range of source pixels that it is made of.

    OpenCV resizes whole ranges only. Among the nearest ends, far enough out for the interpolation's reach, those are
    taken that lie on whole source pixels best: within some hundredths, where any other cut could be half a pixel off.
    """
    scale = source / target
    reach = math.ceil(_REACH / scale)
    outer, inner = max(0, first - reach - _SEARCHED), max(0, first - reach)

    def off(end: int) -> float:
        return abs(end * scale - round(end * scale))

    start = min(range(outer, inner + 1), key=off)
    inner, outer = min(target, last + reach), min(target, last + reach + _SEARCHED)
    end = min(range(inner, outer + 1), key=off)
    return start, end, round(start * scale), round(end * scale)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    resized: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    return resized


def _image(pixels: Pixels | Image.Image) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _upright(square: Pixels, orientation: int) -> Pixels:
    if orientation not in UPRIGHT:
        return np.ascontiguousarray(square)
    return np.asarray(_turned(Image.fromarray(square), orientation))
