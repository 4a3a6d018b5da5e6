from __future__ import annotations

import itertools
import json
import pickle

import pytest

from model.data.loader import Place
from model.training.config import GradientSpikeConfig, GuardConfig, LossSpikeConfig, OutputNormConfig
from model.training.guard import Finding, Guard, NonFiniteError, Rollback, RollbackError


def quiet(guard: Guard, values: list[float]) -> bool:
    """Whether gradients of these norms are let through without a word."""
    return not any(guard.judge(step, 1.0, norm, 1.0) for step, norm in enumerate(values, 1))


def test_a_spike_is_found_against_the_rolling_median() -> None:
    guard = Guard(GuardConfig(gradients=GradientSpikeConfig(window=8, factor=4)))
    assert quiet(guard, [1.0, 50.0, 1, 1, 1, 1, 1, 1, 3.9])  # until the window is full, whatever comes
    (found,) = guard.judge(10, 1.0, 5.0, 1.0)
    assert found == Finding("gradients", "warn", 10, 10, 5.0, 5.0)
    assert str(found) == "step 10: the gradient norm, 5, is 5.0 times its rolling median"


def test_the_gravest_finding_is_the_last_and_a_skipped_step_is_counted() -> None:
    rules = GuardConfig(
        loss=LossSpikeConfig(window=8, factor=1.5, action="skip"), gradients=GradientSpikeConfig(window=8, factor=4)
    )
    guard = Guard(rules)
    assert quiet(guard, [1.0] * 8)
    found = guard.judge(9, 2.0, 10.0, 1.0)
    assert [(f.rule, f.action) for f in found] == [("gradients", "warn"), ("loss", "skip")]
    assert guard.skipped == 1
    assert [f.rule for f in guard.judge(10, 1.0, 10.0, 1.0)] == ["gradients"]
    assert guard.skipped == 1


def test_values_that_stay_high_become_what_is_usual() -> None:
    guard = Guard(GuardConfig(gradients=GradientSpikeConfig(window=8, factor=4, action="skip")))
    quiet(guard, [1.0] * 8)
    fired = [bool(guard.judge(step, 1.0, 100.0, 1.0)) for step in range(9, 17)]
    assert fired == [True] * 4 + [False] * 4  # then half of the window is high, and the median between


def test_a_growing_output_norm_is_found_once_a_window() -> None:
    rule = OutputNormConfig(window=100, growth=0.5, after=50, action="rollback")
    guard = Guard(GuardConfig(output_norm=rule))

    def norms(slope: float, first: int, last: int) -> list[Finding]:
        return [f for step in range(first, last + 1) for f in guard.judge(step, 1.0, 1.0, 10 + slope * step)]

    assert not norms(0.1, 1, 50)  # at the beginning anything goes
    assert not norms(0.004, 51, 250)  # 4 in 1,000 steps, of about 10: 40%
    found = norms(0.0075, 251, 500)
    assert next(f.step for f in found) <= 350
    assert all(f.since == f.step - 99 for f in found)
    assert all(b.step - a.step >= 100 for a, b in itertools.pairwise(found))
    assert 0.5 < found[-1].ratio < 0.75
    assert "the output norm" in str(found[-1])


def test_its_state_goes_on_where_it_was() -> None:
    config = GuardConfig(
        loss=LossSpikeConfig(window=8, factor=1.5),
        gradients=GradientSpikeConfig(window=8, factor=2),
        output_norm=OutputNormConfig(window=8, growth=1e-6, after=0),
    )
    one, other = Guard(config), Guard(config)
    for step in range(1, 12):
        one.judge(step, 1 + step / 7, step / 3, 1 + step / 11)
    one.rollbacks = [Rollback("loss", 2.0, 9, 6, 48, 72)]
    other.judge(1, 9.0, 9.0, 9.0)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict()
    for step in range(12, 20):
        assert one.judge(step, step**2, step**2, step) == other.judge(step, step**2, step**2, step)


def test_a_rollback_goes_before_what_was_seen_as_often_as_the_recipe_allows() -> None:
    guard = Guard(GuardConfig(rollback_steps=5, max_rollbacks=1))
    finding = Finding("output_norm", "rollback", 100, 41, 7.0, 2.0)
    assert guard.last_good(finding) == 35
    guard.rollbacks.append(Rollback("loss", 2.0, 9, 6, 48, 72))
    with pytest.raises(RollbackError, match=r"step 9 to 6 \(loss\); guard.max_rollbacks = 1 allows no more"):
        guard.last_good(finding)


def test_the_error_names_step_stage_and_sequences_and_travels_between_processes() -> None:
    place = Place("pretrain", "stage-2", "work/mix/0123456789ab/parts/stages/stage-2", 240, 280)
    error = pickle.loads(pickle.dumps(NonFiniteError.of("the loss is not finite", 7, list(range(40)), place)))
    assert "step 7" in str(error)
    assert "stage-2" in str(error)
    assert "30, 31 …" in str(error)
    assert "`calumma inspect work/mix/0123456789ab/parts/stages/stage-2 --sequence 0`" in str(error)
    assert "pretrain.skip: [[240, 280]]" in str(error)


def test_rules_that_need_more_steps_than_there_are_are_named() -> None:
    rules = GuardConfig(loss=LossSpikeConfig(window=64), output_norm=OutputNormConfig(window=1000, after=5000))
    assert not Guard(rules).silent(6000)
    (line,) = Guard(rules).silent(5999)
    assert line == "guard.output_norm can never fire: it needs 6,000 steps, and this training has 5,999"
    assert len(Guard(rules).silent(64)) == 3
    short = {"loss": LossSpikeConfig(window=8), "gradients": GradientSpikeConfig(window=8)}
    guard = Guard(GuardConfig(**short, output_norm=OutputNormConfig(window=8, growth=1e-6, after=5)))
    fired = [step for step in range(1, 30) if guard.judge(step, 1.0, 1.0, float(step))]
    assert not guard.silent(fired[0])
    assert guard.silent(fired[0] - 1)
