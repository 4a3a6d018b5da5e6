"""What the pipeline refuses before its first step runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import pipeline
from infra.errors import RecipeError, StepFailed
from tasks.recipe import parse_recipe
from tests.tasks import toy_run

LATE = {"steps": 300_000, "discriminator_start": 250_001, "perceptual_weight": 0}


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (LATE, "resolution is 16; a discriminator of 3 layers has no score"),
        ({**LATE, "discriminator_weight": 0, "object_weight": 1}, "object_weight is 1 and no perceptual_weights"),
    ],
)
def test_what_cannot_be_trained_is_known_before_anything_is_read(
    training: dict[str, Any], says: str, tmp_path: Path
) -> None:
    recipe = parse_recipe({**toy_run.RECIPE, "folder": str(tmp_path), "image_tokenizer_training": training})
    with pytest.raises(RecipeError, match=says):
        pipeline.fn(recipe, str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    with pytest.raises(StepFailed, match="select is not finished"):  # what trains nothing asks for nothing
        pipeline.fn(recipe, str(tmp_path / "work"), only="encode")
