"""What a run goes through, one after the other: the plan's stages, or epochs of fine-tuning."""

from __future__ import annotations

from typing import Literal

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.plan import PackedStore, Plan

Run = Literal["pretrain", "finetune"]


def stages_of(plan: Plan, run: Run, epochs: int | None, store: Storage) -> list[PackedStore]:
    """The folders of a run in order; with ``epochs``, epoch e of fine-tuning is packing e mod (packed epochs).

    Raises:
        StoreError: the plan holds no sequences for the run.
        RecipeError: ``epochs`` is below 1.
    """
    packed = plan.stages if run == "pretrain" else plan.finetune
    if not any(folder.sequences for folder in packed):
        raise StoreError(f"{store.root}: the plan holds no sequences for a {run} run")
    if run == "pretrain" or epochs is None:
        return packed
    if epochs < 1:
        raise RecipeError(f"epochs: {epochs}; expected at least 1, or None for those that were packed")
    return [packed[e % len(packed)].model_copy(update={"name": f"epoch-{e}"}) for e in range(epochs)]
