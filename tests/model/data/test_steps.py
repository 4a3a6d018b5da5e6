from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError
from model.data.order import Order
from model.data.steps import BatchSizes, Steps

STAGES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=4).filter(
    lambda stages: any(map(sum, stages))
)
SIZES = st.tuples(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=3)).map(
    lambda drawn: BatchSizes.of(drawn[0], sorted(dict(drawn[1]).items()))
)
SKIPPED = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 50)).map(lambda t: (t[0], t[0] + t[1])), max_size=4)


def order_of(stages: list[list[int]]) -> Order:
    return Order([(f"stage-{i}", sizes) for i, sizes in enumerate(stages)], 0)


def walked(order: Order, sizes: BatchSizes, skipped: list[tuple[int, int]]) -> list[list[int]]:
    """The steps found by walking over every position: what the closed form must equal."""
    steps: list[list[int]] = []
    borders = {order.stage_span(s)[0] for s in range(len(order.names))} | {start for start, _ in sizes.phases}
    cut = True
    for position in range(len(order)):
        cut |= position in borders
        if any(a <= position < b for a, b in skipped):
            continue
        if cut or len(steps[-1]) == sizes.at(position):
            steps.append([])
        steps[-1].append(position)
        cut = False
    return steps


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stages=STAGES, sizes=SIZES, skipped=SKIPPED)
def test_the_closed_form_equals_walking(
    stages: list[list[int]], sizes: BatchSizes, skipped: list[tuple[int, int]]
) -> None:
    order = order_of(stages)
    steps = Steps(order, sizes, skipped)
    expected = walked(order, sizes, skipped)
    found = [
        steps.positions(range(step.start, step.stop)).tolist() for step in map(steps.__getitem__, range(len(steps)))
    ]
    assert found == expected
    consumed = 0
    for number, positions in enumerate(expected):
        step = steps[number]
        assert steps.at(consumed) == step.number == number
        assert step.stage == order.stage_of(positions[0]) == order.stage_of(positions[-1])
        assert step.batch == sizes.at(positions[0])
        consumed = steps.consumed(step)
        assert consumed == positions[-1] + 1
        for inside in positions[1:]:
            with pytest.raises(ValueError, match="inside a step"):
                steps.at(inside)
    assert steps.at(consumed) == steps.at(len(order)) == len(steps)
    with pytest.raises(IndexError):
        steps[len(steps)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stages=STAGES, sizes=SIZES, skipped=SKIPPED, at=st.integers(0, 100), data=st.data())
def test_what_is_behind_does_not_change_with_what_is_ahead(
    stages: list[list[int]], sizes: BatchSizes, skipped: list[tuple[int, int]], at: int, data: st.DataObject
) -> None:
    order = order_of(stages)
    before = Steps(order, sizes, skipped)
    if not len(before):
        return
    step = before[at % len(before)]
    consumed = before.consumed(step)
    more = [(consumed + a, consumed + b) for a, b in data.draw(SKIPPED)]
    after = Steps(order, sizes.then(consumed, data.draw(SIZES)), [*skipped, *more])
    for number in range(step.number + 1):
        a, b = before[number], after[number]
        assert before.positions(range(a.start, a.stop)).tolist() == after.positions(range(b.start, b.stop)).tolist()
    assert after.at(consumed) == step.number + 1


def test_full_size_needs_no_time() -> None:
    slices = [1 << 20] * 2146
    order = Order([("stage-1", slices[:1717]), ("stage-2", slices[1717:])], 1)
    sizes = BatchSizes.of(2048, [(1_000_000, 512), (3_000_000, 1024)])
    steps = Steps(order, sizes, [(7_000_000, 7_204_800), (2_000_000_000, 2_000_001_000)])
    step = steps[steps.at(steps.consumed(steps[900_000]))]
    assert step.number == 900_001
    assert len(steps) == pytest.approx(len(order) / 2048, rel=0.01)


def test_batch_sizes() -> None:
    sizes = BatchSizes.of(32, [(100, 8), (200, 16)])
    assert sizes.phases == ((0, 8), (100, 16), (200, 32))
    assert [sizes.at(p) for p in (0, 99, 100, 199, 200, 10**12)] == [8, 8, 16, 16, 32, 32]
    assert sizes.largest == 32
    assert BatchSizes.of(sizes) is sizes
    assert sizes.since(150) == ((150, 16), (200, 32))
    assert sizes.then(150, BatchSizes.of(4)).phases == ((0, 8), (100, 16), (150, 4))
    with pytest.raises(RecipeError, match="rise"):
        BatchSizes.of(1, [(5, 1), (5, 2)])
    with pytest.raises(RecipeError, match="begin with 0"):
        BatchSizes(((3, 1),))
    with pytest.raises(RecipeError, match="from position 5 on is 0"):
        BatchSizes.of(0, [(5, 1)])
