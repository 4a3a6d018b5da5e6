"""Engines: what moves a network by one step, in the transformer's training and in the image tokenizer's.

With a process group it is DeepSpeed's. Without one there is nothing to average or to partition, and a notebook need not
wait for DeepSpeed's start: torch alone takes the same steps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import CalummaError


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
    deepspeed = import_deepspeed()
    with _partitioned_at_stage_1():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    if float32_copies(engine):
        # To have moments, DeepSpeed took a step without gradients: AdamW counted it, and weights decayed.
        engine.optimizer.optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()
    return engine


def import_deepspeed() -> Any:
    """The package, ready for use in the process group that is up."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed insists on the variable; launchers set it, and where none did all ranks are on one machine.
    os.environ.setdefault("LOCAL_RANK", str(dist.get_rank()))
    import deepspeed  # here: it probes the machine when imported, which a controller must not do

    # On CPUs DeepSpeed would compile a shared-memory all-reduce at start: half a minute, and no run without g++.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.logger.setLevel("WARNING")  # a hundred lines at every start and checkpoint otherwise
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed


@contextmanager
def _partitioned_at_stage_1() -> Iterator[None]:
    """Has ZeRO 1 use one optimizer, whatever gradients are added up in.

    With bf16 weights and float32 sums DeepSpeed takes another one at stage 1 alone, a pipeline's, which lays out its
    state differently; the usual one, which it takes as soon as anything is offloaded, does the same (0.19.8).
    """
    from deepspeed.runtime import engine

    decide = engine.DeepSpeedEngine._do_optimizer_sanity_check

    def decided(self: Any, optimizer: Any) -> Any:
        found = decide(self, optimizer)
        return engine.ZERO_OPTIMIZATION if self.zero_optimization() else found

    engine.DeepSpeedEngine._do_optimizer_sanity_check = decided
    try:
        yield
    finally:
        engine.DeepSpeedEngine._do_optimizer_sanity_check = decide


def float32_copies(engine: Any) -> dict[Tensor, Tensor]:
    """The float32 copies that stand for the parameters in the optimizer, in bf16 without ZeRO; empty otherwise."""
    pairs = zip(
        getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()), strict=False
    )
    return {p: copy for group, kept in pairs for p, copy in zip(group, kept, strict=True)}


def ask_before_steps(engine: Any, allow: Callable[[float], bool]) -> None:
    """Has a DeepSpeed engine ask before its optimizer moves, with the norm of the gradients before clipping.

    Where ``allow(norm)`` is False on all ranks, the step is left out: parameters, moments and Adam's count of steps
    stay, and the gradients are dropped. The norm may be NaN, infinite or negative where gradients are not finite. In
    bf16 with ZeRO 1 to 3 nothing is asked then, and the step is left out as well.

    DeepSpeed knows one reason not to take a step, gradients that overflowed, which it sees by their norm or in a check
    of its own. There each of its optimizers is asked in its own place (0.19.8).

    Raises:
        CalummaError: it is an optimizer for which no such place is known.
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
    elif copies := float32_copies(engine):  # bf16 without ZeRO: averaged over the ranks, and whole on each

        def refused() -> bool:
            norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in copies if p.grad is not None]
            return not allow(float(torch.linalg.vector_norm(torch.stack(norms))))

        optimizer.overflow_checker.check = refused
    elif isinstance(optimizer, torch.optim.Optimizer):
        # float32 without ZeRO: torch's optimizer, which leaves parameters without a gradient alone

        def clip() -> None:
            parameters = list(engine.module.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())
            if not allow(float(norm)):
                for parameter in parameters:
                    parameter.grad = None

        engine.clip_fp32_gradients = clip
    else:
        raise CalummaError(
            f"DeepSpeed made a {type(optimizer).__name__}, which cannot be asked before it moves. Remove what chose it "
            "from resources.deepspeed."
        )
