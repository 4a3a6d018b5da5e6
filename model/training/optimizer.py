"""AdamW as Chameleon's (paper, section 2.3): weight decay on matrices only."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from infra.settings import ResourcesConfig
from model.training.config import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups, in the model's order: matrices and the embedding, which decay; norms' weights and biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        shape = getattr(p, "ds_shape", p.shape)  # DeepSpeed's name for a partitioned parameter's
        (decayed if decays(name, len(shape)) else plain).append(p)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def decays(name: str, dimensions: int) -> bool:
    """Whether a parameter of that name is a matrix that decays."""
    return "norm" not in name and dimensions >= 2


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """torch's AdamW, fused: one pass over the memory, on CPUs too."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def use_bf16(resources: ResourcesConfig) -> bool:
    """What ``resources.precision`` comes to here. CPUs without bf16 products would emulate them, far slower."""
    if resources.precision != "auto":
        return resources.precision == "bf16"
    if resources.accelerator is not None:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def agree_on_bf16(resources: ResourcesConfig) -> bool:
    """The same on all ranks, which call it together: bf16 where every one of them would have it."""
    answers = [True] * dist.get_world_size()
    dist.all_gather_object(answers, use_bf16(resources))
    if dist.get_rank() == 0 and resources.precision == "auto":
        without = answers.count(False)
        why = f", since {without} of {len(answers)} workers do not multiply bf16" if without else ""
        print(f"precision: {'fp32' if without else 'bf16'}{why}", flush=True)
    return all(answers)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets every group's rate; called before each step, so that no scheduler's state needs keeping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
