"""Where faces and salient objects lie in the square."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.encode.transforms import transform
from tasks.scan.faces import Face
from tasks.train.boxes import MIN_SIDE, as_rows, faces_in_square, salient_boxes


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_white_face_lies_where_its_box_says(data: st.DataObject) -> None:
    """The transform moves the pixels and the box alike."""
    width, height = data.draw(st.integers(60, 500)), data.draw(st.integers(60, 500))
    side = data.draw(st.sampled_from([32, 64, 128]))
    w, h = data.draw(st.integers(30, width)), data.draw(st.integers(30, height))
    face = Face(data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)), w, h)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[face.y : face.y + h, face.x : face.x + w] = 255
    square = transform("reference-1").crop(Image.fromarray(picture), side)
    for box in faces_in_square([face], width, height, side):
        white = square[:, :, 0] > 127
        ys, xs = white.nonzero()
        found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        said = (box.x, box.y, box.x + box.width, box.y + box.height)
        assert np.abs(np.subtract(found, said)).max() <= 1


def test_known_places() -> None:
    """400x200 to 100: half the size, the middle from column 50 on."""
    faces = [Face(150, 20, 40, 60), Face(110, 100, 80, 80), Face(0, 20, 60, 60), Face(290, 20, 40, 60)]
    found = faces_in_square(faces, 400, 200, 100)
    assert found == [Face(5, 50, 40, 40), Face(25, 10, 20, 30)]  # the largest first; two are cut off
    assert faces_in_square([Face(150, 20, 2 * MIN_SIDE - 2, 60)], 400, 200, 100) == []  # too narrow once reduced


def test_very_long_pictures_are_cut_before() -> None:
    """Of 1,000x100 the middle 800 are resized; the square is the middle 100."""
    assert faces_in_square([Face(470, 30, 40, 40)], 1000, 100, 100) == [Face(20, 30, 40, 40)]
    assert faces_in_square([Face(20, 30, 40, 40)], 1000, 100, 100) == []


def textured(side: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A slow gradient with a rough patch."""
    ramp = np.linspace(90, 130, side)[None, :].repeat(side, 0)
    picture = np.stack([ramp] * 3, 2)
    x, y, w, h = box
    picture[y : y + h, x : x + w] = np.random.default_rng(0).integers(0, 256, (h, w, 1)).repeat(3, 2)
    return picture.astype(np.uint8)


@pytest.mark.parametrize("box", [(20, 30, 40, 30), (150, 160, 50, 60), (100, 20, 32, 32)])
def test_a_thing_before_a_calm_background_is_found(box: tuple[int, int, int, int]) -> None:
    found = salient_boxes(textured(256, box), 3)
    assert found
    x, y, w, h = box
    a = found[0]
    wide = min(a.x + a.width, x + w) - max(a.x, x)
    high = min(a.y + a.height, y + h) - max(a.y, y)
    assert max(0, wide) * max(0, high) >= 0.8 * w * h  # nearly all of it is inside
    assert a.width * a.height < 0.15 * 256**2  # and most of the background is not


def test_flat_pictures_show_nothing_and_noise_stays_inside() -> None:
    assert salient_boxes(np.full((128, 128, 3), 77, np.uint8), 3) == []
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    for box in salient_boxes(noise, 3):
        assert min(box.x, box.y) >= 0
        assert max(box.x + box.width, box.y + box.height) <= 128
    grey = np.repeat(textured(128, (30, 30, 30, 30))[:, :, :1], 3, 2)
    assert salient_boxes(grey, 1) == salient_boxes(grey, 3)[:1]


def test_rows() -> None:
    boxes = [Face(1, 2, 3, 4), Face(5, 6, 7, 8)]
    assert as_rows(boxes, 3).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert as_rows(boxes, 1).tolist() == [[1, 2, 3, 4]]
    assert as_rows([], 1).tolist() == [[0, 0, 0, 0]]
