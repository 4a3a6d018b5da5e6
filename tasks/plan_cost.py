"""``calumma plan``: what a recipe would make and what it would cost, from arithmetic; nothing is written or started."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

from rich.console import Group, RenderableType
from rich.table import Table

from tasks.recipe import Recipe
from tasks.sources import open_source
from tasks.sources.base import RawSample
from tasks.sources.config import SourceConfig

A100_BF16_FLOPS = 312e12
"""Nominal dense bf16 rate of an A100, FLOP/s."""
ASSUMED_UTILISATION = 0.40
"""Share of the device's matmul rate that training reaches (Chameleon-7B: 40% by 6N alone, derived in FACTS)."""


@dataclass(frozen=True)
class SourcePlan:
    """A source's size: counted in its first work item, times the number of items."""

    name: str
    kind: str
    items: int
    samples: int
    exact: bool
    pictures: int


@dataclass(frozen=True)
class StagePlan:
    """A stage of pre-training."""

    name: str
    tokens: int
    weights: dict[str, float]


@dataclass(frozen=True)
class CostPlan:
    """Everything ``calumma plan`` prints. FLOPs are multiply-adds times two; hours are of the device named."""

    recipe: str
    sources: tuple[SourcePlan, ...]
    stages: tuple[StagePlan, ...]
    codes_per_image: int
    code_bytes: int
    sequences: int
    sequence_bytes: int
    steps: int
    parameters: int
    image_tokenizer_parameters: int
    encode_flops: float
    image_tokenizer_flops: float
    pretrain_flops: float
    checkpoint_bytes: int
    device: str
    device_flops: float
    workers: int

    def hours(self, flops: float) -> float:
        """Wall-clock hours for ``flops`` on all workers at the assumed utilisation."""
        return flops / (self.device_flops * ASSUMED_UTILISATION * self.workers) / 3600


