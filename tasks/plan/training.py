"""The training part of ``calumma plan``: steps, hours, nodes, memory a worker and bytes of checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from infra.words import size_in_words
from model.data.order import Order
from model.data.steps import BatchSizes, Steps
from tasks.mix.shares import largest_remainder
from tasks.plan.lines import Line
from tasks.plan.rates import Rates
from tasks.recipe import Recipe

NODE = 8
"""Accelerators of a node."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training worker needs, an estimate by formula; measured on no GPU yet.

    P parameters, W workers, c bytes of the training precision (bf16 2, fp32 4), g bytes of a sum of gradients (4 where
    several micro-batches are added up in bf16 with ZeRO; else c), b sequences of T tokens in a micro-batch, D width,
    K width of keys and values, F inner width of the feed-forward block, L layers, V vocabulary:

    - weights: cP, over W at ZeRO 3
    - gradients: gP, over W at ZeRO 2 and 3
    - optimizer: float32 weights and two moments, 12P, over W at ZeRO 1 to 3 and with bf16; without both, moments, 8P
    - activations: cbT times, a layer: D where whole layers are computed again; D and what products and attention give,
      5D + 2K + 2F, where the rest is; with all that lies between, 11D + 4K + 4F, where nothing is. A layer that is
      computed again needs its full share once more while it is.
    - logits: 8 bytes (two float32) for a chunk of 2,048 tokens, V wide
    - output: the gradient of the output matrix as the loss makes it, a float32 sum, and in bf16 a copy: (4 + c)VD, in
      float32 4VD
    - buckets: with ZeRO a bucket of gradients to be reduced, c bytes (g at ZeRO 1) of ``reduce_bucket_size`` elements
      (500 million); at ZeRO 3 also weights gathered meanwhile, c bytes of ``stage3_max_live_parameters`` (1 billion) or
      of P, where that is less

    Left out: all else that collectives need, the allocator's fragments and CUDA itself.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    output: float
    buckets: float

    @classmethod
    def of(cls, recipe: Recipe) -> Memory:
        model, resources = recipe.model, recipe.resources
        p, w = model.parameters(recipe.vocabulary.size), resources.train_workers
        # auto is bf16 on any accelerator that multiplies it; on CPUs it may be, and float32 needs more.
        bf16 = resources.precision == "bf16" or (resources.precision == "auto" and resources.accelerator is not None)
        c, zero = 2 if bf16 else 4, resources.zero_stage
        rows = -(-_batch_sizes(recipe).largest // w)
        tokens = min(resources.micro_batch, rows) * recipe.mix.sequence_length
        summed = rows > resources.micro_batch and bf16 and zero > 0
        g = {"fp32": 4, "bf16": 2, None: 4 if summed else c}[
            resources.deepspeed.get("data_types", {}).get("grad_accum_dtype")
        ]
        d, k, f = model.dim, model.n_kv_heads * model.head_dim, model.ffn_dim
        everything = 11 * d + 4 * k + 4 * f
        kept = {"full": d, "selective": 6 * d + 2 * k + 2 * f, "none": everything}[resources.activation_checkpointing]
        again = 0 if resources.activation_checkpointing == "none" else everything
        optimizer = 12 * p / w if zero or bf16 else 8.0 * p
        matrix, given = recipe.vocabulary.size * d, resources.deepspeed.get("zero_optimization", {})
        reduced = 4 if resources.deepspeed.get("communication_data_type") == "fp32" else g if zero == 1 else c
        buckets = reduced * given.get("reduce_bucket_size", 5e8) if zero else 0.0
        if zero == 3:
            buckets += c * min(p, given.get("stage3_max_live_parameters", 1e9))
        return cls(
            c * p / (w if zero == 3 else 1),
            g * p / (w if zero >= 2 else 1),
            optimizer,
            c * tokens * (model.layers * kept + again),
            8 * 2048 * recipe.vocabulary.size,
            (4 + (c if bf16 else 0)) * matrix,
            float(buckets),
        )

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))


