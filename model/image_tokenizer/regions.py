"""The terms for faces and salient objects (Gafni et al., 2022, sections 3.3 and 3.4): what is in a box counts again.

Crops of the picture and of its reconstruction are scaled to one size and compared in a frozen network's features:
faces stage by stage in those of a face-recognition network, objects by LPIPS. Shapes: S boxes a picture, K crops of all
pictures together, R the crops' side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Stages = Callable[[Tensor], Sequence[Tensor]]
"""Pictures (K, 3, R, R), float -1 … 1, to the features of each stage."""


def crops(x_BCHW: Tensor, boxes_BS4: Tensor, side: int) -> Tensor:
    """The pictures' boxes, (K, C, side, side), in the order of pictures and boxes; boxes of width 0 are left out.

    Bilinear interpolation with a triangle as wide as the scale where a crop shrinks, as in Pillow. Only pixels inside
    the box have weight, so that no gradient leaves it. Two matrix products, because CUDA's sampling operators add up
    their gradients in no fixed order.

    Args:
        x_BCHW: float.
        boxes_BS4: x, y, width, height in whole pixels, int64.
    """
    x, y, width, height = boxes_BS4.to(x_BCHW.device).unbind(2)
    rows_BSRH = _weights(y, height, x_BCHW.shape[2], side)
    columns_BSRW = _weights(x, width, x_BCHW.shape[3], side)
    with torch.autocast(x_BCHW.device.type, enabled=False):
        across_BSCHR = torch.einsum("bchw,bsrw->bschr", x_BCHW.float(), columns_BSRW)
        crops_BSCRR = torch.einsum("bsqh,bschr->bscqr", rows_BSRH, across_BSCHR)
    return crops_BSCRR[width > 0]


def _weights(start_BS: Tensor, length_BS: Tensor, pixels: int, side: int) -> Tensor:
    """How much each of ``pixels`` counts in each of ``side`` points spread over [start, start + length)."""
    scale_BS1 = (length_BS.clamp(min=1).float() / side).unsqueeze(2)
    points_R = torch.arange(side, device=start_BS.device) + 0.5
    centres_BSR1 = (start_BS.unsqueeze(2) + points_R * scale_BS1).unsqueeze(3)
    pixel_P = torch.arange(pixels, device=start_BS.device)
    distance_BSRP = (pixel_P + 0.5 - centres_BSR1).abs() / scale_BS1.clamp(min=1).unsqueeze(3)
    inside_BSP = (pixel_P >= start_BS.unsqueeze(2)) & (pixel_P < (start_BS + length_BS).unsqueeze(2))
    weights_BSRP = (1 - distance_BSRP).clamp(min=0) * inside_BSP.unsqueeze(2)
    total_BSR1 = weights_BSRP.sum(3, keepdim=True)
    return weights_BSRP / total_BSR1.where(total_BSR1 > 0, 1.0)


def face_distance(stages: Stages, weights: Sequence[float], a_KCRR: Tensor, b_KCRR: Tensor) -> Tensor:
    """Gafni et al.'s distance of two batches of face crops, (K,): Σ over stages of weight · mean |difference|."""
    total_K = a_KCRR.new_zeros(len(a_KCRR))
    for weight, a, b in zip(weights, stages(a_KCRR), stages(b_KCRR), strict=True):
        total_K = total_K + weight * (a.float() - b.float()).abs().reshape(len(a), -1).mean(1)
    return total_K


def region_term(
    distance: Callable[[Tensor, Tensor], Tensor], y_BCHW: Tensor, x_BCHW: Tensor, boxes_BS4: Tensor | None, side: int
) -> Tensor:
    """The sum of ``distance`` over a picture's boxes, as a mean over the pictures: a scalar, 0 without boxes.

    Args:
        distance: two batches of crops to (K,); ``face_distance`` or LPIPS.
        y_BCHW: reconstructions, float -1 … 1.
        x_BCHW: the pictures.
    """
    if boxes_BS4 is None:
        return y_BCHW.new_zeros(())
    return distance(crops(y_BCHW, boxes_BS4, side), crops(x_BCHW, boxes_BS4, side)).sum() / len(x_BCHW)
