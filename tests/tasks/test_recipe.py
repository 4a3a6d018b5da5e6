from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from infra.errors import RecipeError
from tasks.recipe import BUILT_IN, Recipe, find_recipe, load_recipe, parse_recipe

MINIMAL = """
name: small
sources:
  - {name: docs, type: text, kind: text, path: docs}
  - {name: chat, type: messages, kind: messages, path: chat}
mix:
  tokens: 1000
  stages: [{name: one, share: 1.0, weights: {docs: 1}}]
finetune_mix: {sources: [chat]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(MINIMAL)
    return file


def test_reads_and_keeps_its_folder(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == "small"
    assert recipe.folder == str(path.parent)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("name", sorted(p.stem for p in BUILT_IN.glob("*.yaml")))
def test_built_in_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).name == name
    assert find_recipe(f"recipes/{name}.yaml").is_file()


def test_a_recipe_like_another_states_what_differs(path: Path) -> None:
    other = path.with_name("other.yaml")
    other.write_text("like: small.yaml\nname: other\nmix: {tokens: 2000}\npretrain: {batch: 16}\n")
    small, found = load_recipe(path), load_recipe(other, ["pretrain.checkpoint_every=7"])
    assert (found.name, found.mix.tokens, found.pretrain.batch, found.pretrain.checkpoint_every) == (
        *("other", 2000, 16),
        7,
    )
    assert found.mix.stages == small.mix.stages
    assert found.sources == small.sources


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("like: none.yaml", r"like: none\.yaml; there is no recipe file .*none\.yaml"),
        ("like: other.yaml", r"like: other\.yaml; that one is, in the end, like this one"),
        ("like: list.yaml", r"list\.yaml: expected a mapping of sections"),
    ],
)
def test_what_a_recipe_cannot_be_like_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(RecipeError, match=says):
        load_recipe(tmp_path / "other.yaml")


def test_unknown_recipe_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe file. Built-in recipes: .*emoji"):
        load_recipe(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pretrain.bacth=4", "pretrain.bacth: unknown key; did you mean 'batch'?"),
        ("pretrian.batch=4", "pretrian: unknown key; did you mean 'pretrain'?"),
        ("pretrain.optimizer.lr=4", "pretrain.optimizer.lr: unknown key; known here: betas, clip"),
        ("sources.docs.lisence=x", "unknown key; did you mean 'licence'?"),
        ("pretrain.batch=many", 'pretrain.batch: .*integer.*got "many"'),
        ("pretrain.batch=0", "pretrain.batch: .*greater than or equal to 1 .got 0"),
        ("pretrain.batch", "expected KEY=VALUE"),
        ("pretrain.batch=[", "not valid YAML"),
        ("name.x=1", "name is a value, not a section"),
        ("sources.nope.limit=3", "no entry is named 'nope'"),
        ("mix.stages.one.share=0.5", "shares sum to 0.5"),
        ("mix.stages.one.weights={dosc: 1}", "no source is named 'dosc'; did you mean 'docs'"),
        ("finetune_mix.sources=[docs]", "kind text, not messages"),
        ("image_tokenizer.codes=512", "they must be equal"),
        ("mix.sequence_length=512", "a picture is 1026 tokens"),
        ("model.heads=3", "dim is 4096 with 3 heads"),
        ("pretrain.continue_from={training: finetune/0123456789ab, step: 5}", "it must be a folder pretrain/"),
        ("pretrain.continue_from={training: ../elsewhere, step: 5}", "pretrain.continue_from.training: .*pattern"),
    ],
)
def test_faults_are_explained(path: Path, setting: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(path, [setting])


def test_overrides(path: Path) -> None:
    recipe = load_recipe(path, ["pretrain.batch=16", "sources.docs.limit=5", "mix.stages.0.name=first", "seed=3"])
    assert (recipe.pretrain.batch, recipe.sources[0].limit, recipe.mix.stages[0].name, recipe.seed) == (
        16,
        5,
        "first",
        3,
    )


def test_broken_files_are_named(tmp_path: Path) -> None:
    for text, says in (("a: [", "not valid YAML"), ("- a", "expected a mapping"), ("name: x", "missing")):
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        with pytest.raises(RecipeError, match=says):
            load_recipe(file)


def test_the_schema_is_a_form() -> None:
    schema = Recipe.model_json_schema()
    assert {"name", "sources", "mix"} <= set(schema["required"])
    assert schema["additionalProperties"] is False
