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


def test_positions_of_two_stages_are_refused() -> None:
    order = order_of([[3], [3]])
    with pytest.raises(IndexError, match="more than one stage"):
        order.locate([2, 3])
    with pytest.raises(IndexError, match="position 6"):
        order.stage_of(6)


def test_the_share_of_pictures_is_that_of_chance() -> None:
    """100 consecutive batches anywhere: as often beyond three standard errors as independent draws would be."""
    slices, batch = [30_000, 30_000], 8
    rng = np.random.default_rng(0)
    image = np.concatenate([np.sort(rng.choice([0, 1026, 2052, 4096], n, p=[0.4, 0.2, 0.2, 0.2])) for n in slices])
    beyond = windows = 0
    for seed in range(30):
        order = Order([("stage-1", slices)], seed)
        share_N = image[order.locate(np.arange(sum(slices)))[1]] / 4096
        means = share_N[: len(share_N) // (100 * batch) * 100 * batch].reshape(-1, 100 * batch).mean(1)
        error = share_N.std() / np.sqrt(100 * batch)
        beyond += int((np.abs(means - share_N.mean()) > 3 * error).sum())
        windows += len(means)
    assert windows == 30 * 75
    assert beyond <= 15  # 6 are expected
