"""Starting weights put in their places one by one, so that no worker holds more of a model than its ZeRO stage says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.training.engine import import_deepspeed


@torch.no_grad()
def place_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]], config: dict[str, Any]) -> None:
    """Gives a model on the meta device its weights, on the device and in the precision that its engine will have.

    At ZeRO 3 each parameter is partitioned as soon as it is whole, so that a worker holds its part of the model and one
    whole parameter. At the other stages each worker holds the whole model, in the engine's precision, and DeepSpeed
    sends rank 0's to all when it starts. Called by all ranks together, before :func:`start_engine`.

    Args:
        weights: Names and tensors of the whole model, in the order of its parameters; read on rank 0 alone.
        config: The engine's.

    Raises:
        ValueError: ``weights`` are of another model.
    """
    deepspeed = import_deepspeed()
    device = torch.device(deepspeed.get_accelerator().device_name(int(os.environ["LOCAL_RANK"])))  # as the engine
    dtype = torch.bfloat16 if config.get("bf16", {}).get("enabled") else torch.float32
    partitioned = config["zero_optimization"]["stage"] == 3
    given, first = iter(weights), None
    for name, shape in [(name, p.shape) for name, p in model.named_parameters()]:
        whole: Any = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        if dist.get_rank() == 0:
            found, value = next(given, ("nothing", whole))
            if (found, value.shape) != (name, shape):
                raise ValueError(f"expected {name} {tuple(shape)}, found {found} {tuple(value.shape)}")
            whole.copy_(value)
            del value  # before the next one is made
        if partitioned and first is None:
            deepspeed.zero.Init(module=nn.ParameterList([whole]), config_dict_or_path=config)
            first = whole
        elif first is not None:
            first.convert_to_zero_parameters(param_list=[whole])
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, whole)
    if dist.get_rank() == 0 and (more := next(given, None)) is not None:  # to their end, which closes their files
        raise ValueError(f"{more[0]}: the model has no such parameter")
