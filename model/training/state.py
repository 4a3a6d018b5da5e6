"""A training's state by parameter: float32 weights and AdamW's moments, wherever DeepSpeed keeps them.

DeepSpeed's own checkpoints are its partitions, which another number of workers, another ZeRO stage or another
precision cannot read; its conversion to "universal" ones leaves out stage 0, does not cross between stages 2 and 3, and
at stage 3 gives all groups the first one's weight decay (0.19.8). Here every rank says which *pieces* of which
parameters it holds: names, where they begin, and views of the memory. That is all there is to keep: low-precision
weights follow from the float32 ones, and the rest is in the recipe. Written down piece by piece, a state can be read by
any other partition: each rank fills its own pieces from whatever pieces were written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.training.engine import float32_copies

KINDS = ("weight", "exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """A stretch of a parameter that this rank holds: flat float32 views of equal length."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where the stretch begins in the flattened parameter."""
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def pieces(engine: Any, model: nn.Module) -> list[Piece]:
    """The pieces of ``model``'s parameters on this rank, in the order of the parameters.

    ``engine`` is the DeepSpeed engine around ``model``, with torch's AdamW. Where AdamW has no moments yet, it gets
    those that it would begin with: zeros. Without ZeRO every rank holds everything.
    """
    copies = float32_copies(engine)
    places = ((name, _place(engine, p, copies.get(p, p))) for name, p in model.named_parameters())
    return [_piece(engine, name, *place) for name, place in places if place is not None]


def holds_everything(engine: Any) -> bool:
    """Whether each rank holds all parameters whole."""
    return engine.optimizer is _adam(engine) or bool(float32_copies(engine))


def steps_taken(engine: Any) -> int:
    """AdamW's count of steps, which skipped ones are not part of."""
    return max((int(state["step"]) for state in _adam(engine).state.values() if "step" in state), default=0)


def finish_loading(engine: Any, taken: int) -> None:
    """Makes the rest of an engine's state follow from its pieces, after they were written. All ranks together.

    Args:
        taken: AdamW's count of steps.
    """
    optimizer = engine.optimizer
    for state in _adam(engine).state.values():
        state["step"].fill_(taken)
    for p, copy in float32_copies(engine).items():
        p.detach().copy_(copy.detach())
    if hasattr(optimizer, "update_lp_params"):  # ZeRO 1 and 2
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO 3
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small ones, kept whole on all ranks
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.checkpoint_event_epilogue()


def _adam(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer, inside of DeepSpeed's where there is one."""
    found: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return found


def _place(engine: Any, p: Any, whole: Tensor) -> tuple[Tensor, int, int, int, tuple[int, ...]] | None:
    """The tensor that AdamW steps, where in it the piece begins, its length, its start in the parameter, and the
    parameter's shape; None where the piece is empty. ``whole`` is what AdamW steps where nothing is partitioned."""
    optimizer = engine.optimizer
    if hasattr(p, "ds_id"):  # ZeRO 3: every parameter in equal parts, the last one padded
        group, at, padded = optimizer.grad_position[optimizer.get_param_id(p)]
        start = dist.get_rank() * p.ds_tensor.ds_numel
        length = min(padded, p.ds_numel - start)
        flat, shape = optimizer.fp32_partitioned_groups_flat[group], tuple(p.ds_shape)
    elif hasattr(p, "_hp_mapping"):  # ZeRO 1 and 2: a stretch of the group's flat parameters
        if (mapping := p._hp_mapping) is None:
            return None
        flat, shape = _adam(engine).param_groups[mapping.param_group_index]["params"][0], tuple(p.shape)
        at, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        start = mapping.lp_fragment_address.start
    else:
        flat, at, length, start, shape = whole, 0, p.numel(), 0, tuple(p.shape)
    return (flat, at, length, start, shape) if length > 0 else None


def _piece(engine: Any, name: str, flat: Tensor, at: int, length: int, start: int, shape: tuple[int, ...]) -> Piece:
    state = _adam(engine).state[flat]
    if "exp_avg" not in state:
        # As torch's AdamW makes it at its first step, where it is fused.
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat.detach()), torch.zeros_like(flat.detach())
    views = (x.detach().view(-1).narrow(0, at, length) for x in (flat, state["exp_avg"], state["exp_avg_sq"]))
    return Piece(name, shape, start, *views)


def of_rank(engine: Any, model: nn.Module, rank: int, world: int) -> Iterator[Piece]:
    """The pieces that a rank writes down, so that each is written once."""
    found = pieces(engine, model)
    yield from found[rank::world] if holds_everything(engine) else found