def pretrain_steps(recipe: Recipe) -> int:
    """Optimizer steps of pre-training: stage by stage, with the batch's ramp and without what is passed over."""
    tokens = largest_remainder(recipe.mix.tokens, {stage.name: stage.share for stage in recipe.mix.stages})
    order = Order([(name, [-(-n // recipe.mix.sequence_length)]) for name, n in tokens.items()], recipe.seed)
    return len(Steps(order, _batch_sizes(recipe), recipe.pretrain.skip))


def _batch_sizes(recipe: Recipe) -> BatchSizes:
    ramp = ((phase.until, phase.batch) for phase in recipe.pretrain.batch_ramp)
    return BatchSizes.of(recipe.pretrain.batch, ramp)


def training_lines(recipe: Recipe, rates: Rates) -> tuple[Line, ...]:
    """Parameters, device-hours, nodes and hours, memory, steps and checkpoints of pre-training.

    Of a model that is imported and not trained: its parameters alone.
    """
    size, length, resources = recipe.vocabulary.size, recipe.mix.sequence_length, recipe.resources
    parameters, per_token = recipe.model.parameters(size), recipe.model.training_flops(size, length)
    lines = [Line("pretrain", "parameters", "untied embeddings", f"{parameters:,}")]
    if recipe.model_import.path is not None and not recipe.model_import.train:
        return (*lines, Line("pretrain", "training", "model_import.path is set, and train is not", "none: imported"))
    steps, share = pretrain_steps(recipe), rates.share(recipe.name)
    hours = per_token * recipe.mix.tokens / (rates.device_flops.value * share) / 3600
    workers, memory = resources.train_workers, Memory.of(recipe)
    lines += [
        Line(
            "pretrain",
            "training",
            f"{recipe.mix.tokens:,} tokens × {per_token / 1e9:,.4g} GFLOP / ({share_of(rates, share)})",
            *device_hours(float(per_token) * recipe.mix.tokens, rates, share),
        ),
        Line("pretrain", "steps", f"{_batches(recipe)} sequences of {length:,} tokens each", f"{steps:,}"),
    ]
    schedule = recipe.pretrain.schedule
    if schedule.kind != "constant" and steps <= schedule.warmup_steps:
        told = f"schedule.warmup_steps is {schedule.warmup_steps:,} of {steps:,} steps"
        lines.append(Line("pretrain", "warm-up", told, "too long: it will be refused"))
    if resources.accelerator is not None:
        nodes = -(-workers // NODE)
        lines += [
            Line(
                "pretrain",
                "from beginning to end",
                f"{hours:,.0f} {rates.device}-hours / {workers:,} {resources.accelerator} in {nodes:,} nodes of {NODE}",
                f"{hours / workers:,.0f} hours ({hours / workers / 24:,.0f} days)",
            ),
            Line(
                "pretrain",
                "memory a GPU, estimated",
                f"weights {size_in_words(memory.weights)} + gradients {size_in_words(memory.gradients)} + optimizer "
                f"{size_in_words(memory.optimizer)} + activations {size_in_words(memory.activations)} + logits "
                f"{size_in_words(memory.logits)} + output matrix {size_in_words(memory.output)} + buckets "
                f"{size_in_words(memory.buckets)} (ZeRO {resources.zero_stage}, {resources.micro_batch} sequences, "
                f"activation checkpointing {resources.activation_checkpointing})",
                size_in_words(memory.total),
            ),
        ]
        lines.append(_node_memory(recipe, parameters))
    checkpoint = 12 * parameters
    newest, every = recipe.pretrain.keep_checkpoints, recipe.pretrain.keep_every
    kept = newest + (steps // every if every else 0)
    return (
        *lines,
        Line("pretrain", "a checkpoint", "float32 weights, two moments: 12 B a parameter", size_in_words(checkpoint)),
        Line(
            "pretrain",
            "checkpoints kept",
            f"the newest {newest}" + (f" and {steps:,} steps / {every:,}" if every else ""),
            size_in_words(kept * checkpoint),
        ),
    )


def _node_memory(recipe: Recipe, parameters: int) -> Line:
    """Memory of a node's CPUs that training needs beside Python's and the loader's."""
    workers = recipe.resources.train_workers
    here, largest = min(NODE, workers), recipe.vocabulary.size * recipe.model.dim
    saved, begun = 12 * parameters * here / workers, 4.0 * largest
    return Line(
        "pretrain",
        "memory of a node",
        f"while a checkpoint is written {here} workers × 12 B × {parameters:,} / {workers:,}; at the start one "
        f"parameter at a time, 4 B × {largest:,} at most",
        size_in_words(max(saved, begun)),
    )


def _batches(recipe: Recipe) -> str:
    """The batch, after its ramp."""
    ramp = [f"{phase.batch:,} up to {phase.until:,}, then " for phase in recipe.pretrain.batch_ramp]
    return "".join([*ramp, f"{recipe.pretrain.batch:,}"])


def share_of(rates: Rates, share: float | None = None) -> str:
    """The FLOP/s that training reaches, as arithmetic; ``share`` of the nominal ones, ``train_utilisation`` if None."""
    return f"{rates.device_flops.value / 1e12:,.4g} TFLOP/s × {share or rates.train_utilisation.value:.4g}"


def device_hours(flops: float, rates: Rates, share: float | None = None) -> tuple[str, float]:
    """So many FLOPs as device-hours, in words, and their price."""
    found = flops / rates.device_flops.value / (share or rates.train_utilisation.value) / 3600
    text = f"{found:,.1f} {rates.device}-hours" if found >= 0.1 else f"{found * 3600:,.0f} {rates.device}-seconds"
    return text, found * rates.device_hour.value
