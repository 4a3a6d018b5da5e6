"""From a picture file to the square that the image tokenizer reads.

A transform is named by version, and its name is part of the fingerprint: a shortcut that changes one pixel is another
transform, never a silent optimisation. Each has two ways to a square: ``crop`` (training, answers) fills it and loses
the margins; ``pad`` (pictures in prompts) keeps everything and adds white (paper, section 3.1). `docs/pictures.md`
compares the versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from infra.errors import RecipeError
from tasks.encode import fast, reference
from tasks.encode.reference import MAX_ASPECT, Pixels

__all__ = ["MAX_ASPECT", "TRANSFORMS", "Pixels", "Transform", "transform"]


@dataclass(frozen=True, slots=True)
class Transform:
    """One version of the way from a picture to a square.

    The ways from a file may decode at less than the full size; they give what the version promises. Those from a
    picture are for what is no file.
    """

    name: str
    crop: Callable[[Image.Image, int], Pixels]
    """``crop(image, side) -> (side, side, 3) uint8``; the middle of the picture fills the square."""
    pad: Callable[[Image.Image, int], Pixels]
    """``pad(image, side) -> (side, side, 3) uint8``; the whole picture in the middle, white around it."""
    crop_file: Callable[[bytes, int, int], Pixels]
    """``crop_file(data, side, max_pixels)``; ImageError as ``decode.open_image``."""
    pad_file: Callable[[bytes, int, int], Pixels]
    """``pad_file(data, side, max_pixels)``; ImageError as ``decode.open_image``."""


TRANSFORMS: dict[str, Transform] = {
    name: Transform(name, way.crop, way.pad, way.crop_file, way.pad_file)
    for name, way in {"reference-1": reference, "fast-1": fast}.items()
}
"""Every version ever used stays here, so that old stores can be added to."""


def transform(name: str) -> Transform:
    """The transform of that name; RecipeError if there is none."""
    try:
        return TRANSFORMS[name]
    except KeyError:
        raise RecipeError(f"pictures.transform is {name!r}; known transforms: {', '.join(TRANSFORMS)}") from None
