from __future__ import annotations

import time

import pytest

from model.training.clock import StepClock


def test_a_step_lasts_from_the_one_before_without_what_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    steps = StepClock()
    with steps.part("data_s"):
        passes(0.5)
    passes(2)
    assert steps.lap() == (2.5, {"data_s": 0.5})
    with steps.part("save_s", aside=True):
        passes(10)
    passes(1)  # writing the line belongs to the next step
    for _ in range(2):
        with steps.part("data_s"):
            passes(0.25)
    assert steps.lap() == (1.5, {"data_s": 0.5, "save_s": 10.0})
    passes(7)
    steps.restart()
    passes(1)
    assert steps.lap() == (1.0, {})
