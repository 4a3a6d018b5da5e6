from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.generation.sample import RowRandom, sample


def draw(logits: list[float], temperature: float, top_p: float, uniform: float) -> int:
    args = (torch.tensor([x]) for x in (temperature, top_p, uniform))
    return int(sample(torch.tensor([logits]), *args))


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_lowest_id():
    assert draw([0.0, 2.0, 2.0, 1.0], 0.0, 1.0, 0.999) == 1


def test_the_share_of_draws_is_the_probability():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    drawn = sample(p.log().expand(n, 4), torch.ones(n), torch.ones(n), uniform)
    assert torch.allclose(drawn.bincount(minlength=4) / n, p, atol=0.01)
    kept = sample(p.log().expand(n, 4), torch.ones(n), torch.full((n,), 0.7), uniform)
    assert torch.allclose(kept.bincount(minlength=4) / n, torch.tensor([0.625, 0.375, 0, 0]), atol=0.01)


def test_temperature_sharpens():
    p = torch.tensor([0.6, 0.4])
    uniform = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    cold = sample(p.log().expand(10_000, 2), torch.full((10_000,), 0.5), torch.ones(10_000), uniform)
    assert abs(float((cold == 0).float().mean()) - 0.36 / (0.36 + 0.16)) < 0.02


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=30),
    st.integers(0, 29),
    st.floats(0, 5),
    st.floats(0.001, 1),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_masked_id_is_never_drawn(logits, masked, temperature, top_p, uniform):
    masked %= len(logits)
    logits = [-float("inf") if i == masked else x for i, x in enumerate(logits)]
    assert draw(logits, temperature, top_p, uniform) != masked


def test_a_rows_numbers_depend_on_its_seed_alone():
    together, alone = RowRandom([1, 2, 3], block=4), RowRandom([2], block=4)
    for _ in range(10):
        assert together()[1] == alone()[0]
    assert RowRandom([1])() != RowRandom([2])()
