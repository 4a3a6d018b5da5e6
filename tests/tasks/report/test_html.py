from __future__ import annotations

import base64
import io
import math

import pytest
from PIL import Image

from tasks.report.html import count, duration, number, percent, png_uri, uri


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(1234), "1,234"),
        (count(3_210_000), "3.21 M"),
        (count(9.2e12), "9.2 T"),
        (percent(0.125, 1), "12.5%"),
        (percent(math.nan), "–"),
        (duration(3.21), "3.2 s"),
        (duration(245), "4 min 05 s"),
        (duration(7800), "2 h 10 min"),
        (number(None), "–"),
        (number(0.012345), "0.0123"),
        (number(12345.6), "12,346"),
    ],
)
def test_figures_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_small_pictures_are_embedded_without_loss() -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    head, data = uri(picture).split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as back:
        assert back.convert("RGB").tobytes() == picture.tobytes()
    assert png_uri(b"abc") == "data:image/png;base64,YWJj"
