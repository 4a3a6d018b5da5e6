"""The weights files that training the image tokenizer needs: looked for early, and brought to each worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from infra.errors import RecipeError, SourceError
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.fits import SECTION, check_sides, needs_perceptual
from model.image_tokenizer.foreign_files import sha256_of
from tasks.recipe import Recipe
from tasks.scan.inputs import local_file, located

KEYS = ("perceptual_weights", "face_network", "inception_weights")


def require_trainable(recipe: Recipe) -> None:
    """RecipeError if no training can come of the recipe, whatever its files hold: asked before the first step runs."""
    training = recipe.image_tokenizer_training
    check_sides(recipe.image_tokenizer, training)
    needs_perceptual(training, faces=recipe.scan.faces, objects=True)
    if training.face_weight and not recipe.scan.faces:
        raise RecipeError(
            f"{SECTION}.face_weight is {training.face_weight:g} and scan.faces is off, so that no faces are known; "
            "set scan.faces: true, or leave face_weight out"
        )


def check_weights(recipe: Recipe) -> None:
    """RecipeError or SourceError if training needs weights that are not there: before hours go into pictures."""
    from model.image_tokenizer.lpips_weights import PACKAGE, package_file

    require_trainable(recipe)
    training = recipe.image_tokenizer_training
    named = training.perceptual_weights
    if named is not None and named.startswith(PACKAGE):
        package_file(named)
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
                found[key] = str(stack.enter_context(local_file(path, folder, f"{SECTION}.{key}")))
        yield training.model_copy(update=found)


def weights_digests(training: ImageTokenizerTraining, folder: str, *, faces: bool) -> dict[str, str]:
    """What the weights are that decide what is trained, by the recipe's key: the sha256 of a file, a package's name.

    Of weights that no term uses, or a figure alone, nothing is said. ``faces``: whether faces are looked for.

    Raises:
        SourceError: A file is missing.
    """
    used = {}
    if training.through_lpips(faces=faces, objects=True):
        used[f"{SECTION}.perceptual_weights"] = training.perceptual_weights
    if faces and training.faces_weigh:
        used[f"{SECTION}.face_network"] = training.face_network
    return {key: _content(path, folder, key) for key, path in used.items() if path is not None}


def require_same_weights(
    training: ImageTokenizerTraining, folder: str, digests: Mapping[str, str], *, faces: bool
) -> None:
    """SourceError if the weights' files are no longer those of ``digests``: the step's address would not be theirs."""
    now = weights_digests(training, folder, faces=faces)
    for key, digest in digests.items():
        if now.get(key) != digest:
            raise SourceError(
                f"{getattr(training, key.rpartition('.')[2])}: this file, {key}, changed since the step was submitted; "
                "run the recipe again"
            )


def _content(path: str, folder: str, key: str) -> str:
    if path.startswith("package:"):
        return path
    storage, name = located(path, folder)
    if storage.info(name) is None:
        raise SourceError(
            f"{storage.url(name)}: no such file; correct {key}. Relative paths start at the recipe's folder."
        )
    return sha256_of(storage, name)
