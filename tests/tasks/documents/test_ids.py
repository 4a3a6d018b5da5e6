from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vocabulary import BOS, EOS, PAD, Vocabulary
from tasks.documents.ids import Ids, token_fault

V = Vocabulary(image_codes=16, text_start=32, size=600)
CODES = 3
PICTURE = [V.boi, 4, 19, 7, V.eoi]
TEXT = [40, 599]


def fault(ids: list[int]) -> str:
    return token_fault(np.array(ids, np.uint16), V, CODES)


@given(st.lists(st.sampled_from([PICTURE, TEXT, [V.eot], [32]]), min_size=1))
def test_whole_pictures_texts_and_turns_are_fine(parts: list[list[int]]) -> None:
    assert fault([i for part in parts for i in part]) == ""


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "no ids"),
        ([40, 600], "id 600: the vocabulary has 600"),
        ([40, BOS, 41], "<s> at place 1"),
        ([EOS], "</s> at place 0"),
        ([40, PAD], "<pad> at place 1"),
        ([V.boi], "cut off: 1 of its 5"),
        ([40, *PICTURE[:-1]], "at place 1 is cut off: 4 of its 5"),
        ([V.boi, 4, 5, 6, 40], "at place 0 is not 3 codes"),
        ([V.boi, 4, 40, 6, V.eoi], "at place 0 is not 3 codes"),
        ([V.boi, 4, 5, 6, 7, V.eoi], "at place 0 is not 3 codes"),
        ([*PICTURE, V.boi, 4, 5, V.eoi, 40], "at place 5 is not 3 codes"),
        ([V.boi, V.boi, 4, 5, 6, V.eoi], "at place 0 is not 3 codes"),
        ([40, 4, 41], "at place 1 stands outside"),
        ([*PICTURE, V.eoi], "<eoss> at place 5 stands outside"),
        ([5, *PICTURE], "at place 0 stands outside"),
    ],
)
def test_every_break_of_the_form_is_named(ids: list[int], says: str) -> None:
    assert says in fault(ids)


@given(st.lists(st.sampled_from([*PICTURE, *TEXT, V.eot, BOS, PAD, EOS, 4, 5, 6]), max_size=12))
def test_it_agrees_with_reading_one_id_after_another(ids: list[int]) -> None:
    assert (fault(ids) == "") == _is_whole(ids)


def _is_whole(ids: list[int]) -> bool:
    at = 0
    while at < len(ids):
        block = ids[at : at + CODES + 2]
        if (
            block[0] == V.boi
            and len(block) == CODES + 2
            and block[-1] == V.eoi
            and all(4 <= c < 20 for c in block[1:-1])
        ):
            at += CODES + 2
        elif V.first_reserved <= ids[at] < V.size:
            at += 1
        else:
            return False
    return bool(ids)


def test_it_takes_a_read_only_view() -> None:
    ids: Ids = np.frombuffer(np.array(PICTURE, "<u2").tobytes(), "<u2")
    assert token_fault(ids, V, CODES) == ""
