"""What the image tokenizer's decoder makes of codes: collected first, then decoded batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infra.storage import Storage
from tasks.browse.originals import THUMBNAIL
from tasks.report.html import uri

DECODE_BATCH = 16


class Decoder:
    """Shows what codes stand for: collects them, and decodes batch by batch at the end.

    An image tokenizer without a decoder shows nothing, and says so in each picture's place.
    """

    def __init__(self, store: Storage) -> None:
        from model.image_tokenizer.load import load_image_tokenizer

        self._tokenizer = load_image_tokenizer(store)
        self._codes: list[Any] = []
        self._slots: list[dict[str, str]] = []

    def add(self, codes: Any) -> dict[str, str]:
        """A mapping that gets its ``uri`` when :meth:`finish` has decoded it."""
        if not self._tokenizer.has_decoder:
            return {"uri": "", "why": "the image tokenizer has no decoder"}
        self._codes.append(codes.astype(np.int64))
        self._slots.append({"uri": ""})
        return self._slots[-1]

    def __len__(self) -> int:
        return len(self._codes)

    def finish(self) -> Iterator[int]:
        """Decodes what was collected; yields how many pictures each batch held."""
        import torch
        from PIL import Image

        for start in range(0, len(self._codes), DECODE_BATCH):
            batch = torch.from_numpy(np.stack(self._codes[start : start + DECODE_BATCH]))
            with torch.no_grad():
                pixels_BHWC = self._tokenizer.decode(batch).permute(0, 2, 3, 1).cpu().numpy()
            for slot, pixels in zip(self._slots[start:], pixels_BHWC, strict=False):
                picture = Image.fromarray(pixels)
                picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                slot["uri"] = uri(picture)
            yield len(batch)
