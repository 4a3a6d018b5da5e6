"""The perceptual term and metric: LPIPS (Zhang et al., 2018) on VGG-16, heads of version 0.1. Frozen.

Where the weights come from: ``model/image_tokenizer/lpips_weights.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import RecipeError
from model.image_tokenizer.lpips_weights import read_lpips_weights

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)
"""Of ImageNet, for pictures from -1 to 1: what the heads were fitted with."""


class PerceptualLoss(nn.Module):
    """LPIPS of two batches of pictures (B, 3, H, W), float -1 … 1: their mean, a scalar.

    A picture's distance is the sum over five stages of the mean over positions of the heads' weighted squared
    differences of features, each of unit length over the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor], where: str) -> None:
        """``where`` names the weights in errors; RecipeError if they are not LPIPS' for VGG-16."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.convolutions = nn.ModuleList()
        width, number = 3, 0
        state: dict[str, Tensor] = {}
        for index, stage in enumerate(_STAGES):
            convolutions = nn.ModuleList()
            for position, channels in enumerate(stage):
                convolutions.append(nn.Conv2d(width, channels, 3, padding=1))
                for kind in ("weight", "bias"):
                    state[f"convolutions.{index}.{position}.{kind}"] = _named(
                        weights, f"features.{number}.{kind}", where
                    )
                width, number = channels, number + 2  # each convolution is followed by a ReLU …
            number += 1  # … and each stage by a pooling, which torchvision counts as well
            self.convolutions.append(convolutions)
            self.register_buffer(f"lin{index}", torch.zeros(1, stage[-1], 1, 1))
            state[f"lin{index}"] = _named(weights, f"lin{index}", where)
        try:
            self.load_state_dict(state, strict=False)
        except RuntimeError as e:
            raise RecipeError(f"{where}: not the weights of VGG-16 with LPIPS' heads ({e})") from e
        self.eval().requires_grad_(False)

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        return self.distances(a_BCHW, b_BCHW).mean()

    def distances(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS of each pair, (B,) float32."""
        total_B = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        for index, (a, b) in enumerate(zip(self.stages(a_BCHW), self.stages(b_BCHW), strict=True)):
            difference = (_unit(a) - _unit(b)).square()
            total_B = total_B + (self.get_buffer(f"lin{index}") * difference).sum(1).mean((1, 2))
        return total_B

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        """Each stage's last activations; under autocast in its precision."""
        h_BCHW, found = (x_BCHW - self.mean) / self.std, []
        for index, stage in enumerate(self.convolutions):
            h_BCHW = F.max_pool2d(h_BCHW, 2) if index else h_BCHW
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                h_BCHW = F.relu(convolution(h_BCHW))
            found.append(h_BCHW)
        return found


def load_perceptual(where: str) -> PerceptualLoss:
    """LPIPS with the weights of a safetensors file or ``package:NAME``; RecipeError if they cannot be had."""
    return PerceptualLoss(read_lpips_weights(where), where)


def _unit(h_BCHW: Tensor) -> Tensor:
    """Of unit length over the channels, in float32: squares of bf16 would lose what differs."""
    h_BCHW = h_BCHW.float()
    return h_BCHW / (h_BCHW.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _named(weights: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    try:
        return weights[name].float()
    except KeyError:
        raise RecipeError(
            f"{where}: holds no tensor {name!r}; expected torchvision's names for VGG-16 (features.0.weight …) "
            "and lin0 … lin4"
        ) from None
