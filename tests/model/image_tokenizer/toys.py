"""A tiny tokenizer and pictures that it can learn, shared by the tests of its training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.image_tokenizer.batches import Boxes, Regions
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining

CONFIG = ImageTokenizerConfig(
    resolution=16,
    codes=16,
    channels=16,
    multipliers=(1, 1, 1),
    residual_blocks=1,
    z_channels=16,
    embed_dim=8,
    norm_groups=4,
)


def settings(**changes: object) -> ImageTokenizerTraining:
    base = {
        "steps": 12,
        "batch": 4,
        "learning_rate": 2e-3,
        "discriminator_learning_rate": 2e-3,
        "schedule": "cosine",
        "codebook_start": 0.25,
        "revive_after": 3,
        "perceptual_weight": 0.0,
        "discriminator_start": 7,
        "discriminator_channels": 8,
        "discriminator_layers": 2,
        "flip": True,
        "ema": 0.9,
        "log_every": 2,
        "checkpoint_every": 5,
        "crop_side": 16,
    }
    return ImageTokenizerTraining(**{**base, **changes})  # type: ignore[arg-type]


def squares(count: int = 24, seed: int = 0) -> tuple[npt.NDArray[np.uint8], Boxes]:
    """Two-coloured squares, and where they are: easy, but not trivial."""
    rng = np.random.default_rng(seed)
    found, boxes = np.empty((count, 16, 16, 3), np.uint8), np.zeros((count, 2, 4), np.int16)
    for i in range(count):
        found[i] = rng.integers(0, 256, 3)
        x, y = rng.integers(0, 8, 2)
        found[i, y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
        boxes[i, 0] = (x, y, 8, 8)
    return found, boxes


def regions(boxes: Boxes) -> Regions:
    """A third of the pictures show faces; all show something."""
    faces = boxes.copy()
    faces[np.arange(len(faces)) % 3 > 0] = 0
    return Regions(faces=faces, objects=boxes)
