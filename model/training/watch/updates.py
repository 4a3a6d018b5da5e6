"""How far AdamW's last step moved the parameters, from the moments that it keeps, at any ZeRO stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.training.optimizer import decays
from model.training.state import KINDS, holds_everything, pieces, steps_taken
from model.transformer.model import Transformer

CHUNK = 1 << 24
"""Elements of a parameter that are looked at together: the temporary copies are of 64 MB each."""


def squared_norms(engine: Any, transformer: Transformer) -> tuple[list[str], Tensor]:
    """Names of groups of parameters, and of each the squared norms of AdamW's last update and of the parameters.

    The update is worked out again from the moments: lr · (m̂ / (sqrt(v̂) + eps) + decay · w), w before it.
    float64 (2, groups) on the engine's device, the same on all ranks, which all call this together.
    """
    names = ["embedding", "lm_head", "norms", *(f"layer_{i:02d}" for i in range(transformer.config.layers))]
    sums_2N = torch.zeros(2, len(names), dtype=torch.float64, device=engine.device)
    taken, groups = steps_taken(engine), engine.optimizer.param_groups
    if not taken:
        return names, sums_2N
    (beta, beta_v), eps, rate = groups[0]["betas"], groups[0]["eps"], groups[0]["lr"]
    decay = max(group["weight_decay"] for group in groups)
    for piece in pieces(engine, transformer):
        place = names.index(_group_of(piece.name))
        shrink = decay if decays(piece.name, len(piece.shape)) else 0.0
        for w, m, v in zip(*(torch.split(getattr(piece, kind), CHUNK) for kind in KINDS), strict=True):
            step = (m / (1 - beta**taken)) / ((v / (1 - beta_v**taken)).sqrt_().add_(eps)) + shrink * w
            moved = rate / (1 - rate * shrink) * torch.linalg.vector_norm(step)  # w has shrunk already
            sums_2N[0, place] += moved.double().square()
            sums_2N[1, place] += torch.linalg.vector_norm(w).double().square()
    if not holds_everything(engine):
        dist.all_reduce(sums_2N)
    return names, sums_2N


def _group_of(name: str) -> str:
    """``layers.3.attention.qkv.weight`` to ``layer_03``; all norms are one group."""
    first, *rest = name.split(".")
    if "norm" in name:
        return "norms"
    return f"layer_{int(rest[0]):02d}" if first == "layers" else first
