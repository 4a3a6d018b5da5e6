"""The step ``image-tokenizer`` with an import: what it takes, writes, refuses, and what its address depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import RecipeError, SourceError, StoreError
from infra.storage import Storage
from model.image_tokenizer.load import load_image_tokenizer, read_image_tokenizer
from tasks.context import StepContext
from tasks.encode import run as encode
from tasks.fingerprint import fingerprints
from tasks.recipe import Recipe, parse_recipe
from tasks.steps import NAMES
from tasks.train import image_tokenizer
from tests.model.image_tokenizer.foreign import random_model, vqvae, whole_chameleon, write_taming
from tests.tasks import toy_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to selection."""
    workdir = tmp_path_factory.mktemp("imported")
    return workdir, toy_run.make(workdir, "select")


def recipe_of(
    made: tuple[Path, Recipe], file: Path | None, changes: dict[str, Any] | None = None, **keys: Any
) -> Recipe:
    raw = made[1].model_dump(mode="json")
    raw["image_tokenizer_import"] = {"file": None if file is None else str(file), **keys}
    for section, values in (changes or {}).items():
        raw[section] |= values
    return parse_recipe(raw)


def step(made: tuple[Path, Recipe], file: Path, changes: dict[str, Any] | None = None, **keys: Any) -> StepContext:
    return StepContext(recipe_of(made, file, changes, **keys), str(made[0]), "image-tokenizer", "test")


def test_a_checkpoint_becomes_the_runs_tokenizer(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    model = random_model(made[1].image_tokenizer)
    context = step(made, write_taming(tmp_path, model), pictures=3)
    image_tokenizer.run(context)
    store, manifest = context.store(), context.manifest("image-tokenizer")
    assert [f.name for f in manifest.files] == ["config.json", "model.safetensors", "reconstructions.png"]
    assert not store.list("scratch")
    weights = read_image_tokenizer(store)[1]
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    facts = manifest.facts
    assert facts["decoder"] is True
    assert facts["imported"]["dtype"] == "float32"
    assert set(facts["imported"]["sha256"]) == {"weights-0", "config"}
    assert facts["pictures"] == {"training": 3, "held_out": 3}
    assert facts["measured_on"] == "held-out"
    assert 0 < facts["psnr"] < 60
    assert 0 < facts["codebook_used"] <= 1
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    follower = StepContext(context.recipe, context.root, "encode", "test")
    encode.run(follower, workers=0)
    assert follower.manifest("encode").facts["images"]["shapes"] > 0


@pytest.mark.parametrize("how", ["whole", "alone"])
def test_an_encoder_alone_must_be_accepted(how: str, made: tuple[Path, Recipe], tmp_path: Path) -> None:
    model = random_model(made[1].image_tokenizer)
    (whole_chameleon(model) if how == "whole" else vqvae(model)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(RecipeError, match=r"an encoder only.*image_tokenizer_import\.encoder_only: true"):
        image_tokenizer.run(step(made, tmp_path / "theirs"))
    context = step(made, tmp_path / "theirs", encoder_only=True)
    image_tokenizer.run(context)
    facts = context.manifest("image-tokenizer").facts
    assert facts["decoder"] is False
    assert "psnr" not in facts
    assert facts["codebook_used"] > 0
    follower = StepContext(context.recipe, context.root, "encode", "test")
    encode.run(follower, workers=0)
    with pytest.raises(StoreError, match=r"import the vqgan\.ckpt"):
        load_image_tokenizer(context.store()).decode(torch.zeros(1, 16, dtype=torch.int64))


def test_without_pictures_to_look_at_it_only_imports(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    context = step(made, write_taming(tmp_path, random_model(made[1].image_tokenizer, seed=2)), pictures=0)
    image_tokenizer.run(context)
    manifest = context.manifest("image-tokenizer")
    assert [f.name for f in manifest.files] == ["config.json", "model.safetensors"]
    assert "psnr" not in manifest.facts


def test_pictures_that_an_earlier_attempt_left_are_not_taken_for_these(
    made: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_taming(tmp_path, random_model(made[1].image_tokenizer, seed=3))

    def killed(*rest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_tokenizer, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            image_tokenizer.run(step(made, path, pictures=1))
    context = step(made, path, pictures=3)
    assert context.store().list("scratch")
    image_tokenizer.run(context)
    assert context.manifest("image-tokenizer").facts["pictures"] == {"training": 3, "held_out": 3}


def test_a_recipe_that_describes_another_is_told_what_to_set(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    model = random_model(made[1].image_tokenizer.model_copy(update={"z_channels": 24, "residual_blocks": 2}))
    with pytest.raises(RecipeError) as error:
        image_tokenizer.run(step(made, write_taming(tmp_path, model)))
    assert "image_tokenizer.z_channels is 32, and theirs is 24" in str(error.value)
    assert "Set image_tokenizer: {residual_blocks: 2, z_channels: 24}" in str(error.value)


def test_the_address_is_the_files_content(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    model = random_model(made[1].image_tokenizer)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_taming(tmp_path / name, model)
    here = recipe_of(made, tmp_path / "a" / "vqgan.ckpt")
    prints = fingerprints(here)
    assert fingerprints(recipe_of(made, tmp_path / "b" / "vqgan.ckpt", encoder_only=True, pictures=1)) == prints
    untrained = {"image_tokenizer_training": {"steps": 7, "learning_rate": 1e-3}}
    assert fingerprints(recipe_of(made, tmp_path / "a" / "vqgan.ckpt", untrained)) == prints
    follow = set(NAMES) - {"scan", "select", "text-tokenizer"}
    trained = fingerprints(recipe_of(made, None))
    assert {name for name in NAMES if prints[name] != trained[name]} == follow
    (tmp_path / "b" / "vqgan.yaml").write_text((tmp_path / "a" / "vqgan.yaml").read_text() + "\n")
    other = fingerprints(recipe_of(made, tmp_path / "b" / "vqgan.ckpt"))
    assert {name for name in NAMES if prints[name] != other[name]} == follow


def test_files_that_change_or_go(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    context = step(made, write_taming(tmp_path, random_model(made[1].image_tokenizer)))
    assert context.fingerprints
    write_taming(tmp_path, random_model(made[1].image_tokenizer, seed=1))
    with pytest.raises(SourceError, match="changed since this step was submitted"):
        image_tokenizer.run(context)
    (tmp_path / "vqgan.ckpt").unlink()
    with pytest.raises(SourceError, match=r"vqgan\.ckpt: no such file.*Correct image_tokenizer_import"):
        assert step(made, tmp_path / "vqgan.ckpt").fingerprints


def test_a_relative_path_starts_at_the_recipes_folder(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    write_taming(tmp_path, random_model(made[1].image_tokenizer))
    near = recipe_of(made, Path("vqgan.ckpt")).model_copy(update={"folder": str(tmp_path)})
    assert fingerprints(near) == fingerprints(recipe_of(made, tmp_path / "vqgan.ckpt"))
    assert Storage(tmp_path).list() == ["vqgan.ckpt", "vqgan.yaml"]
