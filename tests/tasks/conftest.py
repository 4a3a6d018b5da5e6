"""A finished run at toy size, made once for all tests that read one; see ``toy_run.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.context import StepContext
from tasks.recipe import Recipe
from tests.tasks import toy_run


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """Work folder and recipe. Tests read it; whatever writes takes a copy."""
    torch.set_num_threads(1)
    workdir = tmp_path_factory.mktemp("toy")
    return workdir, toy_run.make(workdir)


@pytest.fixture
def toy_context(toy: tuple[Path, Recipe]) -> StepContext:
    """The context of the run's last step."""
    return StepContext(toy[1], str(toy[0]), "report", "test")
