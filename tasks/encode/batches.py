"""Squares to codes in batches of one size, on whatever device the tokenizer is.

uint8 goes to the device, not floats. On a GPU the batch lies in pinned memory and is copied without waiting; while it
computes the next one is filled, and a batch's codes are fetched only once its successor is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.encode.transforms import Pixels

if TYPE_CHECKING:
    from torch import Tensor

    from model.image_tokenizer.load import ImageTokenizer

WHITE = 255


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is to become a square, or is becoming one in another thread."""

    key: bytes
    """Equal keys, equal squares: the file's sha256, and how it is made a square."""
    square: Callable[[], Pixels]
    """(side, side, 3) uint8; ImageError if the file cannot be used."""


class BatchEncoder:
    """Collects pictures and encodes them whenever a batch is full, so that few are held at once.

    A picture equal to an earlier one takes its codes: conversations about one picture follow each other.
    """

    def __init__(self, tokenizer: ImageTokenizer, size: int, depth: int | None = None) -> None:
        """``depth``: batches that are being filled or under way; None: two on a GPU, one on a CPU, which waits."""
        import torch

        self._tokenizer, self._size = tokenizer, size
        self._pinned = tokenizer.device.type == "cuda"
        side = tokenizer.config.resolution
        self._buffers = [
            torch.empty((size, side, side, 3), dtype=torch.uint8, pin_memory=self._pinned)
            for _ in range(depth or (2 if self._pinned else 1))
        ]
        self._views: list[npt.NDArray[np.uint8]] = [buffer.numpy() for buffer in self._buffers]
        self._filled = 0
        self._under_way: list[tuple[Tensor, Any]] = []
        self._codes: list[bytes] = []
        self._places: dict[bytes, int] = {}

    def __contains__(self, key: object) -> bool:
        """Whether a picture of that key was added; safe to ask from other threads."""
        return key in self._places

    def add(self, pictures: Sequence[Picture]) -> list[int]:
        """Takes a sample's pictures, all or (where one raises ImageError) none; their places in what finish returns."""
        new = {p.key: p for p in pictures if p.key not in self._places}
        squares = {key: picture.square() for key, picture in new.items()}
        for key, square in squares.items():
            self._places[key] = len(self._places)
            self._views[0][self._filled] = square
            self._filled += 1
            if self._filled == self._size:
                self._encode()
        return [self._places[p.key] for p in pictures]

    def finish(self) -> list[bytes]:
        """The codes of all different pictures in the order they came, each codes_per_image uint16 little-endian."""
        if self._filled:
            self._views[0][self._filled :] = WHITE
            self._encode()
        while self._under_way:
            self._fetch()
        return self._codes[: len(self._places)]

    def _encode(self) -> None:
        import torch

        batch_BHWC = self._buffers[0].to(self._tokenizer.device, non_blocking=True)
        codes_BN = self._tokenizer.encode(batch_BHWC.permute(0, 3, 1, 2))
        done = None
        if self._pinned:
            # Copied back behind its own batch and marked there: asking later would wait for the next batch as well.
            host_BN = torch.empty(codes_BN.shape, dtype=codes_BN.dtype, pin_memory=True)
            codes_BN = host_BN.copy_(codes_BN, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._under_way.append((codes_BN, done))
        while len(self._under_way) >= len(self._buffers):  # the next buffer is free once its last batch is fetched
            self._fetch()
        self._buffers.append(self._buffers.pop(0))
        self._views.append(self._views.pop(0))
        self._filled = 0

    def _fetch(self) -> None:
        codes_BN, done = self._under_way.pop(0)
        if done is not None:
            done.synchronize()
        self._codes.extend(codes.tobytes() for codes in codes_BN.numpy().astype("<u2"))
