"""From an opened picture of any mode to upright sRGB on white; `tasks/encode/decode.py` states the rules.

This file needs nothing but Pillow and NumPy: every exported model carries a copy of it, so that its processor sees a
picture as training did.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin

_ORIENTATION_TAG = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_BAND = 1 << 20
"""Pixels looked up in a table at a time: an index needs eight bytes for each."""
UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what turns the stored pixels upright."""
FORMATS: tuple[str, ...] = (
    *("JPEG", "PNG", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "ICO", "PPM", "TGA"),
    *("PCX", "SGI", "QOI"),
)
"""Formats that are decoded (MPO as JPEG); anything else that Pillow would recognise is ``unsupported``."""
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


def upright_rgb(image: Image.Image) -> Image.Image:
    """The pixels of an opened picture by this module's rules, in mode ``RGB``.

    A file is hostile until its format and size are checked: see ``decode.opened``. What comes out can be given in again
    and stays as it is. Raises NotImplementedError for pixels of which nothing says what is white.
    """
    image.load()
    turn = UPRIGHT.get(orientation(image))
    profile = image.info.get("icc_profile")
    colour, alpha = _split(image)
    rgb = _to_srgb(colour, profile)
    del colour  # each copy is four bytes a pixel
    if alpha is not None:
        white = Image.new("RGB", rgb.size, (255, 255, 255))
        white.paste(rgb, mask=alpha)
        rgb = white
    upright = rgb if turn is None else rgb.transpose(turn)
    if upright is not image:
        upright.info = {}  # or who reads the picture again would turn it, and convert its colours, once more
    return upright


def too_large(image: Image.Image, max_pixels: int) -> str:
    """What a picture declares of which more than ``max_pixels`` would have to be decoded; empty if it does not."""
    areas = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may be larger than the picture, and is decoded whole
        tags = image.tag_v2
        areas.append((int(tags.get(_TIFF_TILE_WIDTH, 1)), int(tags.get(_TIFF_TILE_LENGTH, 1))))
    for width, height in areas:
        if width * height > max_pixels:
            return f"it declares {width}x{height} = {width * height:,} pixels; at most {max_pixels:,} are decoded"
    return ""


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 if there is none."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF is no reason to lose a readable picture
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB, CMYK or LAB, and alpha in mode L where there is any."""
    if image.mode.startswith("I"):
        return _grey_16(image)
    if image.mode == "F":
        raise NotImplementedError("floating-point pixels: nothing says which value is white")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "RGBA", "PA") or image.has_transparency_data:
        whole = image if image.mode == "LA" else image.convert("RGBA")
        colour, alpha = whole.convert("L" if whole.mode == "LA" else "RGB"), whole.getchannel("A")
        return colour, None if alpha.getextrema() == (255, 255) else alpha
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _grey_16(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 12 or 16 bits to 8, value*255/white rounded, and its alpha; Pillow itself clips or drops bits."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise NotImplementedError(
            f"integer pixels from {low} to {high}: outside 16 bits, nothing says which value is white"
        )
    white, inverted = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 4095 if image.tag_v2.get(_TIFF_BITS) == (12,) else white
        inverted = image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    grey = _looked_up(values, _to_eight_bits(white, inverted))
    key = image.info.get("transparency")  # PNG: the one value that is transparent
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255)), "L")


@lru_cache
def _to_eight_bits(white: int, inverted: bool) -> npt.NDArray[np.uint8]:
    table = np.minimum((np.arange(65536) * 255 + white // 2) // white, 255).astype(np.uint8)
    return 255 - table if inverted else table


def _looked_up(values: npt.NDArray[np.integer], table: npt.NDArray[np.uint8]) -> Image.Image:
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND // values.shape[1])
    for row in range(0, len(values), rows):
        grey[row : row + rows] = table[values[row : row + rows]]
    return Image.fromarray(grey, "L")


def is_srgb(image: Image.Image) -> bool:
    """Whether the opened picture's colours are sRGB, or taken for it: no usable profile says otherwise."""
    return _profile(image.info.get("icc_profile"), image.mode) is None


def _profile(profile: bytes | None, mode: str) -> ImageCms.ImageCmsProfile | None:
    """The embedded profile, if it is another one than sRGB and made for pixels of this mode."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a damaged profile says nothing about colour: the picture is read as if it had none
    fits = _PROFILE_MODES.get(source.profile.xcolor_space) == mode
    return source if fits and "srgb" not in (source.profile.profile_description or "").lower() else None


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    source = _profile(profile, colour.mode)
    if source is not None:
        try:
            return _converted(colour, source)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # damaged further in
    if colour.mode == "LAB":
        return _converted(colour, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return colour if colour.mode == "RGB" else colour.convert("RGB")  # converting RGB to RGB would copy it


def _converted(colour: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # None is the answer for inPlace only
    return converted
