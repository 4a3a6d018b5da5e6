"""A patch discriminator (Isola et al., 2017): a score for each patch of a picture, not one for the whole."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Discriminator(nn.Module):
    """(B, 3, H, W) float -1 … 1 to scores (B, 1, h, w); each layer but the last two halves the side.

    GroupNorm stands where the original has BatchNorm: the score of a picture then depends on no other picture of the
    batch, nor on how the batch is spread over workers.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            after = channels * min(2**index, 8)
            stride = 1 if index == layers else 2
            blocks += [
                nn.Conv2d(width, after, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, after), after, eps=1e-6),
                nn.LeakyReLU(0.2),
            ]
            width = after
        blocks.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.main(x_BCHW)  # type: ignore[no-any-return]
