from __future__ import annotations

import io

import pytest
from PIL import Image

from tasks.sheets import Cell, cut, fit, labelled, png, tiles

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (16, 16), "blue")


def test_tiles_are_cut_apart_again() -> None:
    rows = cut(tiles([[RED, None, BLUE], [BLUE]], 8), 8)
    assert [len(r) for r in rows] == [3, 3]
    assert [p.getpixel((4, 4)) for p in rows[0]] == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]
    assert rows[1][0].getpixel((0, 0)) == (0, 0, 255)
    assert all(p.size == (8, 8) for row in rows for p in row)


def test_equal_pictures_give_equal_bytes() -> None:
    assert tiles([[RED]], 8) == tiles([[RED.copy()]], 8)


def test_much_smaller_pictures_keep_their_pixels() -> None:
    dots = Image.new("RGB", (2, 2), "white")
    dots.putpixel((0, 0), (0, 0, 0))
    assert set(fit(dots, 8).get_flattened_data()) == {(0, 0, 0), (255, 255, 255)}
    assert fit(BLUE, 16) is BLUE


@pytest.mark.parametrize("count", [0, 1, 9])
def test_labelled_sheet_has_room_for_all(count: int) -> None:
    cells = [Cell(BLUE, ["a name that is much too long for its cell, as names go", "a second line"])] * count
    sheet = labelled(cells, side=32, columns=4, title="Title")
    step = 32 + 12
    assert sheet.width == max(1, min(4, count)) * step + 12
    blue = [p for p in sheet.get_flattened_data() if p == (0, 0, 255)]
    assert len(blue) == count * 32 * 32
    # No word reaches into the gap to the right of the last column.
    assert not [x for x in range(sheet.width - 12, sheet.width) if sheet.getpixel((x, sheet.height - 10)) != (255,) * 3]
    Image.open(io.BytesIO(png(sheet))).verify()
