"""Learning rates: a closed form of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from infra.errors import RecipeError
from model.training.config import ScheduleConfig


def factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """The learning rate of 0-based ``step`` of ``total``, as a share of the peak.

    Warm-up is linear and reaches the peak in its last step. After it t runs from 0 to 1, t = 1 one step past the end:
    ``exponential`` is (r^t - r)/(1 - r), from 1 to 0; ``cosine`` is (1 + cos πt)/2; ``constant`` is 1.
    """
    warmup = min(schedule.warmup_steps, total)
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(1, total - warmup)
    if schedule.kind == "exponential":
        return float((schedule.ratio**t - schedule.ratio) / (1 - schedule.ratio))
    if schedule.kind == "cosine":
        return (1 + math.cos(math.pi * t)) / 2
    return 1.0


def require_decay(schedule: ScheduleConfig, total: int) -> None:
    """RecipeError where ``total`` steps end in the warm-up, or with it, so that no rate would decay."""
    if schedule.kind != "constant" and 0 < total <= schedule.warmup_steps:
        raise RecipeError(
            f"schedule.warmup_steps is {schedule.warmup_steps:,} and the training has {total:,} steps, so that its "
            f"learning rate would rise to the end and never decay. Set schedule.warmup_steps below {total:,} (a "
            "hundredth of the steps is usual), or schedule.kind: constant."
        )
