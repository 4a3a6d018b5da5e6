from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.vocabulary import Vocabulary


def test_the_released_layout() -> None:
    v = Vocabulary()
    assert (v.eoi, v.boi, v.eot, v.text_start, v.size, v.text_pieces) == (8196, 8197, 8710, 16384, 65536, 49152)
    assert [v.name(i) for i in (0, 1, 2, 4, 5, 4 + 1234, 8195, 8196, 8197, 8198, 8710, 8711, 16383)] == [
        *("<s>", "<pad>", "</s>", "IMGIMGAZ", "IMGIMGBZ", "IMGIMGBCDEZ", "IMGIMGIBJBZ"),
        *("<eoss>", "<racm3:break>", "<reserved08194>", "<reserved08706>", "<reserved08707>", "<reserved16379>"),
    ]


@given(st.integers(1, 4000), st.integers(2, 500), st.integers(260, 5000))
def test_small_layouts_have_the_same_form(codes: int, reserved: int, text: int) -> None:
    v = Vocabulary(image_codes=codes, text_start=4 + codes + 2 + reserved, size=4 + codes + 2 + reserved + text)
    names = [v.name(i) for i in range(v.size)]
    assert len(set(names)) == v.size
    assert v.is_image_code(4)
    assert v.is_image_code(v.eoi - 1)
    assert not v.is_image_code(v.eoi)
    assert v.boi < v.eot < v.text_start


@pytest.mark.parametrize(
    "bad",
    [{"size": 65537}, {"text_start": 100}, {"image_codes": 0}, {"end_of_turn": 20000}, {"size": 16384 + 259}],
)
def test_impossible_layouts_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        Vocabulary(**bad)


def test_ids_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="65536 is outside"):
        Vocabulary().name(65536)
