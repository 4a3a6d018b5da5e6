"""The perceptual term: LPIPS (Zhang et al., 2018) on VGG-16, from a weights file that the recipe names.

No weights come with Calumma. The file is safetensors with torchvision's names for VGG-16's convolutions
(``features.0.weight`` … ``features.28.bias``) and ``lin0`` … ``lin4`` for the five 1x1 heads, (1, C, 1, 1) each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import RecipeError

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)
"""Of ImageNet, for pictures from -1 to 1: what the heads were fitted with."""


class PerceptualLoss(nn.Module):
    """Distance of two batches of pictures (B, 3, H, W), float -1 … 1, in VGG's features: a scalar. Frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.stages = nn.ModuleList()
        width, number = 3, 0
        state: dict[str, Tensor] = {}
        for index, stage in enumerate(_STAGES):
            convolutions = nn.ModuleList()
            for position, channels in enumerate(stage):
                convolutions.append(nn.Conv2d(width, channels, 3, padding=1))
                for kind in ("weight", "bias"):
                    state[f"stages.{index}.{position}.{kind}"] = _named(weights, f"features.{number}.{kind}", where)
                width, number = channels, number + 2  # each convolution is followed by a ReLU …
            number += 1  # … and each stage by a pooling, which torchvision counts as well
            self.stages.append(convolutions)
            self.register_buffer(f"lin{index}", _named(weights, f"lin{index}", where).view(1, stage[-1], 1, 1))
        try:
            self.load_state_dict(state, strict=False)
        except RuntimeError as e:
            raise RecipeError(f"{where}: not the weights of VGG-16 ({e})") from e
        self.eval().requires_grad_(False)

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        total = a_BCHW.new_zeros(())
        for index, (a, b) in enumerate(zip(self._features(a_BCHW), self._features(b_BCHW), strict=True)):
            total = total + (self.get_buffer(f"lin{index}") * (a - b).square()).sum(1).mean()
        return total

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Each stage's last activations, of unit length over the channels."""
        h_BCHW, found = (x_BCHW - self.mean) / self.std, []
        for index, stage in enumerate(self.stages):
            h_BCHW = F.max_pool2d(h_BCHW, 2) if index else h_BCHW
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                h_BCHW = F.relu(convolution(h_BCHW))
            found.append(h_BCHW / (h_BCHW.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


def load_perceptual(path: str) -> PerceptualLoss:
    """Reads the weights; RecipeError if the file is missing or is something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return PerceptualLoss(load_file(path), path)
    except (OSError, SafetensorError) as e:
        raise RecipeError(
            f"{path}: cannot be read as safetensors ({e}). Correct image_tokenizer_training.perceptual_weights, "
            "or set perceptual_weight to 0 to train without the perceptual term."
        ) from e


def _named(weights: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    try:
        return weights[name]
    except KeyError:
        raise RecipeError(
            f"{where}: holds no tensor {name!r}; expected torchvision's names for VGG-16 (features.0.weight …) "
            "and lin0 … lin4"
        ) from None
