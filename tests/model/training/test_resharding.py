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

pytestmark = pytest.mark.timeout(1500)

PLAIN = {"model": {"dropout": 0.0}}
TOLERANCE = 1e-4
"""Of a step's loss, in nats, in float32: sums in another order, and AdamW's small divisors make more of it."""


def test_other_workers_stages_precisions_and_batches_go_on(ranks: Any, tmp_path: Path) -> None:
    """Stopped after the fifth of eight steps of two workers at ZeRO 2; gone on with from copies of that."""
    two = {**PLAIN, "resources": {"zero_stage": 2}}
    whole, stopped = ranks(
        runs=[{"store": str(tmp_path / "whole")}, {"store": str(tmp_path / "stopped"), "stop_at": 4}], **two
    )[0]
    assert whole.finished
    assert not stopped.finished
    expected = [line["loss"] for line in read_metrics(Storage(tmp_path / "whole"))]
    assert list_checkpoints(Storage(tmp_path / "stopped"))[0].layout == {
        **{"world": 2, "zero_stage": 2, "precision": "fp32"}
    }

    def go_on(world: int, *settings: dict[str, Any]) -> list[tuple[Any, list[float]]]:
        runs = []
        for number, more in enumerate(settings):
            store = tmp_path / f"{world}-{len(settings)}-{number}"
            shutil.copytree(tmp_path / "stopped", store)
            runs.append({"store": str(store), **two, **more})
        ended = ranks(world=world, runs=[*runs])[0]
        losses = [[line["loss"] for line in read_metrics(Storage(run["store"]))] for run in runs]
        return list(zip(ended if len(runs) > 1 else [ended], losses, strict=True))

    stages = [{"resources": {"zero_stage": stage}} for stage in (2, 3, 0, 1)]
    for world in (1, 2, 4):
        for ended, losses in go_on(world, *stages):
            assert ended.finished
            assert losses == pytest.approx(expected, abs=TOLERANCE)

    lower, refused = go_on(
        1,
        {"resources": {"zero_stage": 1, "precision": "bf16"}},
        {"config": {"batch": 4}},
    )
    assert lower[1] == pytest.approx(expected, abs=0.15)
    assert isinstance(refused[0], StoreError)
    assert "batch" in str(refused[0])

    begun = {**two, "config": {"batch": 4}, "origin": str(tmp_path / "stopped"), "origin_step": 5}
    stores = [str(tmp_path / name) for name in ("begun", "lost", "wide")]
    wide = {**begun, "store": stores[2], "model": {**PLAIN["model"], "ffn": 96}}
    ended, lost, other = ranks(
        world=1, runs=[{**begun, "store": stores[0]}, {**begun, "store": stores[1], "origin_step": 4}, wide]
    )[0]
    assert ended.finished
    assert ended.step == 5 + 1 + 4  # of 42 sequences two are left, and then 14, in fours
    assert [line["step"] for line in read_metrics(Storage(stores[0]))] == [6, 7, 8, 9, 10]
    assert list_checkpoints(Storage(stores[0]))[-1].layout["world"] == 1
    assert isinstance(lost, StoreError)
    assert "no checkpoint of step 4; those kept are of steps: " in str(lost)
    assert isinstance(other, StoreError)
    assert "ffn" in str(other) or "shape" in str(other)
