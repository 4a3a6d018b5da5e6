"""Engines: what moves a network by one step, in the transformer's training and in the image tokenizer's.

With a process group it is DeepSpeed's. Without one there is nothing to average or to partition, and a notebook need not
wait for DeepSpeed's start: torch alone takes the same steps.
"""

from __future__ import annotations

import os
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
