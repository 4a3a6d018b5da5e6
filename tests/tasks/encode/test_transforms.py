"""Picture transforms: sizes, centring, nothing lost when padding."""

from __future__ import annotations

import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from infra.errors import RecipeError
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import TRANSFORMS, transform

REFERENCE, FAST = transform("reference-1"), transform("fast-1")
LIMIT = 50_000_000


def plain_pillow(image: Image.Image, side: int) -> np.ndarray:
    """What ``reference-1`` must equal, in Pillow's own words."""
    width, height = image.size
    short = min(width, height)
    size = (math.floor(width * side / short + 0.5), math.floor(height * side / short + 0.5))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + side, top + side)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """As smooth as photographs are, and different in every corner."""
    return noise(7, 5, seed).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, float(((a.astype(float) - b) ** 2).mean())))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 33, 64]))
def test_both_ways_give_a_square_of_any_picture(width: int, height: int, side: int) -> None:
    image = Image.new("RGB", (width, height), (10, 200, 90))
    for way in (REFERENCE.crop, REFERENCE.pad, FAST.crop, FAST.pad):
        pixels = way(image, side)
        assert pixels.shape == (side, side, 3)
        assert pixels.dtype == np.uint8
    for how in (REFERENCE, FAST):
        assert (how.crop(image, side) == (10, 200, 90)).all()  # nothing but the picture in a crop


def test_a_square_of_the_right_size_is_untouched() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(REFERENCE.crop(image, 32), pixels)
    assert np.array_equal(REFERENCE.pad(image, 32), pixels)


def test_crop_keeps_the_middle_with_the_offset_rounded_down() -> None:
    pixels = np.zeros((4, 9, 3), np.uint8)
    pixels[:, :, 0] = np.arange(9) * 10
    assert REFERENCE.crop(Image.fromarray(pixels), 4)[0, :, 0].tolist() == [20, 30, 40, 50]
    assert REFERENCE.crop(Image.fromarray(pixels.transpose(1, 0, 2).copy()), 4)[:, 0, 0].tolist() == [20, 30, 40, 50]


def test_crop_is_lanczos_on_the_whole_picture() -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (100, 151, 3), dtype=np.uint8))
    resized = image.resize((97, 64), Image.Resampling.LANCZOS)  # 151 * 64 / 100 = 96.64
    assert np.array_equal(REFERENCE.crop(image, 64), np.asarray(resized)[:, 16:80])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([8, 33, 64, 128]), st.integers(0, 9))
def test_reference_is_bit_identical_to_plain_pillow(width: int, height: int, side: int, seed: int) -> None:
    if max(width, height) > 8 * min(width, height):
        width = height = max(width, height)
    image = noise(width, height, seed)
    assert np.array_equal(REFERENCE.crop(image, side), plain_pillow(image, side))


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (1023, 769), (513, 4000), (4000, 513), (511, 512), (2731, 2048)]
)
def test_reference_is_bit_identical_at_real_sizes(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(REFERENCE.crop(image, 512), plain_pillow(image, 512))


def test_reference_is_bit_identical_on_real_files(shared_data: Path) -> None:
    files = sorted((shared_data / "pairs" / "images").iterdir())[::25]
    for path in files:
        data = path.read_bytes()
        expected = plain_pillow(open_image(data, LIMIT), 512)
        assert np.array_equal(REFERENCE.crop_file(data, 512, LIMIT), expected), path.name
        with Image.open(path) as image:
            if image.mode == "RGB" and not image.info.get("icc_profile"):  # then decoding is plain, too
                assert np.array_equal(plain_pillow(image.convert("RGB"), 512), expected), path.name


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 700), st.integers(20, 700), st.integers(1, 8), st.sampled_from([40, 64, 150]))
def test_fast_lies_where_reference_lies(width: int, height: int, orientation: int, side: int) -> None:
    """Also turned, at odd sizes and decoded at a fraction: half a pixel off would be seen."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(width, height, width), exif=exif, subsampling=0)
    for fast, reference in ((FAST.crop_file, REFERENCE.crop_file), (FAST.pad_file, REFERENCE.pad_file)):
        assert psnr(fast(data, side, LIMIT), reference(data, side, LIMIT)) > 33


@pytest.mark.parametrize("size", [(2047, 1601), (1601, 2047), (4097, 1025), (515, 1200), (600, 520), (300, 200)])
def test_fast_is_close_to_reference_from_a_picture_too(size: tuple[int, int]) -> None:
    image = photo(*size)
    assert psnr(FAST.crop(image, 512), REFERENCE.crop(image, 512)) > 38
    assert psnr(FAST.pad(image, 512), REFERENCE.pad(image, 512)) > 38


def test_fast_on_real_files(shared_data: Path) -> None:
    files = sorted((shared_data / "pairs" / "images").iterdir())[::25]
    values = []
    for data in (path.read_bytes() for path in files):
        fast = FAST.crop_file(data, 512, LIMIT)
        values.append(psnr(fast, REFERENCE.crop_file(data, 512, LIMIT)))
        assert np.array_equal(fast, FAST.crop_file(data, 512, LIMIT))
    assert min(values) > 38
    assert float(np.median(values)) > 45


def test_fast_leaves_what_is_not_plain_to_the_reference_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def opencv(*_: object) -> None:
        raise AssertionError("decoded by OpenCV")

    image = photo(90, 60)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # no RGB profile: not usable, so plain
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    foreign = srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    assert foreign != srgb
    plain = [jpeg(image), jpeg(image.convert("L")), jpeg(image, icc_profile=srgb), jpeg(image, icc_profile=lab)]
    out = io.BytesIO()
    image.save(out, "PNG")
    other = [jpeg(image.convert("CMYK")), jpeg(image, icc_profile=foreign), out.getvalue()]
    monkeypatch.setattr(cv2, "imdecode", opencv)
    for data in plain:
        with pytest.raises(ImageError, match="decoded by OpenCV"):
            FAST.crop_file(data, 64, LIMIT)
    for data in other:
        assert psnr(FAST.crop_file(data, 64, LIMIT), REFERENCE.crop_file(data, 64, LIMIT)) > 38


def test_fast_refuses_what_reference_refuses() -> None:
    data = jpeg(photo(300, 200))
    for bad, error in ((b"", "empty"), (data[:-200], "truncated"), (b"no picture", "not-an-image")):
        for how in (REFERENCE, FAST):
            for way in (how.crop_file, how.pad_file):
                with pytest.raises(ImageError) as caught:
                    way(bad, 64, LIMIT)
                assert caught.value.error_class == error
    for how in (REFERENCE, FAST):
        with pytest.raises(ImageError, match="bomb"):
            how.crop_file(data, 64, 59_999)


def test_fast_uses_one_thread() -> None:
    assert cv2.getNumThreads() == 1


def test_padding_is_white_and_centred() -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    pixels = REFERENCE.pad(image, 32)
    assert (pixels[:8] == 255).all()
    assert (pixels[24:] == 255).all()
    assert (pixels[8:24] == 0).all()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (3_000_000, 1)])
def test_extreme_aspects_need_little_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (1, 2, 3))
    for how in (REFERENCE, FAST):
        assert (how.crop(image, 512) == (1, 2, 3)).all()  # resized whole it would be 94 GB
        assert (how.pad(image, 512) == 255).any()


def test_names() -> None:
    assert all(name == t.name for name, t in TRANSFORMS.items())
    with pytest.raises(RecipeError, match="reference-1"):
        transform("reference-0")
