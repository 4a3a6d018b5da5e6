"""The pictures that the image tokenizer is trained and measured on, decoded once into scratch arrays.

Which ones is decided without reading a source: different pictures by their sha256, from what ``scan`` found, those
with the lowest hash of (seed, sha256) if there are more than wanted. A picture that is held out is never trained on:
``scan`` holds out every sample that shows it, so its own hash tells. Beside the training pictures lie the boxes of
their faces and salient objects.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from infra.storage import Storage
from tasks.context import StepContext
from tasks.encode.decode import ImageError
from tasks.encode.transforms import Pixels, transform
from tasks.scan.examine import is_held_out
from tasks.scan.facts import ImageFacts
from tasks.scan.selected import selected, selected_rows, work_items
from tasks.sources.base import WorkItem
from tasks.train.boxes import as_rows, faces_in_square, salient_boxes

TRAINING = "scratch/training.u8"
HELD_OUT = "scratch/held-out.u8"
FACES = "scratch/training.faces.i16"
OBJECTS = "scratch/training.objects.i16"
SCRATCH = (FACES, OBJECTS, TRAINING, HELD_OUT)
MEASURED = 1024
"""Held-out pictures that the finished tokenizer is measured on; more if the training looks at more."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen pictures by sha256, and the work items that hold any of them."""

    training: frozenset[bytes]
    held_out: frozenset[bytes]
    items: tuple[WorkItem, ...]


class _Lowest:
    """The ``count`` different pictures with the lowest hash of (seed, sha256), and a part that holds each."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._heap: list[tuple[int, bytes]] = []
        self.parts: dict[bytes, str] = {}

    def add(self, sha256: bytes, part: str) -> None:
        if sha256 in self.parts:
            return
        place = (-int.from_bytes(_place(sha256, self._seed), "big"), sha256)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, place)
        elif place > self._heap[0]:
            del self.parts[heapq.heapreplace(self._heap, place)[1]]
        else:
            return
        self.parts[sha256] = part


def choose(context: StepContext) -> Choice:
    """Which pictures; memory grows with their number, not with the sources'.

    Training pictures are of samples that are not held out. Held out are those that ``scan`` held out by their own hash,
    so that no training sample shows them.
    """
    recipe, items = context.recipe, work_items(context)
    training = _Lowest(recipe.image_tokenizer_training.pictures, recipe.seed)
    held_out = _Lowest(max(MEASURED, recipe.image_tokenizer_training.evaluate_pictures), recipe.seed)
    for item in items:
        for row in selected_rows(context, item.part).values():
            for image in row.images:
                if not row.held_out:
                    training.add(image.sha256, item.part)
                elif is_held_out(image.sha256, recipe.scan.held_out, recipe.seed):
                    held_out.add(image.sha256, item.part)
    holding = {*training.parts.values(), *held_out.parts.values()}
    return Choice(frozenset(training.parts), frozenset(held_out.parts), tuple(i for i in items if i.part in holding))


def collect(context: StepContext) -> None:
    """Decodes the chosen pictures into :data:`TRAINING` and :data:`HELD_OUT`: uint8, (n, side, side, 3), no header.

    They lie in source order. What cannot be decoded is left out here; ``encode`` accounts for it. Arrays that an
    earlier attempt finished are taken as they are. :data:`FACES` and :data:`OBJECTS` are int16, (n, boxes, 4), for the
    training pictures: x, y, width, height in the square; objects are only looked for where they weigh anything.
    """
    store, training = context.store(), context.recipe.image_tokenizer_training
    side, boxes = context.recipe.image_tokenizer.resolution, training.region_boxes
    if all(store.exists(name) for name in SCRATCH):
        return
    choice = choose(context)
    total = len(choice.training) + len(choice.held_out)
    store.need(total * side * side * 3, "the scratch copy of the pictures to train on")
    store.sweep("scratch")
    with ExitStack() as stack:
        files = {name: stack.enter_context(_new_file(store, name)) for name in SCRATCH}
        for done, (facts, pixels) in enumerate(_squares(context, choice), 1):
            if facts.sha256 in choice.training:
                faces = faces_in_square(facts.faces, facts.width, facts.height, side)
                objects = salient_boxes(pixels, boxes) if training.objects_weigh else []
                files[TRAINING].write(pixels.tobytes())
                files[FACES].write(as_rows(faces, boxes).tobytes())
                files[OBJECTS].write(as_rows(objects, boxes).tobytes())
            else:
                files[HELD_OUT].write(pixels.tobytes())
            context.progress.update(done, total, "pictures", note="reading pictures")


def load_pictures(store: Storage, name: str, side: int) -> Pixels:
    """An array made by :func:`collect`, (n, side, side, 3) uint8; memory-mapped where the storage is a local disk."""
    shape = (-1, side, side, 3)
    if store.local and store.size(name):
        return np.memmap(store.path(name), np.uint8, "r").reshape(shape)
    return np.frombuffer(store.get(name), np.uint8).reshape(shape)


def load_boxes(store: Storage, name: str, boxes: int) -> npt.NDArray[np.int16]:
    """Boxes made by :func:`collect`, (n, boxes, 4) int16."""
    return np.frombuffer(store.get(name), np.int16).reshape(-1, boxes, 4)


def discard(store: Storage) -> None:
    """Removes the scratch arrays."""
    for name in SCRATCH:
        store.delete(name)


@contextmanager
def _new_file(store: Storage, name: str) -> Iterator[IO[bytes]]:
    """A file to write piece by piece, which is there, whole, when the context has ended without an error."""
    with store.writing(name) as path, path.open("wb") as file:
        yield file


def _squares(context: StepContext, choice: Choice) -> Iterator[tuple[ImageFacts, Pixels]]:
    """Every chosen picture once, cropped, with what ``scan`` knows of it, in source order."""
    recipe = context.recipe
    how, side = transform(recipe.pictures.transform), recipe.image_tokenizer.resolution
    left = set(choice.training | choice.held_out)
    for item in choice.items:
        for raw, row in selected(context, item):
            for image, facts in zip(raw.images, row.images, strict=True):
                if facts.sha256 not in left or image.data is None:
                    continue
                try:
                    square = how.crop_file(image.data, side, recipe.scan.max_pixels)
                except ImageError:
                    continue
                left.discard(facts.sha256)
                yield facts, square


def _place(sha256: bytes, seed: int) -> bytes:
    return hashlib.blake2b(sha256, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
