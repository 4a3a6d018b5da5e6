"""How far AdamW's last step moved the parameters, from the moments that it keeps, at any ZeRO stage."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.training.optimizer import decays
from model.transformer.model import Transformer

CHUNK = 1 << 24
"""Elements of a parameter that are looked at together: the temporary copies are of 64 MB each."""


class AdamState(NamedTuple):
    """What a rank holds of a parameter: flat float32 pieces of equal length."""

    weight: Tensor
    moment: Tensor
    square: Tensor


def squared_norms(engine: Any, transformer: Transformer) -> tuple[list[str], Tensor]:
    """Names of groups of parameters, and of each the squared norms of AdamW's last update and of the parameters.

    The update is worked out again from the moments: lr · (m̂ / (sqrt(v̂) + eps) + decay · w), w before it.
    float64 (2, groups) on the engine's device, the same on all ranks, which all call this together.
    """
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    names = ["embedding", "lm_head", "norms", *(f"layer_{i:02d}" for i in range(transformer.config.layers))]
    sums_2N = torch.zeros(2, len(names), dtype=torch.float64, device=engine.device)
    group = base.param_groups[0]
    (beta, beta_v), eps, rate = group["betas"], group["eps"], group["lr"]
    decay = max(g["weight_decay"] for g in base.param_groups)
    taken = next((float(state["step"]) for state in base.state.values() if "step" in state), 0.0)
    if not taken:
        return names, sums_2N
    # In bf16 without ZeRO the optimizer works on float32 copies, group by group in the parameters' order.
    pairs = zip(
        getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()), strict=False
    )
    copies: dict[Tensor, Tensor] = {p: copy for group, kept in pairs for p, copy in zip(group, kept, strict=True)}
    parted = False
    for name, p in transformer.named_parameters():
        parted = parted or hasattr(p, "ds_id") or hasattr(p, "_hp_mapping")
        state = adam_state(base, p, copies.get(p, p))
        if state is None:
            continue
        place = names.index(_group_of(name))
        shrink = decay if decays(name, len(getattr(p, "ds_shape", p.shape))) else 0.0
        for w, m, v in zip(*(torch.split(piece, CHUNK) for piece in state), strict=True):
            step = (m / (1 - beta**taken)) / ((v / (1 - beta_v**taken)).sqrt_().add_(eps)) + shrink * w
            moved = rate / (1 - rate * shrink) * torch.linalg.vector_norm(step)  # w has shrunk already
            sums_2N[0, place] += moved.double().square()
            sums_2N[1, place] += torch.linalg.vector_norm(w).double().square()
    if parted:  # else every rank has everything
        dist.all_reduce(sums_2N)
    return names, sums_2N


def adam_state(base: torch.optim.Optimizer, p: nn.Parameter, copy: Tensor) -> AdamState | None:
    """This rank's piece of a parameter; None where all of it is on others.

    Args:
        base: torch's optimizer inside of DeepSpeed's.
        copy: what stands for the parameter in the optimizer where that has it whole: the parameter or a copy.
    """
    if hasattr(p, "ds_id"):  # ZeRO 3
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        moments = (safe_get_local_optimizer_state(p, key) for key in ("exp_avg", "exp_avg_sq"))
        return AdamState(*(piece.flatten() for piece in (safe_get_local_fp32_param(p), *moments)))
    if hasattr(p, "_hp_mapping"):  # ZeRO 1 and 2, and bf16 without: a stretch of a flat piece of the group
        if p._hp_mapping is None:
            return None
        flat = base.param_groups[p._hp_mapping.param_group_index]["params"][0]
        place, state = p._hp_mapping.get_hp_fragment_address(), base.state[flat]
        pieces = (flat.detach(), state["exp_avg"], state["exp_avg_sq"])
        return AdamState(*(piece.narrow(0, place.start, place.numel) for piece in pieces))
    state = base.state.get(copy)
    if not state:
        return None
    return AdamState(copy.detach().flatten(), state["exp_avg"].flatten(), state["exp_avg_sq"].flatten())


def _group_of(name: str) -> str:
    """``layers.3.attention.qkv.weight`` to ``layer_03``; all norms are one group."""
    first, *rest = name.split(".")
    if "norm" in name:
        return "norms"
    return f"layer_{int(rest[0]):02d}" if first == "layers" else first
