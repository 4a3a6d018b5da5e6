from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mix.bestfit import best_fit

lengths_of = st.integers(4, 60).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=120))
)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as written in a textbook: used tokens of each sequence, sorted."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@settings(deadline=None)
@given(lengths_of)
def test_is_best_fit_decreasing_and_nothing_overlaps(given: tuple[int, list[int]]) -> None:
    capacity, lengths = given
    sequence_N, offset_N, count = best_fit(np.array(lengths, np.int64), capacity)
    used = np.zeros((count, capacity), np.int64)
    for length, sequence, offset in zip(lengths, sequence_N.tolist(), offset_N.tolist(), strict=True):
        assert 0 <= offset <= capacity - length
        used[sequence, offset : offset + length] += 1
    assert used.max(initial=0) <= 1
    fill = used.sum(axis=1)
    for sequence in range(count):  # from the front, without holes
        assert used[sequence, : fill[sequence]].all()
    assert sorted((capacity - fill).tolist()) == one_by_one(lengths, capacity)


def test_a_mixture_with_short_texts_is_full() -> None:
    """Lengths like the paper's: pictures of 1,026 tokens with captions, texts of every length, 4,096 a sequence."""
    rng = np.random.default_rng(0)
    pairs = 1028 + rng.integers(5, 60, 3000)
    texts = np.minimum(rng.lognormal(6, 1.2, 7000).astype(np.int64) + 3, 4096)
    lengths = np.concatenate([pairs, texts])
    _, _, count = best_fit(lengths, 4096)
    assert lengths.sum() / (count * 4096) > 0.999


def test_impossible_lengths_are_refused() -> None:
    for bad in (0, 9):
        with pytest.raises(ValueError, match="capacity of 8"):
            best_fit(np.array([bad], np.int64), 8)
