"""Losses, figures of merit and the discriminator."""

from __future__ import annotations

import pytest
import torch

from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.losses import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    perplexity,
    psnr,
    ssim,
)


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


def test_the_adaptive_weight_of_a_network_is_the_ratio_worked_out_by_hand() -> None:
    """A last layer y = w·h with h = (3, 4): L1's gradient is sign(y - x)·h, of norm 5; the other's is 2·(2, 1)."""
    h, judged = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 1.0])
    last = torch.tensor([0.5, 0.5], requires_grad=True)
    reconstruction, adversarial = (last @ h - 1).abs(), -2 * (last @ judged)
    expected = 5 / (2 * 5**0.5 + 1e-4)
    assert adaptive_weight(reconstruction, adversarial, last).item() == pytest.approx(expected, rel=1e-6)
    halved = adaptive_weight(reconstruction, adversarial, last, lambda gradient: gradient / 2)  # a mean over workers
    assert halved.item() == pytest.approx(2.5 / (5**0.5 + 1e-4), rel=1e-6)
    assert last.grad is None


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
