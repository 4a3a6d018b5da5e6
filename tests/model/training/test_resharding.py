"""A training goes on with other workers, another ZeRO stage, precision or batch than its checkpoint was taken with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StoreError
from infra.storage import Storage
from model.training.checkpoint import list_checkpoints
from model.training.monitors import read_metrics
from tests.model.training.test_loop import STAGES, at

pytestmark = pytest.mark.timeout(1800)

TOLERANCE = 1e-4
"""Of a step's loss, in nats, in float32: sums in another order, and AdamW's small divisors make more of it."""

CHANGES: dict[int, list[tuple[int, dict[str, Any]]]] = {
    1: [(stage, at(stage)) for stage in (1, 2, 3)],
    2: [(0, at(2)), (1, at(0)), (2, at(3)), (3, at(1))],
    4: [(0, at(0)), (1, at(1)), (2, at(2)), (3, at(3)), (2, at(0))],
}
"""By the number of workers that go on: the ZeRO stage of the two before, and what it is now."""


def test_other_workers_stages_precisions_and_batches_go_on(ranks: Any, tmp_path: Path) -> None:
    """Stopped after the fifth of eight steps of two workers, at every ZeRO stage; gone on with from copies of that."""
    plain = {"model": {"dropout": 0.0}}
    ended = ranks(
        runs=[
            {"store": str(tmp_path / "whole"), **at(2)},
            *({"store": str(tmp_path / f"stopped-{stage}"), "stop_at": 4, **at(stage)} for stage in STAGES),
        ],
        **plain,
    )[0]
    assert [run.finished for run in ended] == [True, False, False, False, False]
    expected = [line["loss"] for line in read_metrics(Storage(tmp_path / "whole"))]
    assert list_checkpoints(Storage(tmp_path / "stopped-2"))[0].layout == {
        **{"world": 2, "zero_stage": 2, "precision": "fp32"}
    }

    def go_on(world: int, changes: list[tuple[int, dict[str, Any]]]) -> list[tuple[Any, list[float]]]:
        runs = []
        for number, (stage, more) in enumerate(changes):
            store = tmp_path / f"{world}-{number}"
            shutil.copytree(tmp_path / f"stopped-{stage}", store)
            runs.append({"store": str(store), **more})
        ended = ranks(world=world, runs=runs, **plain)[0]
        losses = [[line["loss"] for line in read_metrics(Storage(run["store"]))] for run in runs]
        return list(zip(ended, losses, strict=True))

    others = [(1, at(0, "bf16")), (2, {"config": {"batch": 4}})]
    for world, changes in CHANGES.items():
        found = go_on(world, changes + (others if world == 1 else []))
        for (stage, now), (one, losses) in zip(changes, found, strict=False):
            assert one.finished, (world, stage, now)
            assert losses == pytest.approx(expected, abs=TOLERANCE), (world, stage, now)
        if world == 1:
            lower, refused = found[len(changes) :]
            assert lower[1] == pytest.approx(expected, abs=0.15)
            assert isinstance(refused[0], StoreError)
            assert "batch" in str(refused[0])

    begun = {**plain, **at(1), "config": {"batch": 4}, "origin": str(tmp_path / "stopped-2"), "origin_step": 5}
    stores = [str(tmp_path / name) for name in ("begun", "lost", "wide")]
    wide = {**begun, "store": stores[2], "model": {**plain["model"], "ffn": 96}}
    ended, lost, other = ranks(
        world=1, runs=[{**begun, "store": stores[0]}, {**begun, "store": stores[1], "origin_step": 4}, wide]
    )[0]
    assert ended.finished
    assert ended.step == 5 + 1 + 4  # of 42 sequences two are left, and then 14, in fours
    lines = read_metrics(Storage(stores[0]))
    assert [line["step"] for line in lines] == [6, 7, 8, 9, 10]
    assert [line["total_tokens"] for line in lines] == [22 * n for n in (42, 46, 50, 54, 56)]  # with the five steps'
    assert ended.facts["tokens"] == 22 * 56
    assert list_checkpoints(Storage(stores[0]))[-1].layout["world"] == 1
    assert isinstance(lost, StoreError)
    assert "no checkpoint of step 4; those kept are of steps: " in str(lost)
    assert isinstance(other, StoreError)
    assert "another model: ffn was 64 and is 96" in str(other)
