"""Training workers on a real Ray."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import CalummaError, ResourceError, StepFailed
from infra.settings import ResourcesConfig
from tasks.context import StepContext
from tasks.recipe import Recipe
from tasks.train.launch import StopRequest, launch, stop_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class DivergedError(CalummaError):
    """An error that starting again would not mend."""


def work(arguments: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    rank, world, folder = dist.get_rank(), dist.get_world_size(), Path(arguments["folder"])
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    how = arguments["how"]
    tries = len(list(folder.glob(f"try-{rank}-*")))
    (folder / f"try-{rank}-{tries}").write_text(f"{world} {total.item()} {torch.get_num_threads()}")
    if how == "diverge" and rank == 1:
        raise DivergedError("the loss is not finite at step 7")
    if how == "die once" and rank == 1 and tries == 0:
        os._exit(1)
    if how == "wait":
        asked = StopRequest(arguments["folder"], arguments["job"], 0.1)
        while not asked():
            time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    import ray

    # This file is not importable on the workers, so its functions travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def context(folder: Path, **resources: Any) -> StepContext:
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "sources": [{"name": "pictures", "type": "pairs", "kind": "pairs"}],
            "mix": {"tokens": 1000, "stages": [{"name": "one", "share": 1.0, "weights": {"pictures": 1}}]},
            "finetune_mix": {"sources": []},
            "resources": ResourcesConfig(**resources).model_dump(),
        }
    )
    return StepContext(recipe, str(folder), "pretrain", "pretrain-1", prints={"pretrain": "0123456789ab"})


def test_workers_share_a_process_group_and_one_thread_each(tmp_path: Path) -> None:
    launch(context(tmp_path), work, {"folder": str(tmp_path), "how": "return"})
    assert [(tmp_path / f"try-{rank}-0").read_text() for rank in (0, 1)] == ["2 3.0 1"] * 2


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    launch(context(tmp_path), work, {"folder": str(tmp_path), "how": "die once"})
    assert (tmp_path / "try-1-1").exists()


def test_an_error_that_would_repeat_ends_the_step_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="the loss is not finite at step 7"):
        launch(context(tmp_path), work, {"folder": str(tmp_path), "how": "diverge"})
    assert not (tmp_path / "try-1-1").exists()


def test_a_stop_request_ends_it_in_order(tmp_path: Path) -> None:
    asked = context(tmp_path)

    def ask() -> None:
        while not (tmp_path / "try-1-0").exists():
            time.sleep(0.1)
        asked.workdir.put(stop_file("pretrain-1"), b"")

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(StepFailed, match="stopped on request"):
        launch(asked, work, {"folder": str(tmp_path), "how": "wait", "job": "pretrain-1"})
    thread.join()


def test_too_many_workers_are_refused_before_they_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="resources.train_workers"):
        launch(context(tmp_path, train_workers=50), work, {"folder": str(tmp_path), "how": "return"})
