"""Where figures go beside ``metrics.jsonl``: TensorBoard, and Weights & Biases or MLflow where the recipe names them.

The last two are no dependencies of this project. They are imported by name when a training starts that wants them, and
a service that fails later costs its figures, not the training: ``metrics.jsonl`` has them all.

A training that goes on from a checkpoint goes on in the same run there, which is found by the step's folder.
TensorBoard drops what was written past the checkpoint; the two services keep it, and show such a step twice.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infra.errors import RecipeError
from infra.storage import Storage
from model.training.watch.config import MlflowConfig, WandbConfig, WatchConfig

TENSORBOARD = "tensorboard"
Picture = npt.NDArray[np.uint8]
"""(height, width, 3)."""

BATCH, BATCH_S = 900, 10.0
"""Figures sent to MLflow at once, at most (it takes 1,000), and the seconds after which fewer go."""


class Sink(Protocol):
    """Takes a step's figures, by slash-separated names, and pictures."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, picture: Picture) -> None: ...

    def keep(self) -> None:
        """Makes everything so far lasting."""

    def close(self) -> None: ...


def require_packages(config: WatchConfig) -> None:
    """RecipeError where the recipe names a service whose package is missing here."""
    for section, package, install in (
        (config.wandb, "wandb", "wandb"),
        (config.mlflow, "mlflow", "mlflow-skinny"),
    ):
        if section is not None and importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"watch.{package}: the package {package} is not installed on the training workers. "
                f"`pip install {install}` there, or take watch.{package} out of the recipe."
            )


def open_sinks(config: WatchConfig, store: Storage, folder: Path, first_step: int) -> list[Sink]:
    """What the recipe asks for, going on after ``first_step`` steps.

    ``store`` is the step's folder, ``folder`` the local one that its growing files are written to.
    """
    found: list[Sink] = []
    if config.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        found.append(TensorBoard(folder / TENSORBOARD, first_step))
    if config.wandb is not None:
        found.append(Guarded("Weights & Biases", lambda: Wandb(config.wandb or WandbConfig(), store, folder)))
    if config.mlflow is not None:
        mlflow = config.mlflow
        found.append(Guarded("MLflow", lambda: Mlflow(mlflow, store)))
    return found


class TensorBoard:
    """Event files in a folder: at every start a new one, which says from which step on earlier ones do not count."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def keep(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; figures over ``step``, as theirs would only ever rise."""

    def __init__(self, config: WandbConfig, store: Storage, folder: Path) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run: Any = self._wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            id=_identity(store),
            name=_name(store),
            resume="allow",
            dir=str(folder),
            config={"store": store.root},
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._run.log({name: self._wandb.Image(picture), "step": step})

    def keep(self) -> None:
        pass  # it sends by itself

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow, to which figures go in batches."""

    def __init__(self, config: MlflowConfig, store: Storage) -> None:
        mlflow, self._entities = importlib.import_module("mlflow"), importlib.import_module("mlflow.entities")
        self._client: Any = mlflow.MlflowClient(config.tracking_uri)
        experiment = self._client.get_experiment_by_name(config.experiment)
        where = experiment.experiment_id if experiment else self._client.create_experiment(config.experiment)
        known = self._client.search_runs([where], f"tags.calumma = '{_identity(store)}'", max_results=1)
        tags = {"calumma": _identity(store), "store": store.root}
        self._run = (
            known[0] if known else self._client.create_run(where, tags=tags, run_name=_name(store))
        ).info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._waiting += [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent > BATCH_S:
            self.keep()

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._client.log_image(self._run, picture, artifact_file=f"{name}-{step:08d}.png")

    def keep(self) -> None:
        self._sent = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), BATCH):
            self._client.log_batch(self._run, metrics=waiting[start : start + BATCH])

    def close(self) -> None:
        self.keep()
        self._client.set_terminated(self._run)


class Guarded:
    """A service that may fail: the first failure is said, and nothing more is sent."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        with self._saying():
            self._sink = make()

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        with self._saying():
            if self._sink is not None:
                self._sink.figures(step, figures)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        with self._saying():
            if self._sink is not None:
                self._sink.picture(step, name, picture)

    def keep(self) -> None:
        with self._saying():
            if self._sink is not None:
                self._sink.keep()

    def close(self) -> None:
        with self._saying():
            if self._sink is not None:
                self._sink.close()

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._sink = None
            said = (str(error).splitlines() or [""])[0]
            print(f"{self._name} failed ({type(error).__name__}: {said}); no more figures go there", flush=True)


def _identity(store: Storage) -> str:
    """Of a training's folder, the same at every start."""
    return hashlib.blake2b(store.root.encode(), digest_size=8).hexdigest()


def _name(store: Storage) -> str:
    """What people are shown: the step and the beginning of its fingerprint."""
    return "/".join(store.root.rstrip("/").split("/")[-2:])
