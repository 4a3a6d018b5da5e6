"""What of launching needs no Ray; workers on a real Ray are in tests/integration/test_launch.py."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from infra.errors import CalummaError, ResourceError, StoreError
from infra.storage import Storage
from tasks.context import StepContext
from tasks.recipe import load_recipe
from tasks.train.launch import (
    Deaths,
    StopRequest,
    _check_resources,
    _last_line,
    _repeating,
    _stop_on_sigterm,
    stop_file,
)


class GroupError(Exception):
    """Has what Ray Train's error of a worker group has."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__("Training failed due to worker errors:\n  a stack trace\n")
        self.worker_failures = {int(rank[1:]): error for rank, error in failures.items()}


def test_a_stop_request_is_found_travels_and_looks_seldom(tmp_path: Path) -> None:
    asked = pickle.loads(pickle.dumps(StopRequest(str(tmp_path), "job", interval_s=0.05)))
    assert not asked()
    Storage(tmp_path).put(stop_file("job"), b"")
    assert not asked()  # it looked a moment ago
    time.sleep(0.06)
    assert asked()
    assert asked()
    assert not StopRequest(str(tmp_path), "another")()


def test_errors_that_would_repeat_are_told_from_deaths() -> None:
    mine, fault, death = StoreError("a checkpoint of another plan"), TypeError("a fault"), RuntimeError("peer closed")
    assert _repeating(GroupError(r0=death, r1=death)) is None
    assert _repeating(GroupError(r0=death, r1=fault)) is fault
    assert _repeating(GroupError(r0=fault, r1=mine)) is mine
    assert _repeating(CalummaError("not of a group")) is None
    refusal = type("ZeRORuntimeException", (Exception,), {})("a configuration that DeepSpeed refuses")
    assert _repeating(GroupError(r0=refusal)) is refusal


def test_deaths_are_counted_anew_after_a_checkpoint(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("checkpoints/step-00000100.json", b"{}")
    deaths = Deaths(store)
    assert [deaths.add(), deaths.add()] == [1, 2]
    store.put("checkpoints/step-00000200.json", b"{}")
    assert [deaths.add(), deaths.add()] == [1, 2]
    store.delete("checkpoints/step-00000200.json")  # a rollback is no way ahead
    assert deaths.add() == 3


def test_the_last_line_says_what_failed() -> None:
    assert _last_line(GroupError(r1=RuntimeError("peer closed\nmore"))) == "worker 1: RuntimeError: peer closed"
    assert _last_line(ValueError("first\nlast\n")) == "last"


@pytest.mark.parametrize(
    ("have", "says"),
    [
        ({"CPU": 16.0}, "need an accelerator each and the cluster has 0"),
        ({"CPU": 16.0, "GPU": 8.0}, "no node of the cluster has accelerators of type A100; there are: none"),
        ({"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}, "of type A100; there are: H100"),
        ({"CPU": 1.0, "GPU": 8.0, "accelerator_type:A100": 1.0}, "need 3.6 CPUs and the cluster has 1"),
    ],
)
def test_workers_that_the_pools_cannot_hold_are_refused(tmp_path: Path, have: dict[str, float], says: str) -> None:
    wanted = ["resources.accelerator=A100", "resources.train_workers=4", "resources.train_cpus=0.9"]
    context = StepContext(load_recipe("emoji", wanted), str(tmp_path), "pretrain", "job")
    with pytest.raises(ResourceError, match=says):
        _check_resources(context, have)
    _check_resources(context, {"CPU": 16.0, "GPU": 8.0, "accelerator_type:A100": 1.0})


def test_sigterm_becomes_a_stop_request_once_and_then_is_as_before(tmp_path: Path) -> None:
    context = StepContext(load_recipe("emoji"), str(tmp_path), "pretrain", "job")
    before = signal.getsignal(signal.SIGTERM)
    with _stop_on_sigterm(context):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / stop_file("job")).exists()
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_sigterm_nothing_is_left(tmp_path: Path) -> None:
    context = StepContext(load_recipe("emoji"), str(tmp_path), "pretrain", "job")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), _stop_on_sigterm(context):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / stop_file("job")).exists()
