"""Step ``pretrain``: the transformer from random weights or from imported ones, once over the plan's stages.

Output: ``model.safetensors`` (in shards where it is large) and ``model.json``, ``metrics.jsonl`` (a line a step, see
``model/training/monitors.py``), ``tensorboard/`` and ``checkpoints/``; of an import that is not trained, the first two.
"""

from __future__ import annotations

from tasks.context import StepContext
from tasks.train.imported_model import convert_import, import_model
from tasks.train.transformer import run_training

START = "start"
"""Where imported weights lie in our layout while training starts from them."""


def run(context: StepContext) -> None:
    """Trains and commits the step, or imports and commits it."""
    recipe, asked = context.recipe, context.recipe.model_import
    if asked.path is not None and not asked.train:
        import_model(context)
        return
    start = None
    if asked.path is not None:
        start = context.store().sub(START)
        convert_import(context, start)
    run_training(context, "pretrain", recipe.model, recipe.pretrain, start)
    if start is not None:
        for name in start.list():
            start.delete(name)
