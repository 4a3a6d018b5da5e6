from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.browse.originals import FACE, THUMBNAIL, cut, first_bytes, pieces_of, thumbnail


def test_faces_are_framed_where_they_are() -> None:
    picture = Image.new("RGB", (800, 400), "white")
    small = thumbnail(picture, [{"x": 200, "y": 100, "width": 400, "height": 200}])
    assert small.size == (THUMBNAIL, THUMBNAIL // 2)
    pixels = np.asarray(small)
    marked = np.argwhere((pixels == FACE).all(axis=2))
    scale = THUMBNAIL / 800
    assert abs(marked[:, 1].min() - 200 * scale) <= 1
    assert abs(marked[:, 1].max() - 600 * scale) <= 1
    assert abs(marked[:, 0].min() - 100 * scale) <= 1
    assert abs(marked[:, 0].max() - 300 * scale) <= 1
    assert tuple(pixels[THUMBNAIL // 4, THUMBNAIL // 2]) == (255, 255, 255), "only a frame"
    assert picture.getpixel((200, 100)) == (255, 255, 255), "the original is not drawn on"


def test_a_picture_without_faces_is_only_made_smaller() -> None:
    assert thumbnail(Image.new("RGB", (10, 30))).size == (10, 30)


def test_first_bytes_in_hex_and_as_text() -> None:
    assert first_bytes(b"\x89PNG\r\n") == "89 50 4e 47 0d 0a\n.PNG.."
    assert first_bytes(b"") == "(no bytes)"
    assert first_bytes(bytes(100)).count("00") == 48


def test_long_texts_are_cut_and_say_so() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd" * 500, 3) == "abc… (2,000 characters)"
    (alone,) = pieces_of([{"role": None, "text": "x" * 2000, "image": None}])
    assert alone["text"] == "x" * 1200 + "… (2,000 characters)"
    pieces = pieces_of(
        [{"role": "", "text": "x" * 2000, "image": None}, {"role": "user", "text": None, "image": 0}] * 30
    )
    assert pieces[0]["text"] == "x" * 400 + "… (2,000 characters)"
    assert pieces[1] == {"role": "user", "image": 0}
    assert len(pieces) == 41
    assert pieces[-1]["text"] == "… and 20 more pieces"
