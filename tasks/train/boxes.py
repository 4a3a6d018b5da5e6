"""Boxes in the squares that the image tokenizer is trained on: faces that ``scan`` found, and salient objects.

Salient objects are the blobs of the spectral residual (Hou and Zhang, 2007): what is left of a picture's log spectrum
once its own smooth part is taken away, back in the picture. It needs no weights and takes about a millisecond; it
answers to contrast and detail, not to meaning, and so finds a thing before a calm background, and in a busy picture
something at random. Gafni et al. take crops from a panoptic segmentation, for which no weights come in a package.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from tasks.encode.reference import MAX_ASPECT, cropped_size
from tasks.encode.transforms import Pixels
from tasks.scan.faces import Face

MIN_SIDE = 8
"""A smaller box, pixels of the square, shows too little to be looked at again."""
_MAP = 64
"""The salience map's side; the method is made for this scale."""
_SALIENT = 3.0
"""A place counts as salient above this multiple of the map's mean."""
_SIGMA = 2.5
_FLAT = 2.0
"""Standard deviation of the grey levels below which a picture shows nothing."""


def faces_in_square(faces: Sequence[Face], width: int, height: int, side: int) -> list[Face]:
    """Where a picture's faces lie in its middle square, the largest first; those cut off or too small are dropped.

    Args:
        faces: in pixels of the upright original of ``width`` by ``height``.
        side: of the square, as every transform crops it.
    """
    kept_width, kept_height = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
    size = cropped_size(kept_width, kept_height, side)
    found = []
    for face in faces:
        x, right = (
            (edge - (width - kept_width) // 2) * size[0] / kept_width - (size[0] - side) // 2
            for edge in (face.x, face.x + face.width)
        )
        y, bottom = (
            (edge - (height - kept_height) // 2) * size[1] / kept_height - (size[1] - side) // 2
            for edge in (face.y, face.y + face.height)
        )
        box = Face(round(x), round(y), round(right) - round(x), round(bottom) - round(y))
        inside = min(box.x, box.y) >= 0 and max(box.x + box.width, box.y + box.height) <= side
        if inside and min(box.width, box.height) >= MIN_SIDE:
            found.append(box)
    return sorted(found, key=lambda b: (-b.width * b.height, b.y, b.x))


def salient_boxes(square: Pixels, limit: int) -> list[Face]:
    """Up to ``limit`` boxes of salient objects in a (side, side, 3) uint8 square, the most salient first."""
    side = square.shape[0]
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
    if float(grey.std()) < _FLAT:
        return []
    small = cv2.resize(grey, (_MAP, _MAP), interpolation=cv2.INTER_AREA).astype(np.float64)
    spectrum = np.fft.fft2(small)
    log = np.log(np.abs(spectrum) + 1e-9)
    residual = log - cv2.blur(log, (3, 3), borderType=cv2.BORDER_REPLICATE)
    salience = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    salience = cv2.GaussianBlur(salience, (0, 0), _SIGMA)
    marked = (salience > _SALIENT * salience.mean()).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    weight = np.bincount(labels.ravel(), salience.ravel(), minlength=count)
    found = []
    for label in sorted(range(1, count), key=lambda n: (-weight[n], n)):
        left, top, width, height = (int(stats[label, column]) for column in range(4))
        # A cell of margin: the blob is where the contrast is, and the object's edge lies just outside.
        edges = np.array([left - 1, top - 1, left + width + 1, top + height + 1]).clip(0, _MAP) * side / _MAP
        x, y, right, bottom = (round(float(edge)) for edge in edges)
        if min(right - x, bottom - y) >= MIN_SIDE:
            found.append(Face(x, y, right - x, bottom - y))
    return found[:limit]


def as_rows(boxes: Sequence[Face], limit: int) -> npt.NDArray[np.int16]:
    """The first boxes as (limit, 4): x, y, width, height; rows without a box are 0."""
    rows = np.zeros((limit, 4), np.int16)
    rows[: min(limit, len(boxes))] = np.array(boxes[:limit], np.int16).reshape(-1, 4)
    return rows
