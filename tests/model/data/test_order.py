from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.order import Order, Permutation

slices = st.lists(st.integers(0, 30), min_size=1, max_size=3)
stage_lists = st.lists(slices, min_size=1, max_size=4).filter(lambda stages: any(map(sum, stages)))


def order_of(stages: list[list[int]], seed: int = 0) -> Order:
    return Order([(f"stage-{i}", sizes) for i, sizes in enumerate(stages)], seed)


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40))
def test_is_a_permutation(n: int, seed: int) -> None:
    found = Permutation(n, seed).all()
    assert sorted(found.tolist()) == list(range(n))


def test_numbers_alone_equal_numbers_together() -> None:
    p = Permutation(1000, 7, "x")
    together = p.all()
    assert [int(p(i)) for i in range(1000)] == together.tolist()
    np.testing.assert_array_equal(p(np.arange(1000).reshape(10, 100)), together.reshape(10, 100))


def test_keys_give_other_orders_and_equal_keys_equal_ones() -> None:
    a, b, c = (Permutation(500, *key).all() for key in ((1, "s"), (1, "s"), (2, "s")))
    np.testing.assert_array_equal(a, b)
    assert (a == c).sum() < 10


def test_the_order_is_pinned() -> None:
    """A changed permutation would change every run in the middle: it needs another plan version."""
    assert Permutation(10, 0, "order", "stage-1", 0).all().tolist() == PINNED


PINNED = [6, 5, 8, 3, 1, 0, 7, 2, 9, 4]


def test_spreads_evenly() -> None:
    """Where the first half goes: the share of it in any tenth is within 5σ of a half."""
    n = 20_000
    found = Permutation(n, 3).all()
    first_half = np.flatnonzero(found < n // 2)
    counts, _ = np.histogram(first_half, bins=10, range=(0, n))
    assert np.abs(counts - n / 20).max() < 5 * np.sqrt(n / 10 * 0.25)


def test_huge_ranges_need_no_memory() -> None:
    n = 2_250_000_000
    p = Permutation(n, 1)
    found = p(np.arange(n - 1000, n))
    assert len(set(found.tolist())) == 1000
    assert found.max() < n
    assert found.max() > n // 2


def test_refuses_numbers_outside() -> None:
    for number in (-1, 5):
        with pytest.raises(IndexError):
            Permutation(5, 0)(number)


@settings(deadline=None)
@given(stages=stage_lists, seed=st.integers(0, 1000))
def test_every_sequence_has_one_position(stages: list[list[int]], seed: int) -> None:
    order = order_of(stages, seed)
    assert len(order) == sum(map(sum, stages))
    seen: list[list[int]] = [[] for _ in stages]
    for position in range(len(order)):
        stage, sequences = order.locate([position])
        seen[stage].append(int(sequences[0]))
    for sizes, found in zip(stages, seen, strict=True):
        at = 0
        for size in sizes:  # slice after slice, each a permutation of its own numbers
            assert sorted(found[at : at + size]) == list(range(at, at + size))
            at += size


@settings(deadline=None)
@given(stages=stage_lists, batch=st.integers(1, 40))
def test_batches_end_with_their_stage(stages: list[list[int]], batch: int) -> None:
    order = order_of(stages)
    cursor, seen, steps = 0, [], 0
    while (found := order.next_batch(cursor, batch)) is not None:
        positions, cursor = found
        assert 0 < len(positions) <= batch
        assert len({order.stage_of(p) for p in positions}) == 1
        assert positions == list(order.step(steps, batch))
        seen += positions
        steps += 1
    assert seen == list(range(len(order)))
    assert steps == order.steps(batch)
    with pytest.raises(IndexError):
        order.step(steps, batch)


@settings(deadline=None)
@given(
    stages=stage_lists,
    batch=st.integers(1, 40),
    skipped=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 50)).map(lambda t: (t[0], t[0] + t[1])), max_size=3),
)
def test_skipped_positions_never_come(stages: list[list[int]], batch: int, skipped: list[tuple[int, int]]) -> None:
    order = order_of(stages)
    cursor, seen = 0, []
    while (found := order.next_batch(cursor, batch, skipped)) is not None:
        positions, cursor = found
        assert len({order.stage_of(p) for p in positions}) == 1
        ends = order.stage_span(order.stage_of(positions[0]))[1]
        rest = [p for p in range(positions[-1] + 1, ends) if not any(a <= p < b for a, b in skipped)]
        assert len(positions) == batch or not rest  # short only where the stage has nothing more
        seen += positions
    assert seen == [p for p in range(len(order)) if not any(a <= p < b for a, b in skipped)]


def test_positions_of_two_stages_are_refused() -> None:
    order = order_of([[3], [3]])
    with pytest.raises(IndexError, match="more than one stage"):
        order.locate([2, 3])
    with pytest.raises(IndexError, match="position 6"):
        order.stage_of(6)
