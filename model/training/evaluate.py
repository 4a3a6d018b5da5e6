"""Held-out losses during training, by source and modality, spread over the ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from infra.storage import Storage
from model.data.loader import held_out, held_out_sources


def held_out_losses(engine: Any, mix: Storage, sequences: int, batch: int) -> dict[str, dict[str, float]]:
    """Mean nats a counted token of the first ``sequences`` held-out sequences of each source.

    ``engine`` is the DeepSpeed engine around a :class:`model.training.module.TrainingModule`; dropout is off meanwhile.
    Called by all ranks together, and the same on all. ``{source: {"text": loss, "image": loss}}``, a modality only
    where it occurs.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    names = held_out_sources(mix)
    sums = torch.zeros(len(names), 4, dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for row, name in enumerate(names):
            for micro in held_out(mix, name, sequences, batch=batch, rank=rank, world=world):
                _, figures = engine({k: v.to(engine.device) for k, v in micro.items()})
                sums[row] += figures[:4]
    engine.train()
    dist.all_reduce(sums)
    found: dict[str, dict[str, float]] = {}
    for name, (nll_text, n_text, nll_image, n_image) in zip(names, sums.tolist(), strict=True):
        by = {"text": (nll_text, n_text), "image": (nll_image, n_image)}
        found[name] = {modality: nll / n for modality, (nll, n) in by.items() if n}
    return found
