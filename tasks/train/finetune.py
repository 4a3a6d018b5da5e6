"""Step ``finetune``: alignment on conversations, from the pre-trained weights; loss on answers only (paper, section 3).

The same loop and the same outputs as pre-training; which tokens count is in the sequence store's loss bits.
"""

from __future__ import annotations

from tasks.context import StepContext
from tasks.train.transformer import run_training


def run(context: StepContext) -> None:
    """Trains and commits the step."""
    recipe = context.recipe
    model = recipe.model.model_copy(update={"dropout": recipe.finetune.dropout})
    run_training(context, "finetune", model, recipe.finetune, context.store("pretrain"))
