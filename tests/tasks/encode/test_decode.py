"""Decoding of hostile and odd picture files."""

from __future__ import annotations

import io
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tasks.encode.decode import ERROR_CLASSES, ImageError, open_image

LIMIT = 1_000_000


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def corners() -> Image.Image:
    """30x20, red at the top left, green right of it, blue below it, white in the last quarter."""
    image = Image.new("RGB", (30, 20), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 15, 10))
    image.paste((0, 255, 0), (15, 0, 30, 10))
    image.paste((0, 0, 255), (0, 10, 15, 20))
    return image


def error_of(data: bytes, limit: int = LIMIT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(data, limit)
    return caught.value


def test_a_plain_picture_comes_back_pixel_for_pixel() -> None:
    image = open_image(saved(corners(), "PNG"), LIMIT)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(corners()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the tag tells a viewer to undo
    stored = corners() if orientation == 1 else corners().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    image = open_image(saved(stored, form, exif=exif, **options), LIMIT)
    assert image.size == (30, 20)
    for point, colour in {(3, 3): (255, 0, 0), (26, 3): (0, 255, 0), (3, 16): (0, 0, 255)}.items():
        got = image.getpixel(point)
        assert isinstance(got, tuple)
        assert max(abs(int(a) - b) for a, b in zip(got, colour, strict=True)) < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    form = "TIFF" if mode == "PA" else "PNG"
    data = saved(image if mode == "RGBA" else image.convert("LA" if mode == "LA" else "RGBA"), "PNG")
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([200, 30, 30, 0, 0, 0])
        palette.paste(1, (0, 0, 2, 4))
        data = saved(palette, form, transparency=0)
    elif mode == "PA":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([200, 30, 30, 0, 0, 0])
        palette.paste(1, (0, 0, 2, 4))
        data = saved(palette, "PNG", transparency=bytes([0, 255]))
    got = open_image(data, LIMIT)
    assert got.getpixel((0, 0)) == (0, 0, 0)
    assert got.getpixel((3, 3)) == (255, 255, 255)


def test_half_transparent_black_is_grey() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert open_image(saved(image, "PNG"), LIMIT).getpixel((0, 0)) == (127, 127, 127)


def test_grey_of_sixteen_bits_is_scaled() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    got = np.asarray(open_image(saved(Image.fromarray(values), "PNG"), LIMIT))
    assert got[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_grey_of_twelve_bits_and_grey_the_other_way_round() -> None:
    values = np.array([[0, 4095, 2048, 16]], np.uint16)
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # two pixels in three bytes, the high bits first
    assert np.asarray(open_image(_tiff(4, 12, 1, packed), LIMIT))[0, :, 0].tolist() == [0, 255, 128, 1]
    data = _tiff(4, 16, 0, (values * 16).astype("<u2").tobytes())
    assert np.asarray(open_image(data, LIMIT))[0, :, 0].tolist() == [255, 0, 127, 254]


def _tiff(width: int, bits: int, photometric: int, pixels: bytes) -> bytes:
    """An uncompressed TIFF of one row."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    table = b"".join(t.to_bytes(2, "little") + b"\4\0\1\0\0\0" + v.to_bytes(4, "little") for t, v in tags.items())
    pixels += bytes(len(pixels) % 2)
    return (
        b"II*\0" + (8 + len(pixels)).to_bytes(4, "little") + pixels + len(tags).to_bytes(2, "little") + table + bytes(4)
    )


def test_of_grey_with_sixteen_bits_one_value_may_be_transparent() -> None:
    values = np.array([[0, 300, 301]], np.uint16)
    data = saved(Image.fromarray(values), "PNG", transparency=300)
    assert np.asarray(open_image(data, LIMIT))[0, :, 0].tolist() == [0, 255, 1]


def test_cmyk_without_a_profile_is_plain() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    got = open_image(saved(image, "TIFF"), LIMIT).getpixel((4, 4))
    assert got == (0, 255, 255)


def test_an_embedded_profile_is_applied_and_a_broken_one_ignored() -> None:
    grey = Image.new("L", (4, 4), 128)
    linear = _linear_grey_profile()
    bright = open_image(saved(grey, "PNG", icc_profile=linear), LIMIT).getpixel((0, 0))
    assert isinstance(bright, tuple)
    assert bright[0] == pytest.approx(188, abs=2)  # sRGB's curve of 0.5
    assert open_image(saved(grey, "PNG", icc_profile=b"no profile at all"), LIMIT).getpixel((0, 0)) == (128, 128, 128)
    rgb = Image.new("RGB", (4, 4), (10, 200, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(saved(rgb, "PNG", icc_profile=srgb), LIMIT).getpixel((0, 0)) == (10, 200, 30)
    assert open_image(saved(rgb, "PNG", icc_profile=linear), LIMIT).getpixel((0, 0)) == (10, 200, 30)  # a grey one


def _linear_grey_profile() -> bytes:
    """A minimal ICC v2 grey profile with gamma 1: header, then the tags wtpt, kTRC, desc and cprt."""

    def text(kind: bytes, value: bytes) -> bytes:
        return kind + bytes(4) + value

    s15 = [int(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249)]
    description = b"linear grey\0"
    bodies = {
        b"wtpt": text(b"XYZ ", b"".join(s15)),
        b"kTRC": text(b"curv", (0).to_bytes(4, "big")),
        b"desc": text(b"desc", len(description).to_bytes(4, "big") + description + bytes(78)),
        b"cprt": text(b"text", b"none\0"),
    }
    table, data, offset = len(bodies).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(bodies)
    for tag, body in bodies.items():
        body += bytes(-len(body) % 4)
        table += tag + (offset + len(data)).to_bytes(4, "big") + len(body).to_bytes(4, "big")
        data += body
    size = 128 + len(table) + len(data)
    head = size.to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0" + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(s15)
    return head + bytes(128 - len(head)) + table + data


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0))]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data, LIMIT).getpixel((4, 4)) == (255, 0, 0)


def test_a_bomb_is_refused_by_what_it_declares() -> None:
    error = error_of(saved(Image.new("1", (1001, 1000)), "PNG"))
    assert error.error_class == "bomb"
    assert "1001000 pixels" in error.message
    assert "1000000 pixels" in error.message
    assert open_image(saved(Image.new("1", (1000, 1000)), "PNG"), LIMIT).size == (1000, 1000)


def test_a_declared_bomb_is_refused_without_being_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    assert error_of(data).error_class == "bomb"
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit is as it was


def test_a_bomb_inside_an_icon_is_refused() -> None:
    inner = saved(Image.new("1", (1001, 1000)), "PNG")
    entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little") + (22).to_bytes(4, "little")
    assert error_of(b"\0\0\1\0\1\0" + entry + inner).error_class == "bomb"


def large_tile() -> bytes:
    """A TIFF of 16x16 pixels in one tile of 4096x4096."""
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 4096, 323: 4096, 324: 8, 325: 16_777_216}
    table = b"".join(t.to_bytes(2, "little") + b"\4\0\1\0\0\0" + v.to_bytes(4, "little") for t, v in tags.items())
    return b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + table + bytes(4)


def test_a_tile_larger_than_the_picture_counts() -> None:
    error = error_of(large_tile())
    assert error.error_class == "bomb"
    assert "4096x4096" in error.message


def test_threads_share_the_limit_and_leave_pillow_as_it_was() -> None:
    small, large = saved(Image.new("1", (1000, 900)), "PNG"), saved(Image.new("1", (1000, 1001)), "PNG")
    filters, limit, wrong = list(warnings.filters), Image.MAX_IMAGE_PIXELS, []

    def work() -> None:
        for _ in range(30):
            if open_image(small, LIMIT).size != (1000, 900):
                wrong.append("small")
            try:
                open_image(large, LIMIT)
                wrong.append("large")
            except ImageError as e:
                if e.error_class != "bomb":
                    wrong.append(e.error_class)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters


def test_want_of_memory_is_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr("tasks.encode.decode.upright_rgb", fail)
    assert error_of(PICTURE).error_class == "memory"


def test_error_classes() -> None:
    photo = saved(corners().resize((300, 200)), "JPEG")
    assert error_of(b"").error_class == "empty"
    assert error_of(b"once upon a time").error_class == "not-an-image"
    assert error_of(photo[: len(photo) // 2]).error_class == "truncated"
    assert error_of(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>').error_class == "unsupported"
    assert error_of(b"%!PS-Adobe-3.0 EPSF-3.0\n").error_class == "unsupported"
    assert error_of(saved(Image.new("F", (4, 4), 0.5), "TIFF")).error_class == "unsupported"
    assert error_of(saved(corners(), "PNG")[:20]).error_class in ("corrupt", "truncated")
    assert "truncated" in str(error_of(photo[:-200]))


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = saved(corners(), "JPEG", exif=b"Exif\0\0this is no TIFF structure", quality=95)
    assert open_image(data, LIMIT).size == (30, 20)


PHOTO = saved(corners().resize((64, 48)), "JPEG")
PICTURE = saved(corners(), "PNG")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([PHOTO, PICTURE]), st.data())
def test_damage_gives_a_picture_or_a_named_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    damaged = damaged[: draw.draw(st.integers(0, len(damaged)))]
    try:
        outcome = open_image(bytes(damaged), LIMIT).mode
    except ImageError as e:
        outcome = e.error_class
    assert outcome in ("RGB", *ERROR_CLASSES)
