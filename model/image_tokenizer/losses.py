"""Losses of the VQ-GAN (Esser et al., 2021, section 3.1; Gafni et al., 2022, section 3.2), and figures of merit."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-4
MAX_ADAPTIVE = 1e4


def generator_loss(fake: Tensor) -> Tensor:
    """Hinge GAN, the generator's side: the mean score of reconstructions, turned round."""
    return -fake.mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge GAN, the discriminator's side: real pictures above 1, reconstructions below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last: Tensor, average: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """The GAN term's weight: the ratio of both losses' gradients at the decoder's last layer, at most 10,000.

    ``average`` takes a gradient to its mean over all workers, so that the weight belongs to the whole batch.
    """
    wanted = average(torch.autograd.grad(reconstruction, last, retain_graph=True)[0])
    against = average(torch.autograd.grad(adversarial, last, retain_graph=True)[0])
    ratio: Tensor = wanted.norm() / (against.norm() + EPS)
    return ratio.clamp(0, MAX_ADAPTIVE).detach()


def psnr(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of uint8 pictures, (B,); equal ones get 100."""
    error_B = (a_BCHW.double() - b_BCHW.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error_B.clamp(min=1e-10))).clamp(max=100.0)


def ssim(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of uint8 pictures, (B,): Gaussian window 11, σ 1.5, mean over channels.

    Wang et al., 2004, with K1 0.01 and K2 0.03; only windows that lie inside the picture count.
    """
    channels = a_BCHW.shape[1]
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    line = (line / line.sum()).to(a_BCHW.device).expand(channels, 1, 1, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line, groups=channels), line.transpose(2, 3), groups=channels)

    a, b = a_BCHW.double(), b_BCHW.double()
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return similarity.mean((1, 2, 3))


def perplexity(counts_K: Tensor) -> float:
    """exp of the entropy of a code histogram: how many equally used codes would be as hard to guess."""
    p_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return float(torch.exp(-(p_K * torch.log(p_K.clamp(min=1e-300))).sum()))
