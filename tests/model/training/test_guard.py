from __future__ import annotations

import pickle

from model.training.config import GuardConfig
from model.training.guard import NonFiniteError, SpikeGuard


def test_a_spike_is_found_against_the_rolling_median() -> None:
    guard = SpikeGuard(GuardConfig(spike_window=8, spike_factor=4))
    assert all(guard.spike(norm) is None for norm in (1.0, 50.0, 1, 1, 1, 1, 1, 1))  # quiet while it learns
    assert guard.spike(3.9) is None
    assert guard.spike(5.0) == 5.0


def test_its_state_goes_on_where_it_was() -> None:
    config = GuardConfig(spike_window=8, spike_factor=2)
    one, other = SpikeGuard(config), SpikeGuard(config)
    for norm in range(1, 10):
        one.spike(norm)
    other.load_state_dict(one.state_dict())
    assert one.spike(100) == other.spike(100) == 100 / 5.5


def test_the_error_names_step_stage_and_sequences_and_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteError.of("the loss is not finite", 7, list(range(40)), "stage-2")))
    assert "step 7" in str(error)
    assert "stage-2" in str(error)
    assert "30, 31 …" in str(error)
