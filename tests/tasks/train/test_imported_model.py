"""The step ``pretrain`` with an import: what it takes, writes, refuses, and what its address depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import RecipeError, SourceError
from infra.storage import Storage
from model.transformer.foreign_files import find_model
from model.transformer.importing import open_import
from model.transformer.load import load_transformer, save_transformer
from model.transformer.model import Transformer
from model.transformer.original import save_original
from tasks.context import StepContext
from tasks.fingerprint import fingerprints
from tasks.recipe import Recipe, parse_recipe
from tasks.steps import NAMES
from tasks.train import pretrain
from tests.tasks import toy_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to the mixture."""
    workdir = tmp_path_factory.mktemp("imported")
    return workdir, toy_run.make(workdir, "mix")


def recipe_of(made: tuple[Path, Recipe], folder: Path, changes: dict[str, Any] | None = None, **keys: Any) -> Recipe:
    raw = made[1].model_dump(mode="json")
    raw["model_import"] = {"path": str(folder), **keys}
    for section, values in (changes or {}).items():
        raw[section] |= values
    return parse_recipe(raw)


def step(made: tuple[Path, Recipe], folder: Path, changes: dict[str, Any] | None = None, **keys: Any) -> StepContext:
    return StepContext(recipe_of(made, folder, changes, **keys), str(made[0]), "pretrain", "test")


def write(folder: Path, recipe: Recipe, layout: str = "original", seed: int = 5) -> Transformer:
    model = Transformer(recipe.model, recipe.vocabulary.size).initialise(seed)
    save = save_original if layout == "original" else save_transformer
    save(Storage(folder), recipe.model, recipe.vocabulary.size, model.state_dict())
    return model


@pytest.mark.parametrize("layout", ["original", "calumma"])
def test_without_training_the_step_is_the_weights(made: tuple[Path, Recipe], tmp_path: Path, layout: str) -> None:
    model = write(tmp_path, made[1], layout)
    context = step(made, tmp_path)
    pretrain.run(context)
    manifest = context.manifest("pretrain")
    assert [f.name for f in manifest.files] == ["model.json", "model.safetensors"]
    assert manifest.facts["imported"]["layout"] == layout
    assert manifest.facts["parameters"] == sum(p.numel() for p in model.parameters())
    back = load_transformer(context.store())
    assert back.config == made[1].model
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in back.state_dict().items())


def test_training_starts_from_the_weights(
    made: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write(tmp_path, made[1])
    started: list[dict[str, Any]] = []

    def trained(context: StepContext, run: str, config: Any, training: Any, start: Storage) -> None:
        started.append(load_transformer(start).state_dict())
        assert run == "pretrain"
        assert training == context.recipe.pretrain

    monkeypatch.setattr(pretrain, "run_training", trained)
    context = step(made, tmp_path, train=True)
    pretrain.run(context)
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in started[0].items())
    assert not context.store().list(pretrain.START)  # a copy of the weights that nobody needs any more


def test_the_address_is_the_files_content(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, made[1])
    prints = fingerprints(recipe_of(made, tmp_path / "a"))
    untrained = {"pretrain": {"z_loss": 0.5}}
    assert fingerprints(recipe_of(made, tmp_path / "b", untrained)) == prints
    first = NAMES.index("pretrain")
    for other in (
        made[1],
        recipe_of(made, tmp_path / "a", train=True),
        recipe_of(made, tmp_path / "a", {"model": {"rope_theta": 500.0}}),
    ):
        found = fingerprints(other)
        assert all(found[name] == prints[name] for name in NAMES[:first])
        assert found["pretrain"] != prints["pretrain"]
        assert found["finetune"] != prints["finetune"]
    trained = fingerprints(recipe_of(made, tmp_path / "a", train=True))
    assert fingerprints(recipe_of(made, tmp_path / "a", untrained, train=True))["pretrain"] != trained["pretrain"]
    write(tmp_path / "a", made[1], seed=6)
    assert fingerprints(recipe_of(made, tmp_path / "a"))["pretrain"] != prints["pretrain"]


def test_without_an_import_addresses_are_what_they_were(made: tuple[Path, Recipe]) -> None:
    from tasks.fingerprint import ingredients

    assert "model_import" not in ingredients(made[1])["pretrain"]


def test_files_that_changed_since_are_refused(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    write(tmp_path, made[1])
    context = step(made, tmp_path)
    assert context.fingerprint
    write(tmp_path, made[1], seed=7)
    with pytest.raises(SourceError, match="changed since this step was submitted"):
        pretrain.run(context)


def test_a_recipe_that_describes_another_is_told_what_to_set(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    write(tmp_path, made[1])
    other = {"model": {"norm": "reordered" if made[1].model.norm == "pre" else "pre", "dropout": 0.3}}
    with pytest.raises(RecipeError, match=rf"model\.norm is .* Set model: {{norm: {made[1].model.norm}}}"):
        pretrain.run(step(made, tmp_path, other))


def test_another_vocabulary_is_refused(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    size = made[1].vocabulary.size
    model = Transformer(made[1].model, size + 8).initialise(0)
    save_original(Storage(tmp_path), made[1].model, size + 8, model.state_dict())
    with open_import(find_model(str(tmp_path))) as found:
        assert found.vocabulary_size == size + 8
    with pytest.raises(RecipeError, match=rf"has {size + 8} ids, and the recipe's has {size}\. Set vocabulary\.size"):
        pretrain.run(step(made, tmp_path))


def test_a_folder_that_is_not_there(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such folder.*Correct model_import"):
        fingerprints(recipe_of(made, tmp_path / "nothing"))
