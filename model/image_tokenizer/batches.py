"""What a step is given: the pictures of its batch, normalised, with the boxes of their faces and salient objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.schedule import PictureOrder
from model.image_tokenizer.vqgan import normalise

Pictures = npt.NDArray[np.uint8]
"""(n, side, side, 3); may be memory-mapped."""
Boxes = npt.NDArray[np.int16]
"""(n, S, 4): x, y, width and height of up to S boxes a picture, pixels of the square; a width of 0: no box."""


@dataclass(frozen=True)
class Regions:
    """Where a training's pictures show faces and salient objects; None: nothing is known."""

    faces: Boxes | None = None
    objects: Boxes | None = None


class Batch(NamedTuple):
    """One worker's share of a step."""

    x_BCHW: Tensor
    """float32, -1 … 1, channels last in memory."""
    faces_BS4: Tensor | None = None
    """Boxes as in :data:`Boxes`, int64; None where this batch has none."""
    objects_BS4: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        faces, objects = (None if boxes is None else boxes.to(device) for boxes in self[1:])
        return Batch(self.x_BCHW.to(device), faces, objects)


class Batches:
    """The batches of a training: functions of the step."""

    def __init__(self, training: ImageTokenizerTraining, pictures: Pictures, regions: Regions, seed: int) -> None:
        """Raises ValueError if boxes are not of these pictures, or leave them."""
        side = pictures.shape[1]
        for name, boxes in (("faces", regions.faces), ("objects", regions.objects)):
            if boxes is not None:
                _check(name, boxes, len(pictures), side)
        self._training, self._pictures = training, pictures
        self._faces, self._objects = (
            None if boxes is None else boxes[:, : training.region_boxes] for boxes in (regions.faces, regions.objects)
        )
        showing = None if regions.faces is None else np.flatnonzero((regions.faces[:, :, 2] > 0).any(1))
        self.order = PictureOrder(len(pictures), training.batch, seed, showing, training.face_sampling)

    def at(self, step: int, share: slice) -> Batch:
        """The part ``share`` of the global batch of ``step``, on the CPU."""
        indices = self.order.batch(step)[share]
        mirrored = self.order.flips(step)[share] if self._training.flip else np.zeros(len(indices), np.bool_)
        x_BHWC = self._pictures[indices]
        whole = x_BHWC.shape[1]
        side = self._training.random_crop or whole
        corners_B2 = self.order.corners(step, whole - side)[share]
        if side < whole:
            x_BHWC = np.stack([x[r : r + side, c : c + side] for x, (r, c) in zip(x_BHWC, corners_B2, strict=True)])
        x_BHWC[mirrored] = x_BHWC[mirrored, :, ::-1]
        x_BCHW = torch.from_numpy(np.ascontiguousarray(x_BHWC)).permute(0, 3, 1, 2)  # channels last in memory
        faces, objects = (
            None if boxes is None else _boxes(boxes[indices], corners_B2, mirrored, side)
            for boxes in (self._faces, self._objects)
        )
        return Batch(normalise(x_BCHW), faces, objects)


def _boxes(
    boxes_BS4: Boxes, corners_B2: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], side: int
) -> Tensor | None:
    """The boxes in squares cut at the corners, then mirrored; those that are cut are dropped; None if none are left."""
    found = boxes_BS4.astype(np.int64)
    found[:, :, :2] -= corners_B2[:, None, ::-1]
    cut = (found[:, :, :2] < 0).any(2) | (found[:, :, :2] + found[:, :, 2:] > side).any(2)
    found[cut] = 0
    if not found[:, :, 2].any():
        return None
    found[mirrored, :, 0] = side - found[mirrored, :, 0] - found[mirrored, :, 2]
    return torch.from_numpy(found)


def _check(name: str, boxes: Boxes, pictures: int, side: int) -> None:
    if boxes.ndim != 3 or boxes.shape[0] != pictures or boxes.shape[2] != 4:
        raise ValueError(f"{name} are boxes of shape {boxes.shape}, not ({pictures}, S, 4), a row a picture")
    x, y, width, height = np.moveaxis(np.asarray(boxes, np.int64), 2, 0)
    real = width > 0
    wrong = real & ((x < 0) | (y < 0) | (height <= 0) | (x + width > side) | (y + height > side))
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name}: box {boxes[tuple(first)].tolist()} (x, y, width, height) of picture {first[0]} does not lie in "
            f"its square of {side} pixels"
        )
