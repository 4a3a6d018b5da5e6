from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import RecipeError
from tasks.context import StepContext
from tasks.questions import read_conversations, read_pairs
from tasks.recipe import Recipe, parse_recipe
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


def context(toy: Toy) -> StepContext:
    return StepContext(toy[1], str(toy[0]), "evaluate", "test")


def test_pairs_are_read_in_an_order_of_the_seed_alone(toy: Toy) -> None:
    pairs = read_pairs(context(toy), "shapes")
    assert len(pairs) == 24
    assert sum(held_out for _, held_out in pairs) == 4
    assert {len(p.codes) for p, _ in pairs} == {16}
    assert pairs == read_pairs(context(toy), "shapes")
    names = [p.name for p, _ in pairs]
    assert names != sorted(names)
    assert "red circle" in names


def test_conversations_are_held_out_ones(toy: Toy) -> None:
    found = list(read_conversations(context(toy), 1))
    assert [category for category, _ in found] == ["image-generation", "visual-chat"]
    assert all(ids[0] == 0 and ids[-1] == 2 for _, ids in found)


def test_a_source_that_is_not_of_pairs_is_refused(toy: Toy) -> None:
    with pytest.raises(RecipeError, match="must be a source of kind pairs: shapes"):
        parse_recipe({**toy_run.RECIPE, "evaluation": {"source": "words"}})
