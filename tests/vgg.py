"""VGG-16 in torchvision's layout, and LPIPS' weights at random: which ones they are matters to few tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512, 512)


def vgg_layers() -> nn.Sequential:
    """VGG-16's convolutions, written out here: torchvision's names are what is tested."""
    layers: list[nn.Module] = []
    width = 3
    for item in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
        width = item
    return nn.Sequential(*layers)


def random_lpips() -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = vgg_layers()
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # with torch's own the later stages would hardly move
    weights = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    return weights | {f"lin{i}": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}
