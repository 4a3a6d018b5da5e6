"""From an upright RGB picture of any size to the square that the image tokenizer reads.

A transform is named by version, and its name is part of the fingerprint: a shortcut that changes one pixel is another
transform, never a silent optimisation. Each has two ways to a square: ``crop`` (training, answers) fills it and loses
the margins; ``pad`` (pictures in prompts) keeps everything and adds white (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.errors import RecipeError

Pixels = npt.NDArray[np.uint8]
"""(side, side, 3), red green blue."""

MAX_ASPECT = 8
"""Of a longer picture only the middle 8:1 is resized: what lies outside is cropped anyway, and would need gigabytes."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One version of the way from a picture to a square."""

    name: str
    crop: Callable[[Image.Image, int], Pixels]
    """``crop(image, side) -> (side, side, 3) uint8``; the middle of the picture fills the square."""
    pad: Callable[[Image.Image, int], Pixels]
    """``pad(image, side) -> (side, side, 3) uint8``; the whole picture in the middle, white around it."""


def crop_reference_1(image: Image.Image, side: int) -> Pixels:
    """LANCZOS until the short side is ``side``, the long side rounded; then the middle square, offsets rounded down."""
    image = _cut_to_aspect(_rgb(image), MAX_ASPECT)
    width, height = image.size
    short = min(width, height)
    size = (_scaled(width, side, short), _scaled(height, side, short))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return _pixels(image.crop((left, top, left + side, top + side)))


def pad_reference_1(image: Image.Image, side: int) -> Pixels:
    """LANCZOS until the long side is ``side``, the short one rounded; white around it, offsets rounded down."""
    image = _rgb(image)
    width, height = image.size
    long = max(width, height)
    size = (max(1, _scaled(width, side, long)), max(1, _scaled(height, side, long)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return _pixels(square)


TRANSFORMS: dict[str, Transform] = {t.name: t for t in (Transform("reference-1", crop_reference_1, pad_reference_1),)}
"""Every version ever used stays here, so that old stores can be added to."""


def transform(name: str) -> Transform:
    """The transform of that name; RecipeError if there is none."""
    try:
        return TRANSFORMS[name]
    except KeyError:
        raise RecipeError(f"pictures.transform is {name!r}; known transforms: {', '.join(TRANSFORMS)}") from None


def _rgb(image: Image.Image) -> Image.Image:
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
