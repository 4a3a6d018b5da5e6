"""Picture transforms: sizes, centring, nothing lost when padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import RecipeError
from tasks.encode.transforms import TRANSFORMS, transform

REFERENCE = transform("reference-1")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 33, 64]))
def test_both_ways_give_a_square_of_any_picture(width: int, height: int, side: int) -> None:
    image = Image.new("RGB", (width, height), (10, 200, 90))
    for way in (REFERENCE.crop, REFERENCE.pad):
        pixels = way(image, side)
        assert pixels.shape == (side, side, 3)
        assert pixels.dtype == np.uint8
    assert (REFERENCE.crop(image, side) == (10, 200, 90)).all()  # nothing but the picture in a crop


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


def test_padding_is_white_and_centred() -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    pixels = REFERENCE.pad(image, 32)
    assert (pixels[:8] == 255).all()
    assert (pixels[24:] == 255).all()
    assert (pixels[8:24] == 0).all()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_extreme_aspects_need_little_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (1, 2, 3))
    assert (REFERENCE.crop(image, 512) == (1, 2, 3)).all()  # resized whole it would be 94 GB
    assert (REFERENCE.pad(image, 512) == 255).any()


def test_names() -> None:
    assert all(name == t.name for name, t in TRANSFORMS.items())
    with pytest.raises(RecipeError, match="reference-1"):
        transform("reference-0")
