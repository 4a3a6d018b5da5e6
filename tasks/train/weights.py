"""The weights files that training the image tokenizer needs: looked for early, and brought to each worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from infra.errors import RecipeError
from model.image_tokenizer.config import ImageTokenizerTraining
from tasks.recipe import Recipe
from tasks.scan.inputs import file_bytes, local_file

KEYS = ("perceptual_weights", "face_network", "inception_weights")


def check_weights(recipe: Recipe) -> None:
    """RecipeError or SourceError if training needs weights that are not there: before hours go into pictures."""
    from model.image_tokenizer.terms import needs_perceptual

    training = recipe.image_tokenizer_training
    needs_perceptual(training, faces=recipe.scan.faces, objects=True)
    if training.face_weight and not recipe.scan.faces:
        raise RecipeError(
            f"image_tokenizer_training.face_weight is {training.face_weight:g} and scan.faces is off, so that no faces "
            "are known; set scan.faces: true, or leave face_weight out"
        )
    with local_weights(training, recipe.folder):
        pass


@contextmanager
def local_weights(training: ImageTokenizerTraining, folder: str) -> Iterator[ImageTokenizerTraining]:
    """The recipe's section with the weights that it names on a local disk; relative paths start at ``folder``."""
    found = {}
    with ExitStack() as stack:
        for key in KEYS:
            path = getattr(training, key)
            if path is not None and not path.startswith("package:"):
                found[key] = str(stack.enter_context(local_file(path, folder, f"image_tokenizer_training.{key}")))
        yield training.model_copy(update=found)


def weights_digests(recipe: Recipe) -> dict[str, str]:
    """The sha256 of every weights file that decides what is trained, by the recipe's key: a file's name says little.

    SourceError if one is missing.
    """
    training, section = recipe.image_tokenizer_training, "image_tokenizer_training"
    named = {f"{section}.{key}": getattr(training, key) for key in ("perceptual_weights", "face_network")}
    return {
        key: hashlib.sha256(file_bytes(path, recipe.folder, key)).hexdigest()
        for key, path in named.items()
        if path is not None and not path.startswith("package:")
    }
