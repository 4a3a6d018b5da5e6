"""Faces by OpenCV's frontal Haar cascade (Viola and Jones, 2001): packaged, one thread, deterministic.

It finds upright frontal faces; ``docs/filters.md`` says how many. Boxes are of the upright original.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE = 512
"""The picture is looked at with its long side reduced to this."""
CASCADE = "haarcascade_frontalface_alt2.xml"
MIN_FACE = 24
"""The smallest face in the reduced picture, pixels."""


class Face(NamedTuple):
    """A box in pixels of the upright original, from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


class Faces:
    """Finds faces; one for each process."""

    def __init__(self, step: float = 1.2, neighbours: int = 2) -> None:
        self._step, self._neighbours = step, neighbours

    @cached_property
    def _cascade(self) -> Any:
        import cv2
        from cv2 import data

        cv2.setNumThreads(1)
        cascade = cv2.CascadeClassifier(str(Path(data.haarcascades) / CASCADE))
        if cascade.empty():
            raise RuntimeError(f"OpenCV {cv2.__version__} does not carry {CASCADE}; Calumma needs a version below 5")
        return cascade

    def find(self, image: Image.Image) -> tuple[Face, ...]:
        """The faces in a picture of mode RGB, from top to bottom."""
        grey = image.convert("L")
        if max(grey.size) > SIDE:
            grey.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        if min(grey.size) < MIN_FACE:
            return ()
        found = self._cascade.detectMultiScale(
            np.asarray(grey), scaleFactor=self._step, minNeighbors=self._neighbours, minSize=(MIN_FACE, MIN_FACE)
        )
        across, down = image.width / grey.width, image.height / grey.height
        boxes = [_box(across, down, *map(int, box)) for box in found]
        return tuple(sorted(boxes, key=lambda b: (b.y, b.x, b.height, b.width)))


def _box(across: float, down: float, x: int, y: int, width: int, height: int) -> Face:
    return Face(round(x * across), round(y * down), round(width * across), round(height * down))
