"""The month's own parts for an hour: it lives through failures, would notice a wrong step, and comes to its end."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import month
from model.data import work


@pytest.fixture(autouse=True)
def _short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "AHEAD", work.AHEAD)  # the month sets it
    monkeypatch.setattr(month, "HOURS_BETWEEN_FAILURES", 0.1)
    monkeypatch.setattr(month, "SKIP_SHARE", 0.5)
    monkeypatch.setattr(month, "CHECKPOINT_STEPS", 50)


def test_an_hour_of_failures_is_the_ideal_run() -> None:
    found = month.simulate(1 / 24, 0)
    assert found["equal"]
    assert found["runs"] > 3
    assert found["repeated_steps"] > 0
    assert found["skipped_intervals"] > 0
    assert found["rank_checks"] > 8


def test_a_step_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = month.Ideal._of
    monkeypatch.setattr(month.Ideal, "_of", lambda self, a, b: np.flip(whole(self, a, b)) if a else whole(self, a, b))
    with pytest.raises(AssertionError, match="step 1 of a run"):
        month.simulate(1 / 24, 0)


def test_what_s3_would_bear_is_counted() -> None:
    few, many = (month.traffic(64, gigabytes, 3000) for gigabytes in (0.1, 100))
    assert few["hit_rate"] <= many["hit_rate"]
    assert many["requests_per_s"] > 0
    assert many["mb_per_s_and_node"] > 0
