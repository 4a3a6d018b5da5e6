"""The pictures that the image tokenizer is trained and measured on, decoded once into scratch arrays.

Which ones is decided without reading a source: different pictures by their sha256, from what ``scan`` found, those
with the lowest hash of (seed, sha256) if there are more than wanted. A picture that is held out is never trained on:
``scan`` holds out every sample that shows it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.storage import Storage
from tasks.context import StepContext
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import Pixels, transform
from tasks.scan.selected import selected, selected_rows, work_items
from tasks.sources.base import WorkItem

ASIDE = "calumma-pictures-"
TRAINING = "scratch/training.u8"
HELD_OUT = "scratch/held-out.u8"
MEASURED = 1024
"""Held-out pictures, at most, that the finished tokenizer is measured on."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen pictures by sha256, and the work items that hold any of them."""

    training: frozenset[bytes]
    held_out: frozenset[bytes]
    items: tuple[WorkItem, ...]


def choose(context: StepContext) -> Choice:
    """Which pictures. Held out are those that only held-out samples show."""
    held: dict[bytes, bool] = {}
    items: dict[bytes, WorkItem] = {}
    for item in work_items(context):
        for row in selected_rows(context, item.part).values():
            for image in row.images:
                held[image.sha256] = held.get(image.sha256, True) and row.held_out
                items.setdefault(image.sha256, item)
    seed = context.recipe.seed

    def lowest(held_out: bool, count: int) -> frozenset[bytes]:
        ours = [sha256 for sha256, side in held.items() if side is held_out]
        return frozenset(sorted(ours, key=lambda sha256: _place(sha256, seed))[:count])

    training = lowest(False, context.recipe.image_tokenizer_training.pictures)
    held_out = lowest(True, MEASURED)
    holding = {items[sha256].part for sha256 in training | held_out}
    return Choice(training, held_out, tuple(i for i in work_items(context) if i.part in holding))


def collect(context: StepContext) -> None:
    """Decodes the chosen pictures into :data:`TRAINING` and :data:`HELD_OUT`: uint8, (n, side, side, 3), no header.

    They lie in source order. What cannot be decoded is left out here; ``encode`` accounts for it. Arrays that an
    earlier attempt finished are taken as they are.
    """
    store, side = context.store(), context.recipe.image_tokenizer.resolution
    if store.exists(TRAINING) and store.exists(HELD_OUT):
        return
    choice = choose(context)
    total = len(choice.training) + len(choice.held_out)
    store.need(total * side * side * 3, "the scratch copy of the pictures to train on")
    store.sweep("scratch")
    if store.local:
        for left in store.path().glob(f"{ASIDE}*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_near(store), prefix=ASIDE) as folder:
        names = {TRAINING: Path(folder) / "training", HELD_OUT: Path(folder) / "held-out"}
        with open(names[TRAINING], "wb") as training, open(names[HELD_OUT], "wb") as held_out:
            for done, (sha256, pixels) in enumerate(_squares(context, choice), 1):
                (training if sha256 in choice.training else held_out).write(pixels.tobytes())
                context.progress.update(done, total, "pictures", note="reading pictures")
        for name, path in names.items():
            if store.local:
                store.path(name).parent.mkdir(parents=True, exist_ok=True)
                path.replace(store.path(name))
            else:
                store.put(name, path.read_bytes())


def load_pictures(store: Storage, name: str, side: int) -> Pixels:
    """An array made by :func:`collect`, (n, side, side, 3) uint8; memory-mapped where the storage is a local disk."""
    shape = (-1, side, side, 3)
    if store.local and store.size(name):
        return np.memmap(store.path(name), np.uint8, "r").reshape(shape)
    return np.frombuffer(store.get(name), np.uint8).reshape(shape)


def discard(store: Storage) -> None:
    """Removes the scratch arrays."""
    for name in (TRAINING, HELD_OUT):
        store.delete(name)


def _near(store: Storage) -> str | None:
    """Where a file can be moved into the storage from; anywhere, if it is not a local disk."""
    if not store.local:
        return None
    store.path().mkdir(parents=True, exist_ok=True)
    return str(store.path())


def _squares(context: StepContext, choice: Choice) -> Iterator[tuple[bytes, Pixels]]:
    """Every chosen picture once, cropped, in source order."""
    recipe = context.recipe
    how, side = transform(recipe.pictures.transform), recipe.image_tokenizer.resolution
    left = set(choice.training | choice.held_out)
    for item in choice.items:
        for raw, row in selected(context, item):
            for image, facts in zip(raw.images, row.images, strict=True):
                if facts.sha256 not in left or image.data is None:
                    continue
                try:
                    upright = open_image(image.data, recipe.scan.max_pixels)
                except ImageError:
                    continue
                left.discard(facts.sha256)
                yield facts.sha256, how.crop(upright, side)


def _place(sha256: bytes, seed: int) -> bytes:
    return hashlib.blake2b(sha256, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
