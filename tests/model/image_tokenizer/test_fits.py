"""Pictures too small for what is to look at them are refused, and no larger ones."""

from __future__ import annotations

import pytest
import torch

from infra.errors import RecipeError
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.fits import LPIPS_SIDE, SSIM_SIDE, check_sides, scores_side
from model.image_tokenizer.losses import ssim
from model.image_tokenizer.perceptual import PerceptualLoss


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_scores_are_as_many_as_the_discriminator_gives(layers: int) -> None:
    network = Discriminator(4, layers)
    for side in range(3 << layers, (3 << layers) + 5):
        with torch.no_grad():
            assert network(torch.zeros(1, 3, side, side)).shape[-1] == scores_side(side, layers) >= 1
    assert scores_side((3 << layers) - 1, layers) == 0


@pytest.mark.parametrize("channels", [1, 3, 17, 20, 64])
def test_a_discriminator_may_have_any_number_of_channels(channels: int) -> None:
    with torch.no_grad():
        assert Discriminator(channels, 3)(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)


def test_smaller_pictures_than_the_least_cannot_be_looked_at(vgg: dict[str, torch.Tensor]) -> None:
    lpips = PerceptualLoss(vgg, "random")
    least, less = (torch.zeros(1, 3, side, side) for side in (LPIPS_SIDE, LPIPS_SIDE - 1))
    assert float(lpips(least, least)) == 0
    with pytest.raises(RuntimeError):
        lpips(less, less)
    least, less = (torch.zeros(1, 3, side, side, dtype=torch.uint8) for side in (SSIM_SIDE, SSIM_SIDE - 1))
    assert float(ssim(least, least)) == pytest.approx(1)
    with pytest.raises(RuntimeError):
        ssim(less, less)


@pytest.mark.parametrize(
    ("resolution", "changes", "says"),
    [
        (64, {}, None),
        (64, {"random_crop": 24}, None),
        (64, {"random_crop": 16}, r"random_crop is 16; a discriminator of 3 layers.*less than 24 pixels"),
        (64, {"random_crop": 16, "discriminator_layers": 2}, None),
        (64, {"random_crop": 16, "discriminator_weight": 0}, None),
        (64, {"random_crop": 16, "discriminator_start": 10**6}, None),
        (16, {}, r"image_tokenizer\.resolution is 16; a discriminator of 3 layers"),
        (12, {"discriminator_weight": 0}, None),
        (12, {"discriminator_weight": 0, "perceptual_weights": "x"}, r"resolution is 12; LPIPS.*at least 16"),
        (8, {"discriminator_weight": 0}, r"resolution is 8; .*SSIM.*at least 11"),
        (64, {"random_crop": 66}, r"random_crop is 66; it must be a multiple of 2"),
    ],
)
def test_what_is_too_small_is_named(resolution: int, changes: dict[str, object], says: str | None) -> None:
    config = ImageTokenizerConfig(resolution=resolution, multipliers=(1, 1))
    training = ImageTokenizerTraining.model_validate({"steps": 10, "discriminator_start": 5, **changes})
    if says is None:
        check_sides(config, training)
    else:
        with pytest.raises(RecipeError, match=says):
            check_sides(config, training)
