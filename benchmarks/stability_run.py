"""One training of ``benchmarks.stability``: a small model, trained and watched.

Shape letters: B rows, T positions, N counted labels.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.stability_data import SCALES, Rows
from benchmarks.trainers import Micro, packed
from model.training.config import OptimizerConfig, ScheduleConfig
from model.training.optimizer import make_optimizer, set_learning_rate
from model.training.schedule import factor
from model.training.watch.look import ResidualNorms, sampled_logits
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

Z_LOSS = 1e-5
"""The paper's."""


@dataclass(frozen=True)
class Variant:
    """Which of the paper's means against divergence are in use."""

    qk_norm: bool
    z_loss: bool
    reordered: bool

    @property
    def name(self) -> str:
        named = {"QK-norm": self.qk_norm, "z-loss": self.z_loss, "reordered norm": self.reordered}
        return " + ".join(name for name, used in named.items() if used) or "none"


@dataclass(frozen=True)
class Job:
    """One training."""

    scale: str
    variant: Variant
    rate: float
    seed: int

    @property
    def file(self) -> str:
        return f"{self.scale}-{self.variant.name.replace(' ', '')}-{self.rate:g}-{self.seed}.json"


def run(job: Job, rows: Rows, device: str = "cpu") -> dict[str, Any]:
    """Trains; the run's course and its end. Stops where loss or gradients are no numbers; then the end is none."""
    begun, worked = time.monotonic(), time.process_time()
    scale, variant = SCALES[job.scale], job.variant
    config = TransformerConfig(
        dim=scale.dim,
        layers=scale.layers,
        heads=scale.heads,
        dropout=0,
        qk_norm=variant.qk_norm,
        norm="reordered" if variant.reordered else "pre",
    )
    z_loss = Z_LOSS if variant.z_loss else 0.0
    model = Transformer(config, scale.vocabulary.size).initialise(job.seed).to(device)
    norms, optimizer = ResidualNorms(model), make_optimizer(model, OptimizerConfig(learning_rate=job.rate))
    schedule = ScheduleConfig(warmup_steps=scale.warmup)
    held_out, training = rows
    rng = np.random.default_rng(job.seed)  # the order is the seed's, the same for all variants and rates
    course: list[dict[str, float]] = []
    every = max(1, scale.steps // 40)
    for number in range(scale.steps):
        chosen = [training[i] for i in rng.integers(len(training), size=scale.batch)]
        micro = _to(packed(chosen, scale.length, scale.vocabulary), device)
        watched = number % every == 0 or number == scale.steps - 1
        watching: AbstractContextManager[list[Tensor]] = nullcontext([])
        with sampled_logits(model, scale.length, 0) if watched else watching as logits:
            found = model.loss(_hidden(model, micro), micro["labels"], z_loss)
        optimizer.zero_grad(set_to_none=True)
        (found.total / len(found.nll_N)).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if watched:
            line = {"step": number, "loss": float(found.nll_N.mean()), "log_z": float(found.log_z_N.mean())}
            line |= {"z2": float(found.log_z_N.square().mean()), "gradient_norm": float(norm)}
            line |= {"max_attention_logit": max(float(logit.detach()) for logit in logits)}
            real_BT = micro["documents"] >= 0
            line |= {"output_norm": float(norms.sums(real_BT)[-1] / real_BT.sum())}
            course.append(line)
        if not (finite := bool(found.total.isfinite() & norm.isfinite())):
            break
        set_learning_rate(optimizer, job.rate * factor(schedule, number, scale.steps))
        optimizer.step()
    micro = _to(packed(held_out, scale.length, scale.vocabulary), device)
    with torch.no_grad():
        found = model.loss(_hidden(model, micro), micro["labels"])
    image_N = micro["image"].flatten()[found.index_N]
    end = {"loss": found.nll_N, "loss_image": found.nll_N[image_N], "loss_text": found.nll_N[~image_N]}
    return {
        "variant": variant.name,
        "rate": job.rate,
        "seed": job.seed,
        "steps": number + 1,
        "seconds": time.monotonic() - begun,
        "processor_seconds": time.process_time() - worked,
        "held_out": {name: float(nll.mean()) if finite else math.nan for name, nll in end.items()},
        "course": course,
    }


def _hidden(model: Transformer, micro: Micro) -> Tensor:
    out: Tensor = model(micro["tokens"], micro["documents"], micro["positions"])
    return out


def _to(micro: Micro, device: str) -> Micro:
    return {name: tensor.to(device) for name, tensor in micro.items()}
