"""Losses, figures of merit, the discriminator and the perceptual term."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from infra.errors import RecipeError
from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.losses import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    perplexity,
    psnr,
    ssim,
)
from model.image_tokenizer.perceptual import PerceptualLoss, load_perceptual


def noise(count: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_psnr() -> None:
    a = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert psnr(a, a).item() == 100
    assert psnr(a, a + 10).item() == pytest.approx(28.13, abs=0.01)  # 20·log10(255/10)
    assert psnr(torch.zeros_like(a), torch.full_like(a, 255)).item() == pytest.approx(0)


def test_ssim() -> None:
    a = noise()
    assert torch.allclose(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert abs(float(ssim(a, noise(seed=1)).mean())) < 0.1
    flat, brighter = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8), torch.full((1, 3, 32, 32), 200)
    expected = (2 * 100 * 200 + 6.5025) / (100**2 + 200**2 + 6.5025)  # without variance only the means count
    assert ssim(flat, brighter).item() == pytest.approx(expected, rel=1e-6)


def test_perplexity() -> None:
    assert perplexity(torch.tensor([5, 5, 5, 5, 0, 0])) == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)
    assert perplexity(torch.zeros(4)) == pytest.approx(1)


def test_hinge() -> None:
    assert discriminator_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])).item() == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.5])).item() == pytest.approx(1.25)
    assert generator_loss(torch.tensor([1.0, 3.0])).item() == -2


def test_the_adaptive_weight_levels_the_gradients() -> None:
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * last).sum(), (0.5 * last).sum(), last)
    assert weight.item() == pytest.approx(6, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight((3 * last).sum(), (1e-12 * last).sum(), last).item() == 1e4


def test_discriminator_scores_patches_of_each_picture_alone() -> None:
    torch.manual_seed(0)
    model = Discriminator(16, 3)
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    scores = model(x)
    assert scores.shape == (4, 1, 6, 6)
    assert torch.allclose(model(x[2:3]), scores[2:3], atol=1e-6)


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    """Random weights in torchvision's layout, which is written out here: the names are what is tested."""
    layers: list[nn.Module] = []
    width = 3
    for item in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
        width = item
    torch.manual_seed(0)
    weights = {f"features.{name}": tensor for name, tensor in nn.Sequential(*layers).state_dict().items()}
    return weights | {f"lin{i}": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}


def test_perceptual_distance(vgg: dict[str, torch.Tensor]) -> None:
    loss = PerceptualLoss(vgg, "here")
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    b.requires_grad_()
    assert loss(a, a).item() == 0
    distance = loss(a, b)
    assert distance.item() > 0
    assert distance.item() > loss(a, a + 0.1 * (b - a)).item()
    distance.backward()
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not [p for p in loss.parameters() if p.requires_grad]


def test_perceptual_features_are_vggs(vgg: dict[str, torch.Tensor]) -> None:
    loss = PerceptualLoss(vgg, "here")
    x = torch.rand(1, 3, 32, 32)
    h = (x - loss.mean) / loss.std
    for number in (0, 2):
        h = torch.relu(
            nn.functional.conv2d(h, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1)
        )
    h = nn.functional.max_pool2d(h, 2)
    for number in (5, 7):
        h = torch.relu(
            nn.functional.conv2d(h, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1)
        )
    assert torch.allclose(loss._features(x)[1], nn.functional.normalize(h, dim=1), atol=1e-6)


def test_wrong_weights_are_named(vgg: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lin3"):
        PerceptualLoss({k: v for k, v in vgg.items() if k != "lin3"}, "here")
    with pytest.raises(RecipeError, match="VGG-16"):
        PerceptualLoss({**vgg, "features.0.weight": torch.zeros(64, 1, 3, 3)}, "here")
    (tmp_path / "weights").write_bytes(b"nonsense")
    with pytest.raises(RecipeError, match="safetensors"):
        load_perceptual(str(tmp_path / "weights"))
