"""Step ``pretrain`` where the recipe imports a transformer: the weights are checked and kept in our layout."""

from __future__ import annotations

from typing import Any

from infra.errors import RecipeError, SourceError
from infra.storage import Storage
from infra.store.commit import entry_of_file
from model.transformer.config import TransformerConfig
from tasks.context import StepContext
from tasks.fingerprint import imported_model_fingerprint
from tasks.steps import BY_NAME
from tasks.train.foreign import import_model_files


def import_model(context: StepContext) -> None:
    """Imports and commits the step without training. Facts: ``imported`` (layout, dtype, sha256), ``parameters``."""
    store = context.store()
    context.manifest("mix")
    files, facts = convert_import(context, store)
    context.finish(files=[entry_of_file(store, name) for name in files], facts=facts)


def convert_import(context: StepContext, store: Storage) -> tuple[list[str], dict[str, Any]]:
    """Writes the imported transformer to ``store`` in our layout, tensor by tensor; the files, and facts.

    Raises:
        RecipeError: ``model`` or ``vocabulary`` describes another one.
        SourceError: The files are missing, or are others than when the step was submitted.
        StoreError: They are not such weights.
    """
    from model.transformer.importing import open_import
    from model.transformer.load import save_transformer

    recipe = context.recipe
    files = import_model_files(recipe.model_import, recipe.folder)
    digest = files.digest()
    inputs = {name: context.fingerprints[name] for name in BY_NAME[context.step].inputs}
    if imported_model_fingerprint(recipe, inputs, digest) != context.fingerprint:
        raise SourceError(f"{files.where}: changed since this step was submitted; run the recipe again")
    with open_import(files) as found:
        _require_equal(recipe.model, found.config, files.where)
        if found.vocabulary_size != recipe.vocabulary.size:
            raise RecipeError(
                f"{files.where}: its vocabulary has {found.vocabulary_size} ids, and the recipe's has "
                f"{recipe.vocabulary.size}. Set vocabulary.size: {found.vocabulary_size}, and import the text "
                "tokenizer that the model knows."
            )
        saved = save_transformer(store, recipe.model, found.vocabulary_size, found.weights)
        facts = {
            "imported": {"layout": files.layout, "dtype": found.dtype, "sha256": digest},
            "model": recipe.model.model_dump(mode="json"),
            "parameters": recipe.model.parameters(found.vocabulary_size),
        }
    return saved, facts


def _require_equal(said: TransformerConfig, found: TransformerConfig, where: str) -> None:
    """RecipeError where the recipe's architecture is another. Dropout is the recipe's own affair."""

    def plain(config: TransformerConfig) -> dict[str, Any]:
        sizes = {"kv_heads": config.n_kv_heads, "ffn": config.ffn_dim}
        return config.model_dump(mode="json", exclude={"dropout"}) | sizes

    ours = plain(said)
    other = {key: value for key, value in plain(found).items() if ours[key] != value}
    if other:
        listed = "; ".join(f"model.{key} is {ours[key]}, and theirs is {value}" for key, value in other.items())
        keys = ", ".join(f"{key}: {value}" for key, value in other.items())
        raise RecipeError(f"{where}: the recipe describes another transformer: {listed}. Set model: {{{keys}}}")
