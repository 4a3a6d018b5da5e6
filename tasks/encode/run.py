"""The step ``encode``: every selected sample's pictures become codes, part by part. The sample store.

Pictures are encoded in batches of ``encode.batch``, cut from the work item in source order; the last one is filled up
with white. So a part's codes depend on the work item alone, and making it twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import SourceError
from infra.store.commit import load_part
from infra.store.manifest import Rows
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import Pixels, Transform, transform
from tasks.pool import PartOutput, run_items
from tasks.scan.examine import storable
from tasks.scan.selected import SelectedRow, selected, work_items
from tasks.sources.base import RawSample, WorkItem

if TYPE_CHECKING:
    from model.image_tokenizer.load import ImageTokenizer

Codes = npt.NDArray[np.uint16]
WHITE = 255


class MissingImage(Exception):
    """The source names a picture that is not there."""


def pixels_of(sample: RawSample, how: Transform, side: int, max_pixels: int) -> list[Pixels]:
    """The sample's pictures as squares, in order: cropped, but padded where a user shows one in a conversation.

    Raises ImageError or MissingImage for the first one that cannot be used.
    """
    shown = {s.image for s in sample.segments if s.role == "user" and s.image is not None}
    squares = []
    for index, image in enumerate(sample.images):
        if image.data is None:
            raise MissingImage(f"{image.name}: no such picture")
        upright = open_image(image.data, max_pixels)
        squares.append(how.pad(upright, side) if index in shown else how.crop(upright, side))
    return squares


class BatchEncoder:
    """Collects pictures and encodes them whenever a batch is full, so that few are held at once.

    A picture equal to an earlier one takes its codes: conversations about one picture follow each other.
    """

    def __init__(self, tokenizer: ImageTokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._waiting: list[Pixels] = []
        self._done: list[Codes] = []
        self._places: dict[bytes, int] = {}
        self._order: list[int] = []

    def add(self, pixels: Pixels) -> None:
        """Takes a picture (side, side, 3) uint8."""
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        known = digest in self._places
        self._order.append(self._places.setdefault(digest, len(self._places)))
        if known:
            return
        self._waiting.append(pixels)
        if len(self._waiting) == self._size:
            self._encode()

    def finish(self) -> list[Codes]:
        """The codes of all pictures in the order they came, each (codes_per_image,) uint16."""
        if self._waiting:
            self._encode()
        return [self._done[place] for place in self._order]

    def _encode(self) -> None:
        import torch

        count = len(self._waiting)
        batch_BHWC = np.full((self._size, *self._waiting[0].shape), WHITE, np.uint8)
        batch_BHWC[:count] = np.stack(self._waiting)
        self._waiting = []
        codes_BN = self._tokenizer.encode(torch.from_numpy(batch_BHWC).permute(0, 3, 1, 2))
        self._done.extend(codes_BN[:count].cpu().numpy().astype(np.uint16))


class SampleEncoder:
    """Makes one part of the sample store at a time."""

    def __init__(self, context: StepContext) -> None:
        import torch

        from model.image_tokenizer.load import load_image_tokenizer

        torch.set_num_threads(1)  # codes may depend on it in the last bit, and workers share the cores
        self._context = context
        self._tokenizer = load_image_tokenizer(context.store("image-tokenizer"))
        self._transform = transform(context.recipe.pictures.transform)
        self._max_pixels = context.recipe.scan.max_pixels

    def process(self, item: WorkItem) -> PartOutput:
        config = self._context.recipe.source(item.source)
        batches = BatchEncoder(self._tokenizer, self._context.recipe.encode.batch)
        side = self._tokenizer.config.resolution
        kept: list[dict[str, Any]] = []
        quarantine: list[dict[str, Any]] = []
        for raw, row in selected(self._context, item):
            _unchanged(item.source, raw, row)
            try:
                squares = pixels_of(raw, self._transform, side, self._max_pixels)
            except ImageError as e:
                quarantine.append(_quarantined(item.source, raw, e.error_class, e.message))
                continue
            except MissingImage as e:
                quarantine.append(_quarantined(item.source, raw, "missing-image", str(e)))
                continue
            for square in squares:
                batches.add(square)
            kept.append(_sample(raw, row, config.kind))
        codes = iter(batches.finish())
        for sample in kept:
            for image in sample["images"]:
                image["codes"] = next(codes).astype("<u2").tobytes()
        files = {f"{item.part}.parquet": write_table(kept, SAMPLES)}
        if quarantine:
            files[f"{item.part}.quarantine.parquet"] = write_table(quarantine, QUARANTINE)
        errors = Counter(q["error"] for q in quarantine)
        return PartOutput(
            part=item.part,
            source=item.source,
            files=files,
            rows=Rows(entered=len(kept) + len(quarantine), out=len(kept), quarantined=dict(sorted(errors.items()))),
            facts={"images": sum(len(sample["images"]) for sample in kept)},
        )


def run(context: StepContext, workers: int | None = None) -> None:
    """Makes the sample store and commits the step; ``workers`` 0: in this process, without Ray."""
    context.manifest("image-tokenizer")
    items = work_items(context)
    entering = _entering(context, items)
    parts = run_items(
        context,
        items,
        SampleEncoder,
        workers=workers,
        unit="samples",
        weight=lambda manifest: manifest.rows.entered,
        total=entering,
    )
    images = Counter[str]()
    for manifest in (load_part(context.store(), part) for part in parts):
        images[manifest.source] += int(manifest.facts["images"])
    context.finish(
        parts=parts,
        facts={
            "images": dict(images),
            "codes_per_image": context.recipe.image_tokenizer.codes_per_image,
            "transform": context.recipe.pictures.transform,
        },
    )


def _entering(context: StepContext, items: Sequence[WorkItem]) -> int:
    """Samples that ``select`` let through."""
    store = context.store("select")
    return sum(load_part(store, item.part).rows.out for item in items)


def _unchanged(source: str, raw: RawSample, row: SelectedRow) -> None:
    """A picture replaced since the scan must not slip in under the old one's hashes and split."""
    for image, scanned in zip(raw.images, row.images, strict=True):
        if image.data is not None and hashlib.sha256(image.data).digest() != scanned.sha256:
            raise SourceError(
                f"source {source}: {raw.file}: picture {image.name} changed after it was scanned. "
                "Touch the list that names it, so that it is scanned again, and run again."
            )


def _sample(raw: RawSample, row: SelectedRow, kind: str) -> dict[str, Any]:
    """A row of the sample store, its pictures' codes still to come."""
    return {
        "sample_id": row.sample_id,
        "key": storable(raw.key),
        "file": storable(raw.file),
        "row": raw.row,
        "kind": kind,
        "category": raw.category,
        "licence": row.licence,
        "held_out": row.held_out,
        "captions": list(raw.captions),
        "segments": [{"role": s.role, "text": s.text, "image": s.image} for s in raw.segments],
        "images": [{"width": i.width, "height": i.height, "sha256": i.sha256, "phash": i.phash} for i in row.images],
    }


def _quarantined(source: str, raw: RawSample, error: str, message: str) -> dict[str, Any]:
    return {
        "source": source,
        "key": storable(raw.key),
        "file": storable(raw.file),
        "row": raw.row,
        "error": error,
        "message": storable(message),
    }
