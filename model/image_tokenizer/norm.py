"""GroupNorm with SiLU after it, as training, plain inference and compiled inference want it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalised(norm: nn.GroupNorm, x_BCHW: Tensor, activate: bool = False) -> Tensor:
    """GroupNorm, then SiLU if ``activate``; in the dtype of ``x_BCHW``, statistics in float32.

    Factors and summands are float32, too, save where torch's kernel takes one dtype only: uncompiled on a GPU, without
    gradients, they are rounded to that of ``x_BCHW``.

    Under ``torch.compile`` it is written out by channels, since channels last makes them neighbours in memory: a
    reduction over groups would read a few channels here and there, and torch's own kernel on GPUs rearranges the whole
    tensor before and after. Compiled, it is one reading for the statistics and one for all the rest.
    """
    if not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            h_BCHW = norm(x_BCHW)
            return F.silu(h_BCHW) if activate else h_BCHW
        lower = x_BCHW.dtype != norm.weight.dtype and x_BCHW.is_cuda  # where the kernel takes one dtype only
        weight_C, bias_C = (p.to(x_BCHW.dtype) if lower else p for p in (norm.weight, norm.bias))
        h_BCHW = F.group_norm(x_BCHW, norm.num_groups, weight_C, bias_C, norm.eps)
        return F.silu(h_BCHW, inplace=True) if activate else h_BCHW
    scale_BC11, shift_BC11 = _scale_and_shift(norm, x_BCHW.float())
    h_BCHW = x_BCHW.float() * scale_BC11 + shift_BC11
    return (F.silu(h_BCHW) if activate else h_BCHW).to(x_BCHW.dtype)


def _scale_and_shift(norm: nn.GroupNorm, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """GroupNorm as a factor and a summand for each channel, (B, C, 1, 1) each, by way of each channel's moments."""
    variance_BC, mean_BC = torch.var_mean(x_BCHW, (2, 3), correction=0)
    shape = len(x_BCHW), norm.num_groups, -1
    means_BGc = mean_BC.view(shape)
    mean_BG1 = means_BGc.mean(-1, keepdim=True)
    spread_BG1 = (means_BGc - mean_BG1).square().mean(-1, keepdim=True)
    variance_BG1 = variance_BC.view(shape).mean(-1, keepdim=True) + spread_BG1
    scale_BC = (variance_BG1 + norm.eps).rsqrt().expand_as(means_BGc).reshape(mean_BC.shape) * norm.weight
    shift_BC = norm.bias - mean_BG1.expand_as(means_BGc).reshape(mean_BC.shape) * scale_BC
    return scale_BC[:, :, None, None], shift_BC[:, :, None, None]
