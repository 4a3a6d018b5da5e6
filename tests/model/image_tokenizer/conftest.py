"""LPIPS' weights at random, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from tests.vgg import random_lpips


@pytest.fixture(scope="session")
def vgg() -> dict[str, Tensor]:
    return random_lpips()


@pytest.fixture(scope="session")
def vgg_file(vgg: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    save_file(vgg, path)
    return path
