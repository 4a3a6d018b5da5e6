"""From a picture file's bytes to upright 8-bit RGB, or to an error that names what is wrong with the file.

Every file is treated as hostile. Only formats on a fixed list are given to a decoder (Pillow would, for example, hand
PostScript to an external program), the declared size is checked before a pixel is decoded, and whatever a decoder
raises becomes an :class:`ImageError`.

The rules, in order: first frame; grey of 16 bits scaled to 8; the embedded colour profile, if usable, applied so that
the result is sRGB; CMYK without a profile by Pillow's plain formula; transparency blended on white; EXIF orientation.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from infra.errors import CalummaError

ErrorClass = Literal["empty", "not-an-image", "unsupported", "bomb", "truncated", "corrupt"]
ERROR_CLASSES: tuple[str, ...] = get_args(ErrorClass)

FORMATS: tuple[str, ...] = (
    *("JPEG", "PNG", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "ICO", "PPM", "TGA"),
    *("PCX", "SGI", "QOI"),
)
"""Formats that are decoded (MPO as JPEG); anything else that Pillow would recognise is ``unsupported``."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


class ImageError(CalummaError):
    """A picture that cannot be used; ``error_class`` is one of :data:`ERROR_CLASSES`, for the ledger."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class: ErrorClass = error_class
        self.message = message

    def __str__(self) -> str:
        return f"{self.error_class}: {self.message}"


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes a picture file to mode ``RGB``, upright, on white, in sRGB.

    Args:
        data: the whole file.
        max_pixels: a picture that declares more (width times height) is refused before it is decoded.

    Raises:
        ImageError: ``empty`` (no bytes), ``not-an-image`` (no known format), ``unsupported`` (a format or a kind of
            pixel that is not read), ``bomb`` (more than ``max_pixels``), ``truncated`` (the file ends too early),
            ``corrupt`` (anything else that a decoder rejects).
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with _pillow_limits(max_pixels):
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "bomb", f"it declares {width}x{height} = {width * height:,} pixels; at most {max_pixels:,} are decoded"
            )
        try:
            image.load()
            return _to_rgb(image)
        except ImageError:
            raise
        except Exception as e:  # a hostile file can make a decoder raise anything; it must cost only itself
            raise _classified(e) from e


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit set to ours: it refuses whatever a file declares further in at twice the limit."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and near-bombs: decided here, not on the terminal
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open(data: bytes) -> Image.Image:
    Image.init()  # loads the decoders, once a process: Pillow itself knows only five formats at first
    try:
        return Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except UnidentifiedImageError as e:
        name = _recognised(data)
        if name is None:
            raise ImageError("not-an-image", f"no picture format begins with the bytes {data[:8].hex(' ')}") from e
        if name in FORMATS:
            raise ImageError(
                "corrupt", f"it begins like {name}, but its header is damaged or announces pixels of an unknown kind"
            ) from e
        raise ImageError("unsupported", f"format {name} is not read; known are {', '.join(FORMATS)}") from e
    except Exception as e:
        raise _classified(e) from e


def _recognised(data: bytes) -> str | None:
    """The format that the first bytes announce, without giving the file to that format's decoder."""
    head = data[:64]
    if b"<svg" in data[:1024].lower():
        return "SVG"
    for name in sorted(Image.OPEN):
        accepts = Image.OPEN[name][1]
        try:
            answer = accepts(head) if accepts is not None else False
        except Exception:
            answer = False
        if answer:  # a string says: recognised, but this build of Pillow lacks the decoder
            return name
    return None


def _classified(error: Exception) -> ImageError:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("bomb", text)
    if isinstance(error, EOFError) or any(w in str(error).lower() for w in ("truncated", "not enough", "premature")):
        return ImageError("truncated", text)
    if isinstance(error, NotImplementedError):
        return ImageError("unsupported", text)
    return ImageError("corrupt", text)


def _to_rgb(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")
    colour, alpha = _split(image)
    rgb = _to_srgb(colour, profile)
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, (255, 255, 255)), alpha)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF is no reason to lose a readable picture
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB, CMYK or LAB, and alpha in mode L where there is any."""
    if image.mode.startswith("I"):
        return _grey_16(image), None
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels: nothing says which value is white")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "RGBA", "PA") or image.has_transparency_data:
        whole = image if image.mode == "LA" else image.convert("RGBA")
        colour, alpha = whole.convert("L" if whole.mode == "LA" else "RGB"), whole.getchannel("A")
        return colour, None if alpha.getextrema() == (255, 255) else alpha
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _grey_16(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by value/257, rounded; Pillow's own conversion clips or drops bits, by version."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            "unsupported",
            f"integer pixels from {values.min()} to {values.max()}: outside 16 bits, nothing says which value is white",
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8), "L")


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            fits = _PROFILE_MODES.get(source.profile.xcolor_space) == colour.mode
            if fits and "srgb" not in (source.profile.profile_description or "").lower():
                converted = ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a damaged profile says nothing about colour: the picture is read as if it had none
    if colour.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colour, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    return colour.convert("RGB")
