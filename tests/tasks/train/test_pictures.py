"""Which pictures the image tokenizer sees."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tasks.context import StepContext
from tasks.encode.decode import open_image
from tasks.encode.transforms import transform
from tasks.recipe import Recipe, parse_recipe
from tasks.scan.faces import Face
from tasks.scan.selected import selected_rows, work_items
from tasks.train import pictures as module
from tasks.train.pictures import (
    FACES,
    HELD_OUT,
    OBJECTS,
    TRAINING,
    choose,
    collect,
    discard,
    load_boxes,
    load_pictures,
)
from tests.tasks import toy_run

SIDE = 16
SQUARES = {
    hashlib.sha256(data).digest(): transform("reference-1").crop(open_image(data, 10**6), SIDE)
    for data in (toy_run.picture(c, s) for c in toy_run.COLOURS for s in toy_run.SHAPES)
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to selection."""
    workdir = tmp_path_factory.mktemp("pictures")
    return workdir, toy_run.make(workdir, "select")


def context_of(made: tuple[Path, Recipe], pictures: int = 1000) -> StepContext:
    workdir, recipe = made
    raw = recipe.model_dump(mode="json")
    raw["image_tokenizer_training"]["pictures"] = pictures
    return StepContext(parse_recipe(raw), str(workdir), "image-tokenizer", f"test-{pictures}")


def test_each_different_picture_is_there_once_and_none_is_on_both_sides(made: tuple[Path, Recipe]) -> None:
    context = context_of(made)
    choice = choose(context)
    assert choice.training | choice.held_out == set(SQUARES)
    assert not choice.training & choice.held_out
    assert choice.held_out
    for item in work_items(context):
        for row in selected_rows(context, item.part).values():
            if not row.held_out:
                assert all(image.sha256 in choice.training for image in row.images)


def test_the_arrays_hold_the_cropped_pictures(made: tuple[Path, Recipe]) -> None:
    context = context_of(made)
    collect(context)
    choice, store = choose(context), context.store()
    for name, chosen in ((TRAINING, choice.training), (HELD_OUT, choice.held_out)):
        found = load_pictures(store, name, SIDE)
        assert found.shape == (len(chosen), SIDE, SIDE, 3)
        assert {p.tobytes() for p in np.array(found)} == {SQUARES[s].tobytes() for s in chosen}
    before = store.path(TRAINING).stat().st_mtime_ns
    collect(context)  # an attempt after a kill takes what is there
    assert store.path(TRAINING).stat().st_mtime_ns == before
    discard(store)
    assert not store.exists(TRAINING)
    assert [p.name for p in store.path().iterdir() if p.name != "scratch"] == []


def test_boxes_lie_beside_their_pictures(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is salient is stood in for by a box as wide as the picture is bright."""

    def bright(square: np.ndarray, limit: int) -> list[Face]:
        return [Face(0, 0, 1 + int(square.mean()) // 32, 8)]

    monkeypatch.setattr(module, "salient_boxes", bright)
    workdir, recipe = made
    Path(recipe.folder, "x").write_bytes(b"weights, which collecting does not read")
    raw = recipe.model_dump(mode="json")
    raw["image_tokenizer_training"] |= {"object_weight": 0.5, "perceptual_weights": "x", "region_boxes": 2}
    context = StepContext(parse_recipe(raw), str(workdir), "image-tokenizer", "test-boxes")
    collect(context)
    store = context.store()
    pictures, objects, faces = (
        load_pictures(store, TRAINING, SIDE),
        *(load_boxes(store, name, 2) for name in (OBJECTS, FACES)),
    )
    assert objects.shape == faces.shape == (len(pictures), 2, 4)
    assert not faces.any()  # scan did not look for any
    assert [int(row[0, 2]) for row in objects] == [bright(p, 2)[0].width for p in np.array(pictures)]
    assert len({int(row[0, 2]) for row in objects}) > 1
    discard(store)
    assert store.list("scratch") == []


def test_fewer_are_chosen_by_hash(made: tuple[Path, Recipe]) -> None:
    few, fewer = choose(context_of(made, 8)), choose(context_of(made, 5))
    assert len(few.training) == 8
    assert fewer.training < few.training
    assert few.held_out == fewer.held_out


def test_no_held_out_pictures_give_an_empty_array(made: tuple[Path, Recipe]) -> None:
    store = context_of(made).store()
    store.put(HELD_OUT, b"")
    assert load_pictures(store, HELD_OUT, SIDE).shape == (0, SIDE, SIDE, 3)
    store.delete(HELD_OUT)
