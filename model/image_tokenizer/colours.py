"""Colour as photographs have it: along which axes it varies, and what training makes of that.

Light is nearly all of what a photograph's pixels differ by; green against magenta is a seventh of it. An autoencoder of
a few thousand steps left that last axis out altogether, before any quantisation: strong greens came back brown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Light, red against blue, green against magenta: nearly the principal axes of photographs' colours; any length."""
_STRENGTHS = (0.93, 0.26, 0.13)
"""Standard deviations of the pixels of some hundred photographs, -1 … 1, along these axes at unit length."""


def evened_colours() -> Tensor:
    """The symmetric (3, 3) matrix, float32, that gives photographs' colours the same strength along all axes."""
    axes_AC, strengths_A = nn.functional.normalize(torch.tensor(_AXES), dim=1), torch.tensor(_STRENGTHS)
    return axes_AC.T @ (axes_AC * (strengths_A.square().mean().sqrt() / strengths_A)[:, None])


def hue_distance(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean absolute difference along the two axes of hue, added up; a scalar, blind to light."""
    red, green, blue = (y_BCHW - x_BCHW).unbind(1)  # no matrix product: autocast would round it to bf16
    red_blue, green_magenta = (red - blue).abs().mean(), (red - 2 * green + blue).abs().mean()
    return red_blue / 2**0.5 + green_magenta / 6**0.5
