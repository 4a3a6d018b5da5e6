"""Step ``pretrain``: the transformer from random weights, once over the plan's stages.

Output: ``model.safetensors`` and ``model.json``, ``metrics.jsonl`` (a line a step, see ``model/training/monitors.py``),
``tensorboard/`` and ``checkpoints/``.
"""

from __future__ import annotations

from tasks.context import StepContext
from tasks.train.transformer import run_training


def run(context: StepContext) -> None:
    """Trains and commits the step."""
    run_training(context, "pretrain", context.recipe.model, context.recipe.pretrain)
