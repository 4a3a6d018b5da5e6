"""Which pictures a step sees, and at which learning rate: functions of the step, with no state to keep."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from model.image_tokenizer.config import ImageTokenizerTraining


class PictureOrder:
    """A new permutation of all pictures each epoch, by the seed; batches run on over the epochs' ends."""

    def __init__(self, count: int, batch: int, seed: int, often: npt.NDArray[np.intp] | None = None, times: int = 1):
        """``often`` are the indices of the pictures that an epoch shows ``times`` times, all others once."""
        more = np.repeat(np.asarray(() if often is None else often, np.int64), times - 1)
        self._shown = np.concatenate([np.arange(count), more])
        self._batch, self._seed = batch, seed
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def epoch_pictures(self) -> int:
        """Pictures that an epoch shows."""
        return len(self._shown)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Indices (batch,) of the whole global batch of ``step``, from 0."""
        position = np.arange(step * self._batch, (step + 1) * self._batch)
        epoch, place = np.divmod(position, len(self._shown))
        return np.array([self._epoch(e)[p] for e, p in zip(epoch.tolist(), place.tolist(), strict=True)], np.int64)

    def flips(self, step: int) -> npt.NDArray[np.bool_]:
        """Which of them are mirrored, (batch,)."""
        return np.random.default_rng([self._seed, 1, step]).random(self._batch) < 0.5

    def corners(self, step: int, room: int) -> npt.NDArray[np.int64]:
        """A row and a column from 0 to ``room`` for each of them, (batch, 2)."""
        return np.random.default_rng([self._seed, 2, step]).integers(0, room + 1, (self._batch, 2))

    def _epoch(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1}
            order = np.random.default_rng([self._seed, 0, number]).permutation(len(self._shown))
            self._epochs[number] = self._shown[order]
        return self._epochs[number]


def learning_rate_factor(training: ImageTokenizerTraining, step: int) -> float:
    """The share of the peak rate at ``step`` (from 0): linear warm-up, then constant or half a cosine to zero."""
    warm = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.schedule == "constant" or step < training.warmup_steps:
        return warm
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
