from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mix.bestfit import best_fit
from tasks.mix.cut import Uses, cut_all
from tasks.mix.fill import fill_rooms

CAPACITY, PICTURE = 64, 20
lengths = st.one_of(st.integers(3, 400), st.sampled_from([CAPACITY, CAPACITY + 1, 2 * CAPACITY, 50, 57]))
documents = st.lists(st.tuples(lengths, st.booleans()), max_size=60)


def packed(documents: list[tuple[int, bool]]) -> tuple[Uses, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Documents by length, and whether they begin with a picture: laid out and filled."""
    lengths = np.array([n for n, _ in documents], np.int64)
    pictured = np.array([p and n >= PICTURE for n, p in documents], np.bool_)
    known = (pictured & (lengths > CAPACITY)).astype(np.int64)
    none = np.zeros(len(documents), np.int64)
    uses = Uses(none, none, none, none, lengths, pictured * PICTURE, known, np.cumsum(known) - known)
    pieces = cut_all(uses, np.zeros(int(known.sum()), np.int64), CAPACITY)
    sequence_P, offset_P, before = best_fit(pieces.length_P, CAPACITY)
    pieces, sequence_P, offset_P, after = fill_rooms(pieces, lengths, sequence_P, offset_P, before, CAPACITY)
    table = np.stack([pieces.use_P, pieces.first_P, pieces.length_P, pieces.image_P])
    return uses, pictured, table, sequence_P, offset_P, before, after


@pytest.fixture(autouse=True, scope="module")
def small_rooms() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.mix.fill.MIN_ROOM", 4)
        yield


@settings(deadline=None, max_examples=200)
@given(documents)
def test_every_token_lies_in_one_place_and_what_must_stay_whole_does(documents: list[tuple[int, bool]]) -> None:
    uses, pictured, table, sequence_P, offset_P, before, after = packed(documents)
    assert after <= before
    seen = [np.zeros(n, np.int64) for n, _ in documents]
    taken = np.zeros((after, CAPACITY), np.int64)
    for (use, first, length, image), sequence, offset in zip(
        table.T.tolist(), sequence_P.tolist(), offset_P.tolist(), strict=True
    ):
        assert length > 0
        seen[use][first : first + length] += 1
        taken[sequence, offset : offset + length] += 1
        assert offset + length <= CAPACITY
        whole = uses.length_K[use] <= CAPACITY
        assert not whole or (first, length) == (0, documents[use][0])
        if pictured[use]:
            assert image == (PICTURE if first == 0 else 0)
            assert first == 0 or first >= PICTURE
            assert first > 0 or length >= PICTURE
    assert all((s == 1).all() for s in seen)
    assert taken.max(initial=0) <= 1
    used = taken.sum(axis=1)
    assert sorted(set(sequence_P.tolist())) == list(range(after))
    for sequence in range(after):  # from the front, without holes
        assert taken[sequence, : used[sequence]].all()


@settings(deadline=None, max_examples=200)
@given(documents)
def test_rooms_stay_only_where_there_is_no_text_for_them(documents: list[tuple[int, bool]]) -> None:
    uses, _, table, sequence_P, _, before, after = packed(documents)
    used = np.bincount(sequence_P, table[2], after)
    rooms = CAPACITY - used[CAPACITY - used >= 4]
    texts_left = (table[2] == CAPACITY) & (table[3] == 0) & (uses.length_K[table[0]] > CAPACITY)
    assert not texts_left.any() or rooms.sum() < CAPACITY
    assert (before - after) * CAPACITY <= before * CAPACITY - table[2].sum()


def test_a_document_that_just_fits_is_never_cut() -> None:
    _, _, table, _, _, before, after = packed([(CAPACITY, False)] * 9 + [(50, False)] * 40)
    assert before == after
    assert (table[2] == np.where(table[0] < 9, CAPACITY, 50)).all()


def test_three_pairs_and_a_long_text_are_full() -> None:
    pairs = [(19, False)] * 300  # 57 of 64
    _, _, table, _, _, before, after = packed([*pairs, (400, False), (400, False)])
    assert before > after
    assert table[2].sum() / (after * CAPACITY) > 0.99
