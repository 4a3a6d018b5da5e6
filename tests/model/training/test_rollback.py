"""The guard at work on real ranks: what is not finite, steps left out, rollbacks that pass over a stretch of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.training.checkpoint import Checkpoint, list_checkpoints
from model.training.config import GradientSpikeConfig, GuardConfig, LossSpikeConfig, ScheduleConfig
from model.training.guard import NonFiniteError, RollbackError
from model.training.monitors import read_metrics
from model.training.state import KINDS, Piece
from model.training.stored import StoredState
from tests.model.training.test_loop import PRECISIONS, STAGES, at, same_bits, without_clock

pytestmark = pytest.mark.timeout(1800)

CONFIG = {
    "batch": 4,
    "checkpoint_every": 4,
    "schedule": ScheduleConfig(kind="constant", warmup_steps=2),
    "evaluate_every": 100,
}
"""15 steps of four sequences; at a constant rate, so that a shorter run does the same at every step."""
SETTINGS = [(stage, precision) for stage in STAGES for precision in PRECISIONS]


def guard(**changes: Any) -> dict[str, Any]:
    return {"config": CONFIG | {"guard": GuardConfig(**changes)}}


@pytest.fixture(scope="module")
def bad(mix: Storage) -> int:
    """A sequence that the tenth step sees, which spans positions 36 to 39, and no other step."""
    loader = SequenceLoader(mix, "pretrain", 4, prefetch=0)
    return next(int(batch["sequences"][0]) for batch in loader if batch["step"] == 9)


def test_a_rollback_passes_over_its_stretch_and_survives_a_kill(ranks: Any, tmp_path: Path, bad: int) -> None:
    """Back from step 10 to step 8: positions 32 to 39 are not seen again, as if they had never been there."""
    rule = guard(gradients=GradientSpikeConfig(window=8, factor=50, action="rollback"))
    spike = {"spoil": (bad, 1.0, 1e4)}

    def runs(name: str, **options: Any) -> list[dict[str, Any]]:
        return [{"store": str(tmp_path / f"{name}-{s}"), **at(s), **rule, **options} for s in STAGES]

    ended = ranks(runs=[*runs("without", skip=(32, 40)), *runs("back", **spike)])[0]
    without, back = ended[: len(STAGES)], ended[len(STAGES) :]
    for stage, one, other in zip(STAGES, without, back, strict=True):
        assert one.step == other.step == 13
        assert same_bits(one.weights, other.weights)
        lines = read_metrics(Storage(tmp_path / f"back-{stage}"))
        (rollback,) = lines[8].pop("rollbacks")
        assert {k: rollback[k] for k in ("rule", "step", "to", "start", "stop")} == {
            **{"rule": "gradients", "step": 10, "to": 8, "start": 32, "stop": 40}
        }
        expected = map(without_clock, read_metrics(Storage(tmp_path / f"without-{stage}")))
        assert [without_clock(line) for line in lines] == list(expected)

    # Killed two steps after the rollback, and before the next checkpoint.
    killed = {"store": str(tmp_path / "killed"), **at(1), **rule, **spike}
    assert 0 not in ranks(die_after=11, **killed)
    assert [c.step for c in list_checkpoints(Storage(tmp_path / "killed"))] == [8, 4]
    assert len(read_metrics(Storage(tmp_path / "killed"))) == 10
    assert same_bits(ranks(**killed)[0].weights, without[1].weights)


def test_a_step_with_a_spike_is_left_out_and_counted(ranks: Any, tmp_path: Path, bad: int) -> None:
    """The tenth step moves nothing: checkpoints of before and after it are the same bits. Stopped after the next."""
    rule = guard(gradients=GradientSpikeConfig(window=8, factor=50, action="skip"))
    rule["config"] = rule["config"] | {"checkpoint_every": 1, "keep_checkpoints": 3}
    stores = {setting: Storage(tmp_path / "{}-{}".format(*setting)) for setting in SETTINGS}
    runs = [{"store": store.root, **at(*setting)} for setting, store in stores.items()]
    ranks(runs=runs, spoil=(bad, 1.0, 1e4), stop_at=10, **rule)
    for setting, store in stores.items():
        lines = read_metrics(store)
        assert [line["step"] for line in lines if "spike" in line] == [10], setting
        assert [line["skipped_steps"] for line in lines] == [0] * 9 + [1] * 2
        eleventh, tenth, ninth = (state(store, checkpoint) for checkpoint in list_checkpoints(store))
        assert (ninth.taken, tenth.taken, eleventh.taken) == (9, 9, 10)  # by AdamW's count
        assert same_bits(pieces(ninth), pieces(tenth)), setting
        assert not same_bits(pieces(tenth), pieces(eleventh))


def state(store: Storage, checkpoint: Checkpoint) -> StoredState:
    return StoredState(store, [f.name for f in checkpoint.files])


def pieces(stored: StoredState) -> dict[str, Any]:
    """Weights and both moments."""
    found = {}
    for kind in KINDS:
        for name, shape in stored.shapes.items():
            whole = Piece(name, shape, 0, *(torch.empty(shape).view(-1) for _ in KINDS))
            stored.fill(whole)
            found[f"{kind} of {name}"] = getattr(whole, kind).numpy()
    return found


def test_a_limit_of_rollbacks_ends_the_training(ranks: Any, tmp_path: Path, bad: int) -> None:
    rule = LossSpikeConfig(window=8, factor=20, action="rollback")
    runs = [
        {"store": str(tmp_path / "none"), **guard(loss=rule, max_rollbacks=0)},
        {"store": str(tmp_path / "far"), **guard(loss=rule, rollback_steps=20)},
        {"store": str(tmp_path / "start"), **guard(loss=rule, rollback_steps=8)},
    ]
    runs[2]["config"] = runs[2]["config"] | {"keep_checkpoints": 9}
    ended = ranks(runs=runs, spoil=(bad, 100.0, 1.0))
    for rank in (0, 1):
        limit, far, start = ended[rank]
        assert isinstance(limit, RollbackError)
        assert "guard.max_rollbacks = 0 allows no more" in str(limit)
        assert "step 10: the loss" in str(limit)
        assert isinstance(far, RollbackError)
        assert "No checkpoint was kept from step -11 or before" in str(far)
        assert start.step == 15 - 10  # one was taken before the first step
    assert list_checkpoints(Storage(tmp_path / "none"))[0].step == 8  # and it is good


SPOILED = {
    "nan_loss": "the loss",
    "nan_gradient": "the gradients",
    "infinite_gradient": "the gradients",
}
"""What is not finite, on one of the two ranks, and what the message says of it."""


def test_what_is_not_finite_on_one_rank_stops_all_before_the_optimizer_moves(ranks: Any, tmp_path: Path) -> None:
    """At every ZeRO stage and precision: two steps are taken, and on the third nothing moves."""
    runs = [
        {"store": str(tmp_path / f"{hook}-{s}-{p}"), **at(s, p), "hook": hook} for hook in SPOILED for s, p in SETTINGS
    ]
    # Eight sequences a step are two micro-batches a rank, as the hooks count them.
    ended = ranks(runs=runs, config={"checkpoint_every": 1}, check_state=True)
    for rank in (0, 1):
        for run, (error, unmoved) in zip(runs, ended[rank], strict=True):
            assert isinstance(error, NonFiniteError), (run, error)
            assert f"step 3: {SPOILED[run['hook']]}" in str(error)
            assert "of stage one" in str(error)
            assert unmoved, run
    for run in runs:
        store = Storage(run["store"])
        newest = list_checkpoints(store)[0]
        assert (newest.step, state(store, newest).taken) == (2, 2)
        assert len(read_metrics(store)) == 2
