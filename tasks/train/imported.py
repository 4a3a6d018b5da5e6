"""Step ``image-tokenizer`` where the recipe imports one: the weights are checked, kept in our layout, and measured.

Output: ``model.safetensors`` and ``config.json`` and, where there is a decoder and a picture to try it on,
``reconstructions.png``.
"""

from __future__ import annotations

from typing import Any

from infra.errors import RecipeError, SourceError
from infra.store.commit import entry
from model.image_tokenizer.config import ImageTokenizerConfig
from tasks.context import StepContext
from tasks.fingerprint import imported_weights_fingerprint
from tasks.steps import BY_NAME
from tasks.train.foreign import import_files
from tasks.train.pictures import HELD_OUT, TRAINING, collect, discard, load_pictures


def import_image_tokenizer(context: StepContext) -> None:
    """Imports, measures and commits.

    Facts: ``imported`` (layout, dtype and sha256 of the files, tensors left out), ``decoder``, and as far as there are
    pictures and a decoder ``psnr``, ``ssim``, ``l1``, ``codebook_used`` and ``perplexity``, as after a training.

    Raises:
        RecipeError: ``image_tokenizer`` describes another architecture, or the weights have no decoder and
            ``image_tokenizer_import.encoder_only`` does not accept that.
        SourceError: The files are missing, or are others than when the step was submitted.
        StoreError: They are not such weights.
    """
    from model.image_tokenizer.importing import import_weights
    from model.image_tokenizer.load import NO_DECODER, load_image_tokenizer, save_image_tokenizer

    recipe, store = context.recipe, context.store()
    files = import_files(recipe.image_tokenizer_import, recipe.folder)
    digest = files.digest()
    inputs = {name: context.fingerprints[name] for name in BY_NAME[context.step].inputs}
    if imported_weights_fingerprint(recipe, inputs, digest) != context.fingerprint:
        raise SourceError(f"{files.where}: changed since this step was submitted; run the recipe again")
    with files.on_disk() as local:
        found = import_weights(local, recipe.image_tokenizer.resolution)
    _require_equal(recipe.image_tokenizer, found.config, files.where)
    if not found.has_decoder and not recipe.image_tokenizer_import.encoder_only:
        raise RecipeError(
            f"{files.where}: {NO_DECODER} To go on without, set image_tokenizer_import.encoder_only: true; then the "
            "steps up to finetune and export work, and evaluate, generate and the decoded pictures of browse do not."
        )
    saved = save_image_tokenizer(store, found.config, found.weights)
    tokenizer = load_image_tokenizer(store)
    facts, sheets = _measured(context, tokenizer)
    context.finish(
        files=[*saved, *(entry(name, data) for name, data in sheets.items())],
        facts={
            **facts,
            "imported": {"layout": found.layout, "dtype": found.dtype, "left_out": found.left_out, "sha256": digest},
            "decoder": found.has_decoder,
            "parameters": sum(w.numel() for w in found.weights.values()),
        },
    )
    discard(store)


def _require_equal(said: ImageTokenizerConfig, found: ImageTokenizerConfig, where: str) -> None:
    ours, theirs = said.model_dump(mode="json"), found.model_dump(mode="json")
    other = {key: value for key, value in theirs.items() if ours[key] != value}
    if other:
        listed = "; ".join(f"image_tokenizer.{key} is {ours[key]}, and theirs is {v}" for key, v in other.items())
        keys = ", ".join(f"{key}: {value}" for key, value in other.items())
        raise RecipeError(
            f"{where}: the recipe describes another image tokenizer: {listed}. Set image_tokenizer: {{{keys}}}"
        )


def _measured(context: StepContext, tokenizer: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Facts, and the sheet of reconstructions as a file."""
    from tasks.train.image_tokenizer import RECONSTRUCTIONS, codebook_use, measure

    recipe, store = context.recipe, context.store()
    count, side = recipe.image_tokenizer_import.pictures, recipe.image_tokenizer.resolution
    if not count:
        return {}, {}
    discard(store)  # an earlier attempt's may be of another image_tokenizer_import.pictures, which no address tells
    # Few pictures, and no look for objects: nothing is trained.
    few = recipe.image_tokenizer_training.model_copy(update={"pictures": count, "object_weight": 0.0})
    collect(
        StepContext(
            recipe.model_copy(update={"image_tokenizer_training": few}),
            context.root,
            context.step,
            context.job,
            prints=context.fingerprints,
        )
    )
    training, held_out = (load_pictures(store, name, side)[:count] for name in (TRAINING, HELD_OUT))
    facts: dict[str, Any] = {"pictures": {"training": len(training), "held_out": len(held_out)}}
    measured = held_out if len(held_out) else training
    sheets = {}
    if len(measured) and tokenizer.has_decoder:
        figures, sheet = measure(tokenizer, measured)
        store.put(RECONSTRUCTIONS, sheet)
        facts |= {**figures, "measured_on": "held-out" if len(held_out) else "training"}
        sheets[RECONSTRUCTIONS] = sheet
    if len(training):
        facts |= codebook_use(tokenizer, training)
    return facts, sheets
