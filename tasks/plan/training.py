"""The training part of ``calumma plan``: steps, hours, nodes, memory a worker and bytes of checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from infra.words import size_in_words
from tasks.plan.lines import Line
from tasks.plan.rates import Rates
from tasks.recipe import Recipe

NODE = 8
"""Accelerators of a node."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training worker needs, an estimate by formula; measured on no GPU yet.

    P parameters, W workers, c bytes of the training precision (bf16 2, fp32 4), b sequences of T tokens in a
    micro-batch, D width, K width of keys and values, F inner width of the feed-forward block, L layers, V vocabulary:

    - weights: cP, over W at ZeRO 3
    - gradients: cP, over W at ZeRO 2 and 3
    - optimizer: float32 weights and two moments, 12P, over W at ZeRO 1 to 3 and with bf16; without both, moments, 8P
    - activations: cbT times, a layer: D where whole layers are computed again; D and what products and attention give,
      5D + 2K + 2F, where the rest is; with all that lies between, 11D + 4K + 4F, where nothing is. A layer that is
      computed again needs its full share once more while it is.
    - logits: 8 bytes (two float32) for a chunk of 2,048 tokens, V wide

    Left out: buckets of collectives, the largest layer gathered at ZeRO 3, the allocator's fragments and CUDA itself.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @classmethod
    def of(cls, recipe: Recipe) -> Memory:
        model, resources = recipe.model, recipe.resources
        p, w = model.parameters(recipe.vocabulary.size), resources.train_workers
        bf16 = resources.precision == "bf16"
        c, zero = 2 if bf16 else 4, resources.zero_stage
        tokens = min(resources.micro_batch, -(-recipe.pretrain.batch // w)) * recipe.mix.sequence_length
        d, k, f = model.dim, model.n_kv_heads * model.head_dim, model.ffn_dim
        everything = 11 * d + 4 * k + 4 * f
        kept = {"full": d, "selective": 6 * d + 2 * k + 2 * f, "none": everything}[resources.activation_checkpointing]
        again = 0 if resources.activation_checkpointing == "none" else everything
        optimizer = 12 * p / w if zero or bf16 else 8.0 * p
        return cls(
            c * p / (w if zero == 3 else 1),
            c * p / (w if zero >= 2 else 1),
            optimizer,
            c * tokens * (model.layers * kept + again),
            8 * 2048 * recipe.vocabulary.size,
        )

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_lines(recipe: Recipe, rates: Rates) -> tuple[Line, ...]:
    """Parameters, device-hours, nodes and hours, memory a worker, steps and checkpoints of pre-training."""
    size, length, resources = recipe.vocabulary.size, recipe.mix.sequence_length, recipe.resources
    parameters, per_token = recipe.model.parameters(size), recipe.model.training_flops(size, length)
    steps = math.ceil(recipe.mix.tokens / length / recipe.pretrain.batch)
    reached = rates.device_flops.value * rates.train_utilisation.value
    hours = per_token * recipe.mix.tokens / reached / 3600
    workers, memory = resources.train_workers, Memory.of(recipe)
    lines = [
        Line("pretrain", "parameters", "untied embeddings", f"{parameters:,}"),
        Line(
            "pretrain",
            "training",
            f"{recipe.mix.tokens:,} tokens × {per_token / 1e9:,.4g} GFLOP / ({share_of(rates)})",
            *device_hours(float(per_token) * recipe.mix.tokens, rates),
        ),
        Line("pretrain", "steps", f"{recipe.pretrain.batch:,} sequences of {length:,} tokens each", f"{steps:,}"),
    ]
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
                f"{size_in_words(memory.logits)} (ZeRO {resources.zero_stage}, {resources.micro_batch} sequences, "
                f"activation checkpointing {resources.activation_checkpointing})",
                size_in_words(memory.total),
            ),
        ]
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


def share_of(rates: Rates) -> str:
    """The FLOP/s that training reaches, as arithmetic."""
    return f"{rates.device_flops.value / 1e12:,.4g} TFLOP/s × {rates.train_utilisation.value:.4g}"


def device_hours(flops: float, rates: Rates) -> tuple[str, float]:
    """So many FLOPs as device-hours, in words, and their price."""
    found = flops / rates.device_flops.value / rates.train_utilisation.value / 3600
    text = f"{found:,.1f} {rates.device}-hours" if found >= 0.1 else f"{found * 3600:,.0f} {rates.device}-seconds"
    return text, found * rates.device_hour.value
