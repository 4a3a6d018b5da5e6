"""Which pictures a step sees, and at which learning rate: functions of the step, with no state to keep."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from model.image_tokenizer.config import ImageTokenizerTraining


class PictureOrder:
    """A new permutation of all pictures each epoch, by the seed; batches run on over the epochs' ends."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self._batch, self._seed = count, batch, seed
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Indices (batch,) of the whole global batch of ``step``, from 0."""
        position = np.arange(step * self._batch, (step + 1) * self._batch)
        return np.array([self._epoch(p // self._count)[p % self._count] for p in position.tolist()], np.int64)

    def flips(self, step: int) -> npt.NDArray[np.bool_]:
        """Which of them are mirrored, (batch,)."""
        return np.random.default_rng([self._seed, 1, step]).random(self._batch) < 0.5

    def _epoch(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1}
            self._epochs[number] = np.random.default_rng([self._seed, 0, number]).permutation(self._count)
        return self._epochs[number]


def learning_rate_factor(training: ImageTokenizerTraining, step: int) -> float:
    """The share of the peak rate at ``step`` (from 0): linear warm-up, then constant or half a cosine to zero."""
    warm = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.schedule == "constant" or step < training.warmup_steps:
        return warm
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
