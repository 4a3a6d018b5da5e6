"""Engines: what moves a network by one step, in the transformer's training and in the image tokenizer's.

With a process group it is DeepSpeed's. Without one there is nothing to average or to partition, and a notebook need not
wait for DeepSpeed's start: torch alone takes the same steps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class LocalEngine:
    """The three calls that training makes of an engine, for one process without a process group."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def start_engine(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """An engine around ``module`` and ``optimizer``: DeepSpeed's if a process group is up, else a :class:`LocalEngine`.

    All ranks call it together.

    Args:
        config: from :func:`infra.deepspeed_json.deepspeed_json`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return LocalEngine(module, optimizer)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed insists on the variable; launchers set it, and where none did all ranks are on one machine.
    os.environ.setdefault("LOCAL_RANK", str(dist.get_rank()))
    import deepspeed  # here: it probes the machine when imported, which a controller must not do

    # On CPUs DeepSpeed would compile a shared-memory all-reduce at start: half a minute, and no run without g++.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.logger.setLevel("WARNING")  # a hundred lines at every start and checkpoint otherwise
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def ask_before_steps(engine: Any, allow: Callable[[float], bool]) -> None:
    """Has a DeepSpeed engine ask before its optimizer moves, with the norm of the gradients before clipping.

    Where ``allow(norm)`` is False on all ranks, the step is left out: parameters, moments and Adam's count of steps
    stay, and the gradients are dropped. The norm may be NaN, infinite or negative where gradients are not finite. In
    bf16 with ZeRO 1 and 2 nothing is asked then, and the step is left out as well.

    DeepSpeed knows one reason not to take a step, gradients that overflowed, which it sees by their norm. So a step is
    vetoed by an infinite norm, at the place where each of its optimizers computes it.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):  # ZeRO 1 and 2
        norm_of = optimizer.scaled_global_norm

        def asked_once(norm_type: int = 2) -> Tensor:
            norm: Tensor = norm_of(norm_type)
            return norm if allow(float(norm)) else torch.full_like(norm, math.inf)

        optimizer.scaled_global_norm = asked_once
    elif hasattr(optimizer, "_get_norm_groups"):  # ZeRO 3
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups_of = optimizer._get_norm_groups

        def asked_groups() -> list[Any]:
            groups: list[Any] = groups_of()
            norm = combine_grad_norm_groups(groups)
            return groups if allow(float(norm)) else [torch.full_like(norm, math.inf)]

        optimizer._get_norm_groups = asked_groups
    elif hasattr(optimizer, "get_grads_for_norm"):  # bf16 without ZeRO
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        gradients_of = optimizer.get_grads_for_norm

        def asked_gradients(for_clipping: bool = False) -> Any:
            found = gradients_of(for_clipping)
            if for_clipping or allow(float(get_global_norm_of_tensors(found[0]))):
                return found
            return [torch.tensor([math.inf], device=engine.device)], {}

        optimizer.get_grads_for_norm = asked_gradients
    else:  # float32 without ZeRO: torch's optimizer, which leaves parameters without a gradient alone

        def clip() -> None:
            parameters = list(engine.module.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())
            if not allow(float(norm)):
                for parameter in parameters:
                    parameter.grad = None

        engine.clip_fp32_gradients = clip
