"""From a picture file's bytes to upright 8-bit RGB, or to an error that names what is wrong with the file.

Every file is treated as hostile. Only formats on a fixed list are given to a decoder (Pillow would, for example, hand
PostScript to an external program), the declared size is checked before a pixel is decoded, and whatever a decoder
raises becomes an :class:`ImageError`.

The rules, in order: first frame; grey of 12 or 16 bits scaled to 8; the embedded colour profile, if usable, applied so
that the result is sRGB; CMYK without a profile by Pillow's plain formula; transparency blended on white; EXIF
orientation. `docs/pictures.md` says what that costs in memory.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from PIL import Image, UnidentifiedImageError

from infra.errors import CalummaError
from model.processor.colour import FORMATS, too_large, upright_rgb

ErrorClass = Literal["empty", "not-an-image", "unsupported", "bomb", "truncated", "corrupt", "memory"]
ERROR_CLASSES: tuple[str, ...] = get_args(ErrorClass)

_UNSUPPORTED_BY_PILLOW = (
    *("unknown pixel mode", "unsupported bmp bitfields", "unsupported bmp compression", "unsupported bmp pixel depth"),
    *("unsupported bmp header", "cannot handle"),
)
"""What Pillow's messages say of files that are whole, but of a kind that it does not read."""


class ImageError(CalummaError):
    """A picture that cannot be used; ``error_class`` is one of :data:`ERROR_CLASSES`, for the ledger."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class: ErrorClass = error_class
        self.message = message

    def __str__(self) -> str:
        return f"{self.error_class}: {self.message}"


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes a picture file to mode ``RGB``, upright, on white, in sRGB. Threads may call it.

    Args:
        data: the whole file.
        max_pixels: a picture that declares more (width times height) is refused before it is decoded.

    Raises:
        ImageError: ``empty`` (no bytes), ``not-an-image`` (no known format), ``unsupported`` (a format or a kind of
            pixel that is not read), ``bomb`` (more than ``max_pixels``), ``truncated`` (the file ends too early),
            ``corrupt`` (anything else that a decoder rejects), ``memory`` (there was none left: worth another try).
    """
    with opened(data, max_pixels) as image:
        return upright_rgb(image)


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """A picture whose header is read and whose size is checked, before any pixel is decoded (but see ICO below).

    Whatever a decoder raises inside becomes an :class:`ImageError`; the classes are those of :func:`open_image`.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with _pillow_limits(max_pixels):
        image = _open(data)  # an ICO's picture is decoded here, under Pillow's limit
        if fault := too_large(image, max_pixels):
            raise ImageError("bomb", fault)
        try:
            yield image
        except ImageError:
            raise
        except Exception as e:  # a hostile file can make a decoder raise anything; it must cost only itself
            raise _classified(e, data) from e


_limits: list[int] = []
_limits_lock = threading.Lock()
_outside: tuple[int | None, warnings.catch_warnings[None]] | None = None


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit set so that it refuses whatever a file declares further in, such as an ICO's picture.

    The limit belongs to the process: the first thread sets it and the last one restores it. The same holds for
    Pillow's warnings about odd metadata and near-bombs: what they mean is decided here, not on the terminal.
    """
    global _outside
    limit = (max_pixels + 1) // 2  # Pillow refuses what is more than twice its limit
    with _limits_lock:
        if _outside is None:
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _outside = Image.MAX_IMAGE_PIXELS, quiet
        _limits.append(limit)
        Image.MAX_IMAGE_PIXELS = max(_limits)
    try:
        yield
    finally:
        with _limits_lock:
            _limits.remove(limit)
            if _limits:
                Image.MAX_IMAGE_PIXELS = max(_limits)
            else:
                Image.MAX_IMAGE_PIXELS, quiet = _outside
                quiet.__exit__(None, None, None)
                _outside = None


def _open(data: bytes) -> Image.Image:
    Image.init()  # loads the decoders, once a process: Pillow itself knows only five formats at first
    try:
        return Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except UnidentifiedImageError as e:
        name = _recognised(data)
        if name is None:
            raise ImageError("not-an-image", f"no picture format begins with the bytes {data[:8].hex(' ')}") from e
        if name in FORMATS:
            raise _refused(name, data) from e
        raise ImageError("unsupported", f"format {name} is not read; known are {', '.join(FORMATS)}") from e
    except Exception as e:
        raise _classified(e, data) from e


def _refused(name: str, data: bytes) -> ImageError:
    """Why the format's own reader does not take the header: ``Image.open`` keeps that to itself."""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as e:
        return _classified(e, data, f"it begins like {name}, but its header is refused: ")
    return ImageError("corrupt", f"it begins like {name}, but its header is damaged")


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


def _classified(error: Exception, data: bytes, before: str = "") -> ImageError:
    text = f"{before}{type(error).__name__}: {error}"
    said = str(error).lower()
    if isinstance(error, MemoryError):
        return ImageError("memory", text)
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("bomb", f"it declares too many pixels: {error}")
    if "decompressed data too large" in said:
        return ImageError("bomb", text)
    if isinstance(error, EOFError) or any(w in said for w in ("truncated", "not enough", "premature")):
        return ImageError("truncated", text)
    if "broken data stream" in said and data[:2] != b"\xff\xd8" and not data.endswith(b"\xff\xd9"):
        return ImageError("truncated", f"{text}; a JPEG 2000 codestream without its end")
    if isinstance(error, NotImplementedError) or any(w in said for w in _UNSUPPORTED_BY_PILLOW):
        return ImageError("unsupported", text)
    return ImageError("corrupt", text)
