from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from infra.errors import RecipeError
from tasks.scan.nsfw import OpenNsfw
from tasks.scan.scorers import ScoredInput


def test_plain_pictures_are_safe_and_scores_are_the_same_every_time() -> None:
    scorer = OpenNsfw({}, None, "cpu")
    plain = [
        ScoredInput(Image.new("RGB", size, colour), ()) for size, colour in (((40, 30), "white"), ((9, 9), "blue"))
    ]
    scores = scorer.scores(plain)
    assert all(0 <= s < 0.2 for s in scores)
    assert OpenNsfw({}, None, "cpu").scores(plain) == scores
    assert scorer.scores([]) == []


def test_real_pictures_of_textbooks_and_streets_are_mostly_safe(shared_data: Path) -> None:
    paths = sorted((shared_data / "pairs" / "images").iterdir())[::40]
    scorer = OpenNsfw({}, None, "cpu")
    inputs = []
    for path in paths:
        with Image.open(path) as image:
            inputs.append(ScoredInput(image.convert("RGB"), ("a caption",)))
    scores = [s for start in range(0, len(inputs), 8) for s in scorer.scores(inputs[start : start + 8])]
    assert len(scores) == len(paths) >= 15
    assert all(0 <= s <= 1 for s in scores)
    assert len(set(scores)) > len(scores) / 2, "pictures differ, and so do their scores"
    assert sum(s > 0.8 for s in scores) <= 1


def test_options_are_refused() -> None:
    with pytest.raises(RecipeError, match="has no options; got size"):
        OpenNsfw({"size": 3}, None, "cpu")
