"""Where figures go, with the services' packages stood in for: they are no dependencies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.errors import RecipeError
from infra.storage import Storage
from model.training.monitors import MetricsLog, read_metrics
from model.training.watch.config import MlflowConfig, WandbConfig, WatchConfig
from model.training.watch.sinks import TENSORBOARD, require_packages

PICTURE = np.zeros((2, 3, 3), np.uint8)


class StandIn(ModuleType):
    """wandb, mlflow and mlflow.entities in one, which notes what it is told."""

    def __init__(self) -> None:
        super().__init__("stand_in")
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]  # what find_spec looks for
        self.said: list[tuple[Any, ...]] = []
        self.runs: list[str] = []
        self.broken = False

    def init(self, **options: Any) -> StandIn:
        self.said.append(("init", options["id"], options["resume"], options["mode"]))
        return self

    def define_metric(self, name: str, **options: Any) -> None: ...

    def log(self, figures: dict[str, Any]) -> None:
        if self.broken:
            raise ConnectionError("no network\nand more words")
        self.said.append(("log", figures))

    def finish(self) -> None:
        self.said.append(("finish",))

    def Image(self, picture: Any) -> str:
        return f"picture of {picture.shape}"

    def MlflowClient(self, uri: str) -> StandIn:
        self.said.append(("client", uri))
        return self

    def Metric(self, *metric: Any) -> tuple[Any, ...]:
        return metric

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, where: list[str], query: str, max_results: int) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in self.runs]

    def create_run(self, where: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs.append("run-1")
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def update_run(self, run: str, status: str) -> None:
        self.said.append((status, run))

    def log_batch(self, run: str, metrics: list[tuple[Any, ...]]) -> None:
        self.said.append(("batch", [(m[0], m[1], m[3]) for m in metrics]))

    def log_image(self, run: str, picture: Any, artifact_file: str) -> None:
        self.said.append(("image", artifact_file))

    def set_terminated(self, run: str) -> None:
        self.said.append(("ended", run))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    for name in ("wandb", "mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, found)
    return found


def test_a_missing_package_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages(WatchConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"watch\.wandb: .*pip install wandb"):
        require_packages(WatchConfig(wandb=WandbConfig()))
    with pytest.raises(RecipeError, match=r"watch\.mlflow: .*pip install mlflow-skinny"):
        require_packages(WatchConfig(mlflow=MlflowConfig(tracking_uri="http://nowhere")))


def test_figures_and_pictures_go_to_weights_and_biases_and_a_resumed_training_to_the_same_run(
    service: StandIn, tmp_path: Path
) -> None:
    watch = WatchConfig(wandb=WandbConfig(mode="offline"), tensorboard=False)
    require_packages(watch)
    for first in (0, 1):
        log = MetricsLog(Storage(tmp_path), first, watch)
        log.write({"step": first + 1, "loss": 2.0, "stage": "one"})
        log.show("held_out/drawn", PICTURE, first + 1)
        log.close()
    begun = [said for said in service.said if said[0] == "init"]
    assert begun[0] == begun[1]
    assert begun[0][2:] == ("allow", "offline")
    assert service.said[1:3] == [
        ("log", {"train/loss": 2.0, "step": 1}),
        ("log", {"held_out/drawn": "picture of (2, 3, 3)", "step": 1}),
    ]
    assert service.said[-1] == ("finish",)
    assert not (tmp_path / TENSORBOARD).exists()


def test_figures_go_to_mlflow_in_batches_and_a_resumed_training_to_the_same_run(
    service: StandIn, tmp_path: Path
) -> None:
    watch = WatchConfig(mlflow=MlflowConfig(tracking_uri="http://there"))
    for first in (0, 2):
        log = MetricsLog(Storage(tmp_path), first, watch)
        for step in (first + 1, first + 2):
            log.write({"step": step, "loss": 2.0})
        log.show("held_out/drawn", PICTURE, first + 2)
        log.close()
    assert service.runs == ["run-1"]
    assert [said for said in service.said if said[0] == "batch"] == [
        ("batch", [("train/loss", 2.0, 1), ("train/loss", 2.0, 2)]),
        ("batch", [("train/loss", 2.0, 3), ("train/loss", 2.0, 4)]),
    ]
    assert ("image", "held_out/drawn-00000002.png") in service.said
    assert service.said[-1] == ("ended", "run-1")


def test_a_service_that_fails_costs_its_figures_and_not_the_training(
    service: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.broken = True
    log = MetricsLog(Storage(tmp_path), 0, WatchConfig(wandb=WandbConfig()))
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 2.0})
    log.close()
    assert len(read_metrics(Storage(tmp_path))) == 3
    said = capsys.readouterr().out
    assert said.count("Weights & Biases failed (ConnectionError: no network); no more figures go there") == 1
