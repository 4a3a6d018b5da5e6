"""Axes of colour: what the first convolution starts on, and the distance in hue."""

from __future__ import annotations

import pytest
import torch

from model.image_tokenizer.colours import evened_colours, hue_distance
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.vqgan import VQModel


def test_hue_distance_is_blind_to_light_and_sees_both_hues() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert float(hue_distance(x + 0.3, x)) == pytest.approx(0, abs=1e-6)
    red_blue = torch.tensor([0.1, 0.0, -0.1])[None, :, None, None]
    assert float(hue_distance(x + red_blue, x)) == pytest.approx(0.2 / 2**0.5, rel=1e-5)
    green = torch.tensor([0.0, 0.3, 0.0])[None, :, None, None]
    assert float(hue_distance(x + green, x)) == pytest.approx(0.6 / 6**0.5, rel=1e-5)


def test_evened_colours_have_one_strength_along_all_axes() -> None:
    colours = evened_colours()
    assert torch.allclose(colours, colours.T)
    light, green = torch.ones(3) / 3**0.5, torch.tensor([1.0, -2.0, 1.0]) / 6**0.5
    assert float((colours @ green).norm() / (colours @ light).norm()) == pytest.approx(0.93 / 0.13, rel=1e-4)


def test_a_new_encoder_sees_green_as_it_sees_light() -> None:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        resolution=16,
        codes=16,
        channels=16,
        norm_groups=4,
        multipliers=(1, 2),
        residual_blocks=1,
        z_channels=8,
        embed_dim=4,
    )
    first = VQModel(config).encoder.conv_in
    inside = (..., slice(1, -1), slice(1, -1))
    seen = {}
    for name, strength, axis in (("light", 0.93, [1.0, 1.0, 1.0]), ("green", 0.13, [1.0, -2.0, 1.0])):
        colour = strength * torch.nn.functional.normalize(torch.tensor(axis), dim=0)
        seen[name] = float(first(colour[None, :, None, None].expand(1, 3, 8, 8))[inside].detach().square().mean())
    assert 0.2 < seen["green"] / seen["light"] < 5  # 0.02 with weights that know nothing of colour
