"""The guard's rules at work on real ranks: steps left out, rollbacks that pass over their stretch of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.training.checkpoint import list_checkpoints
from model.training.config import GradientSpikeConfig, GuardConfig, LossSpikeConfig, ScheduleConfig
from model.training.guard import NonFiniteError, RollbackError
from model.training.monitors import read_metrics
from model.training.stored import StoredState
from tests.model.training.test_loop import same_bits, without_clock

pytestmark = pytest.mark.timeout(1500)

STAGES = (0, 1, 2, 3)
CONFIG = {"batch": 2, "schedule": ScheduleConfig(kind="constant", warmup_steps=2), "evaluate_every": 100}
"""28 steps of two sequences; at a constant rate, so that a shorter run does the same at every step."""


def guard(**changes: Any) -> dict[str, Any]:
    return {"config": CONFIG | {"guard": GuardConfig(**changes)}}


def sequence_of_step(mix: Storage, number: int) -> int:
    """A sequence that the ``number``-th step sees, from 1, and no other step."""
    loader = SequenceLoader(mix, "pretrain", 2, prefetch=0)
    return next(int(batch["sequences"][0]) for batch in loader if batch["step"] == number - 1)


@pytest.fixture(scope="module")
def bad(mix: Storage) -> int:
    """A sequence of the 15th step, which spans positions 28 and 29."""
    return sequence_of_step(mix, 15)


def test_a_rollback_passes_over_its_stretch_and_survives_a_kill(ranks: Any, tmp_path: Path, bad: int) -> None:
    """Back from step 15 to step 12: positions 24 to 29 are not seen again, as if they had never been there."""
    rule = guard(gradients=GradientSpikeConfig(window=8, factor=50, action="rollback"))
    spike = {"spoil": (bad, 1.0, 1e4)}

    def runs(name: str, **options: Any) -> list[dict[str, Any]]:
        return [{"store": str(tmp_path / f"{name}-{s}"), "resources": {"zero_stage": s}, **options} for s in STAGES]

    without = ranks(runs=runs("without", skip=(24, 30)), **rule)[0]
    back = ranks(runs=runs("back"), **rule, **spike)[0]
    for stage, one, other in zip(STAGES, without, back, strict=True):
        assert one.step == other.step == 25
        assert same_bits(one.weights, other.weights)
        lines = read_metrics(Storage(tmp_path / f"back-{stage}"))
        (rollback,) = lines[12].pop("rollbacks")
        assert {k: rollback[k] for k in ("rule", "step", "to", "start", "stop")} == {
            **{"rule": "gradients", "step": 15, "to": 12, "start": 24, "stop": 30}
        }
        expected = map(without_clock, read_metrics(Storage(tmp_path / f"without-{stage}")))
        assert [without_clock(line) for line in lines] == list(expected)

    # Killed two steps after the rollback, and before the next checkpoint.
    killed = {"store": str(tmp_path / "killed"), "resources": {"zero_stage": 1}, **rule, **spike}
    assert 0 not in ranks(die_after=16, **killed)
    assert [c.step for c in list_checkpoints(Storage(tmp_path / "killed"))] == [12, 9]
    assert same_bits(ranks(**killed)[0].weights, without[1].weights)


def test_a_step_with_a_spike_is_left_out_and_counted(ranks: Any, tmp_path: Path, mix: Storage) -> None:
    """However large the tenth step's gradients were, they move nothing. Stopped after the eleventh."""
    rule = guard(gradients=GradientSpikeConfig(window=8, factor=50, action="skip"))
    bad = sequence_of_step(mix, 10)
    settings = [(0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]
    stores = {
        (stage, precision, size): Storage(tmp_path / f"{stage}-{precision}-{size:g}")
        for stage, precision in settings
        for size in (1e4, 1e5)
    }
    ranks(
        runs=[
            {"store": store.root, "resources": {"zero_stage": stage, "precision": precision}, "spoil": (bad, 1.0, size)}
            for (stage, precision, size), store in stores.items()
        ],
        stop_at=10,
        **rule,
    )
    for stage, precision in settings:
        one, other = (stores[stage, precision, size] for size in (1e4, 1e5))
        for store in (one, other):
            lines = read_metrics(store)
            assert [line["step"] for line in lines if "spike" in line] == [10]
            assert [line["skipped_steps"] for line in lines] == [0] * 9 + [1] * 2
        assert same_bits(weights(one), weights(other))


def weights(store: Storage) -> dict[str, Any]:
    newest = list_checkpoints(store)[0]
    assert newest.step == 11
    found = StoredState(store, [f.name for f in newest.files])
    assert found.taken == 10  # by AdamW's count
    return {name: weight.numpy() for name, weight in found.weights().items()}


def test_a_limit_of_rollbacks_ends_the_training(ranks: Any, tmp_path: Path, bad: int) -> None:
    rule = LossSpikeConfig(window=8, factor=20, action="rollback")
    none = guard(loss=rule, max_rollbacks=0)
    spike = {"spoil": (bad, 100.0, 1.0)}
    runs = [
        {"store": str(tmp_path / "none"), **none},
        {"store": str(tmp_path / "far"), **guard(loss=rule, rollback_steps=20)},
        {"store": str(tmp_path / "start"), **guard(loss=rule, rollback_steps=13)},
    ]
    runs[2]["config"] = runs[2]["config"] | {"keep_checkpoints": 9}
    ended = ranks(runs=runs, **spike)
    for rank in (0, 1):
        limit, far, start = ended[rank]
        assert isinstance(limit, RollbackError)
        assert "guard.max_rollbacks = 0 allows no more" in str(limit)
        assert "step 15: the loss" in str(limit)
        assert isinstance(far, RollbackError)
        assert "No checkpoint was kept from step -6 or before" in str(far)
        assert start.step == 28 - 15  # one was taken before the first step
    assert list_checkpoints(Storage(tmp_path / "none"))[0].step == 12  # and it is good


@pytest.mark.parametrize("hook", ["nan_loss", "nan_gradient"])
def test_what_is_not_finite_stops_before_the_optimizer_moves(ranks: Any, tmp_path: Path, hook: str) -> None:
    """At every ZeRO stage and precision, on all ranks: what step 2 left is what the last checkpoint holds."""
    settings = [(stage, precision) for stage in STAGES for precision in ("fp32", "bf16")]
    runs = [{"store": str(tmp_path / f"{s}-{p}"), "resources": {"zero_stage": s, "precision": p}} for s, p in settings]
    ended = ranks(runs=runs, hook=hook, config={"checkpoint_every": 1})
    what = {"nan_loss": "the loss", "nan_gradient": "the gradients"}[hook]
    for stage, precision in settings:
        store = Storage(tmp_path / f"{stage}-{precision}")
        assert list_checkpoints(store)[0].step == 2
        assert len(read_metrics(store)) == 2
    for error in (*ended[0], *ended[1]):
        assert isinstance(error, NonFiniteError)
        assert f"step 3: {what}" in str(error)
        assert "of stage one" in str(error)