def plan_cost(recipe: Recipe) -> CostPlan:
    """The arithmetic of a recipe."""
    sources = tuple(_source_plan(recipe, s) for s in recipe.sources)
    pictures = sum(s.pictures for s in sources)
    tokenizer_parameters, encoder_flops, training_flops = _image_tokenizer_cost(recipe)
    training = recipe.image_tokenizer_training
    size, length = recipe.vocabulary.size, recipe.mix.sequence_length
    sequences = -(-recipe.mix.tokens // length)
    parameters = recipe.model.parameters(size)
    device, rate = _device(recipe)
    return CostPlan(
        recipe=recipe.name,
        sources=sources,
        stages=tuple(StagePlan(s.name, round(s.share * recipe.mix.tokens), dict(s.weights)) for s in recipe.mix.stages),
        codes_per_image=recipe.image_tokenizer.codes_per_image,
        code_bytes=2 * recipe.image_tokenizer.codes_per_image * pictures,
        sequences=sequences,
        sequence_bytes=2 * length * sequences,
        steps=-(-sequences // recipe.pretrain.batch),
        parameters=parameters,
        image_tokenizer_parameters=tokenizer_parameters,
        encode_flops=encoder_flops * pictures,
        image_tokenizer_flops=training_flops * training.steps * training.batch,
        pretrain_flops=float(recipe.model.flops_per_token(size, length) * recipe.mix.tokens),
        # fp32 master weights and both moments, and the weights in the training precision
        checkpoint_bytes=parameters * (12 + (2 if recipe.resources.precision == "bf16" else 4)),
        device=device,
        device_flops=rate,
        workers=recipe.resources.train_workers,
    )


def _source_plan(recipe: Recipe, config: SourceConfig) -> SourcePlan:
    source = open_source(config, recipe.folder)
    items = list(source.work_items(recipe.scan.item_samples))
    first = list(islice(source.read(items[0]), recipe.scan.item_samples * 2)) if items else []
    pictures = sum(len(s.images) for s in first if isinstance(s, RawSample))
    return SourcePlan(
        config.name, config.kind, len(items), len(first) * len(items), len(items) <= 1, pictures * len(items)
    )


def _image_tokenizer_cost(recipe: Recipe) -> tuple[int, float, float]:
    """(parameters, FLOPs to encode a picture, FLOPs to train on one: three forward passes of the whole)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.image_tokenizer.vqgan import VQModel

    with torch.device("meta"):
        model = VQModel(recipe.image_tokenizer)
        x_BCHW = torch.zeros(1, 3, recipe.image_tokenizer.resolution, recipe.image_tokenizer.resolution)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        z_BCHW = model.latents(x_BCHW)
        encode = float(whole.get_total_flops())
        model.decode_latents(z_BCHW)
    search = (
        2.0 * recipe.image_tokenizer.codes_per_image * recipe.image_tokenizer.codes * recipe.image_tokenizer.embed_dim
    )
    return sum(p.numel() for p in model.parameters()), encode + search, 3.0 * (whole.get_total_flops() + search)


def _device(recipe: Recipe) -> tuple[str, float]:
    if recipe.resources.accelerator:
        return f"{recipe.resources.accelerator} (as an A100, 312 TFLOP/s bf16)", A100_BF16_FLOPS
    return "one core of this machine, fp32 matmul measured now", _measured_flops()


def _measured_flops() -> float:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a_NN = torch.randn(768, 768)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(4):
            a_NN @ a_NN
        rates.append(4 * 2 * 768**3 / (time.perf_counter() - started))
    torch.set_num_threads(before)
    return sorted(rates)[len(rates) // 2]


def render(plan: CostPlan) -> RenderableType:
    """The plan as tables for a terminal."""
    sources = Table(title=f"{plan.recipe}: sources", title_justify="left")
    for column in ("source", "kind", "work items", "samples", "pictures"):
        sources.add_column(column, justify="left" if column in ("source", "kind") else "right")
    for s in plan.sources:
        about = "" if s.exact else "≈ "
        sources.add_row(s.name, s.kind, f"{s.items:,}", f"{about}{s.samples:,}", f"{about}{s.pictures:,}")
    stages = Table(title="Mixture", title_justify="left")
    for column in ("stage", "tokens", "weights"):
        stages.add_column(column, justify="right" if column == "tokens" else "left")
    for stage in plan.stages:
        stages.add_row(stage.name, f"{stage.tokens:,}", ", ".join(f"{k} {v:g}" for k, v in stage.weights.items()))
    work = Table(title="Work", title_justify="left", show_header=False)
    work.add_column()
    work.add_column(justify="right")
    for label, value in (
        ("image tokenizer, parameters", f"{plan.image_tokenizer_parameters:,}"),
        ("transformer, parameters", f"{plan.parameters:,}"),
        ("codes a picture", f"{plan.codes_per_image:,}"),
        ("codes in the sample store", _bytes(plan.code_bytes)),
        ("packed sequences", f"{plan.sequences:,}"),
        ("packed sequences, stored", _bytes(plan.sequence_bytes)),
        ("a checkpoint", _bytes(plan.checkpoint_bytes)),
        ("pre-training steps", f"{plan.steps:,}"),
        ("image tokenizer training", _flops(plan, plan.image_tokenizer_flops)),
        ("encoding", _flops(plan, plan.encode_flops)),
        ("pre-training", _flops(plan, plan.pretrain_flops)),
    ):
        work.add_row(label, value)
    note = (
        f"Hours: {plan.workers} × {plan.device}: {plan.device_flops / 1e9:,.0f} GFLOP/s each, "
        f"of which {ASSUMED_UTILISATION:.0%} is assumed to be reached. "
        "Samples: counted in a source's first work item, times its items."
    )
    return Group(sources, stages, work, note)


def _bytes(n: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:,.2f} {unit}"
    return f"{n:.0f} B"


def _flops(plan: CostPlan, n: float) -> str:
    hours = plan.hours(n)
    exponent = max(0, len(f"{n:.0f}") - 1) // 3 * 3
    return (
        f"{n / 10**exponent:.2f}·10^{exponent} FLOP, {hours:,.2f} h"
        if hours >= 0.1
        else (f"{n / 10**exponent:.2f}·10^{exponent} FLOP, {hours * 60:,.1f} min")
    )
