from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import RecipeError
from model.training.config import ScheduleConfig
from model.training.schedule import factor, require_decay


def test_exponential_is_the_papers_decay() -> None:
    schedule = ScheduleConfig(kind="exponential", warmup_steps=10, ratio=0.01)
    assert [factor(schedule, s, 110) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    r, t = 0.01, 50 / 100
    assert factor(schedule, 60, 110) == pytest.approx((r**t - r) / (1 - r))
    assert factor(schedule, 110, 110) == pytest.approx(0.0)


def test_cosine_and_constant() -> None:
    cosine = ScheduleConfig(kind="cosine", warmup_steps=0)
    assert factor(cosine, 0, 100) == 1.0
    assert factor(cosine, 25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factor(ScheduleConfig(kind="constant", warmup_steps=2), 50, 100) == 1.0


@given(
    kind=st.sampled_from(["exponential", "cosine", "constant"]),
    warmup=st.integers(0, 50),
    ratio=st.floats(1e-4, 0.9),
    total=st.integers(1, 200),
)
def test_rises_to_the_peak_and_never_again(kind: str, warmup: int, ratio: float, total: int) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": warmup, "ratio": ratio})
    rates = [factor(schedule, s, total) for s in range(total)]
    top = min(warmup, total)
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:top]))
    assert all(a >= b for a, b in pairwise(rates[top:]))


def test_a_training_that_would_end_in_its_warm_up_is_refused() -> None:
    for total in (1000, 4000):
        with pytest.raises(RecipeError, match=rf"warmup_steps is 4,000 and the training has {total:,} steps"):
            require_decay(ScheduleConfig(), total)
    require_decay(ScheduleConfig(), 4001)
    require_decay(ScheduleConfig(kind="constant"), 1000)
    require_decay(ScheduleConfig(warmup_steps=0), 1)
    require_decay(ScheduleConfig(), 0)  # everything is skipped
