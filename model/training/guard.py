"""What stops a training before harm is done, and what is reported as odd."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from infra.errors import CalummaError
from model.training.config import GuardConfig


class NonFiniteError(CalummaError):
    """The loss or the gradients are NaN or infinite. The optimizer has not moved; the last checkpoint is good."""

    @classmethod
    def of(cls, what: str, step: int, sequences: Sequence[int], stage: str) -> NonFiniteError:
        shown = ", ".join(map(str, sequences[:32])) + (" …" if len(sequences) > 32 else "")
        return cls(
            f"step {step}: {what}; the optimizer has not moved. The batch held sequences {shown} of stage {stage}. "
            "Lower the learning rate, turn on qk_norm and z_loss, or look at those sequences with `calumma inspect`."
        )


class SpikeGuard:
    """Finds gradient norms far above their rolling median. Its state is part of a checkpoint."""

    def __init__(self, config: GuardConfig) -> None:
        self._factor = config.spike_factor
        self._window: deque[float] = deque(maxlen=config.spike_window)

    def spike(self, norm: float) -> float | None:
        """Notes a norm; its multiple of the median before it where that is a spike. Quiet until the window is full."""
        full = len(self._window) == self._window.maxlen
        median = statistics.median(self._window) if full else math.inf
        self._window.append(norm)
        return norm / median if median > 0 and norm > self._factor * median else None

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self._window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window.extend(state["window"])
