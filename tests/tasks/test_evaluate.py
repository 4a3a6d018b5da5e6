from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RecipeError
from infra.store.commit import PARTS, load_step
from tasks import evaluate
from tasks.context import StepContext
from tasks.measures import measurements
from tasks.recipe import Recipe, parse_recipe
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


def context(toy: Toy) -> StepContext:
    return StepContext(toy[1], str(toy[0]), "evaluate", "test")


@pytest.fixture
def results(toy: Toy) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(context(toy).store().get("results.json"))
    return found


def one(results: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = (r for r in results if all(r[k] == v for k, v in wanted.items()))
    return found


def test_what_was_learned_by_heart_is_answered_rightly(results: list[dict[str, Any]]) -> None:
    """The toy model has learned its 20 training pairs; nothing told it about the held-out four."""
    document = one(results, kind="choices", weights="pretrain", held_out=False)
    assert document["asked"] == 20
    assert document["name"]["share"] > 0.7
    assert document["picture"]["share"] > 0.7
    assert document["picture_prior"]["share"] > 0.7
    assert document["name"]["chance"] == 0.25
    assert one(results, kind="choices", form="chat", held_out=False)["name"]["share"] > 0.7
    assert one(results, kind="choices", weights="pretrain", held_out=True)["asked"] == 4
    captions = one(results, kind="captions", held_out=False)
    assert captions["exact"] / captions["asked"] > 0.6
    drawings = one(results, kind="drawings", held_out=False)
    assert drawings["nearest"] / drawings["asked"] > 0.6
    assert drawings["candidates"] == 22  # those trained on, and the two held-out ones that are asked for


def test_shown_pieces_fit_the_pictures_kept(toy: Toy, results: list[dict[str, Any]]) -> None:
    from tasks.sheets import cut

    store = context(toy).store()
    for kind, shown, width in (("drawings", "drawings", 3), ("captions", "captions", 1), ("choices", "examples", 4)):
        for found in (r for r in results if r["kind"] == kind and not r["held_out"]):
            rows = cut(store.get(f"{PARTS}/{found['sheet']}"), found["tile"])
            assert len(rows) == len(found[shown])
            assert {len(r) for r in rows} == {width}


def test_replies_show_prompt_answer_and_reply(results: list[dict[str, Any]]) -> None:
    replies = one(results, kind="replies")["conversations"]
    assert [r["category"] for r in replies] == ["image-generation"] * 2 + ["visual-chat"] * 2
    assert replies[0]["prompt"][0]["text"].startswith("Draw: ")
    assert "tile" in replies[0]["given"][0]
    assert [list(p) for p in replies[2]["prompt"]] == [["tile"], ["text"]]


def test_losses_are_by_source_and_modality(results: list[dict[str, Any]]) -> None:
    losses = one(results, kind="losses", weights="pretrain")["losses"]
    assert {s: sorted(m) for s, m in losses.items()} == {
        "shapes": ["image", "text"],
        "words": ["text"],
        "stories": ["image", "text"],
        "talks": ["image", "text"],
    }
    assert all(m["loss"] > 0 and m["tokens"] > 0 for by in losses.values() for m in by.values())


def test_the_manifest_says_the_headline(toy: Toy) -> None:
    manifest = load_step(context(toy).store())
    assert manifest is not None
    assert manifest.facts["choice_pretrain_document_name_trained"] > 0.7
    assert "of 20" in manifest.facts["headline"]
    assert [f.name for f in manifest.files] == ["drawings-held-out.png", "drawings-trained.png", "results.json"]


def test_a_second_evaluation_writes_the_same_bytes(toy: Toy, tmp_path: Path) -> None:
    """And one that was killed in between goes on: here two parts are kept, the rest is made again."""
    old = context(toy).store()
    copy = tmp_path / "copy"
    shutil.copytree(toy[0], copy)
    again = StepContext(toy[1], str(copy), "evaluate", "test")
    folder = again.store().path()
    kept = {"losses-pretrain", "captions-finetune"}
    (folder / "manifest.json").unlink()
    (folder / "results.json").unlink()
    for file in (folder / PARTS).iterdir():
        if file.name.split(".")[0] not in kept:
            file.unlink()
    evaluate.run(again, workers=0)
    assert again.store().get("results.json") == old.get("results.json")
    assert again.store().get("manifest.json") == old.get("manifest.json")


def test_nothing_held_out_nothing_asked_of_it(toy: Toy) -> None:
    recipe = toy[1].model_copy(update={"scan": toy[1].scan.model_copy(update={"held_out": 0.0})})
    asked = measurements(StepContext(recipe, str(toy[0]), "evaluate"))
    assert not [m for m in asked if m.held_out and m.kind != "replies"]
    assert len({m.part for m in measurements(context(toy))}) == len(measurements(context(toy)))


def test_a_request_without_the_name_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluation.request: it must hold \{name\} once"):
        parse_recipe({**toy_run.RECIPE, "evaluation": {"request": "Draw something"}})
