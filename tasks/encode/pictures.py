"""Reading and decoding ahead of the encoder: from selected samples to pictures that are becoming squares.

One thread reads the source and checks each file; ``resources.decode_threads`` others decode. What they are ahead by is
bounded in pictures, and the order is the source's, so a part's bytes do not depend on threads. What crosses from the
reader is the file's bytes; pixels exist from decoding to the batch only.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from infra.errors import SourceError
from tasks.encode.batches import Picture
from tasks.encode.transforms import Pixels, Transform
from tasks.scan.selected import SelectedRow
from tasks.sources.base import RawSample

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A selected sample whose pictures are being decoded."""

    raw: RawSample
    row: SelectedRow
    pictures: tuple[Picture, ...] = ()
    fault: tuple[str, str] | None = None
    """Class and message, where a picture's bytes could not be had."""


class Preparer:
    """Prepares samples in order, with at most ``ahead`` pictures (or one sample with more) in flight."""

    def __init__(self, how: Transform, side: int, max_pixels: int, threads: int, ahead: int) -> None:
        self._how, self._side, self._max_pixels, self._ahead = how, side, max_pixels, ahead
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None

    def prepare(
        self, source: str, samples: Iterator[tuple[RawSample, SelectedRow]], known: Container[bytes]
    ) -> Iterator[Prepared]:
        """The samples in their order; pictures whose key is ``known`` are not decoded again.

        Raises SourceError for a picture that is another one than was scanned, and what ``samples`` raises.
        """
        if self._pool is None:
            for raw, row in samples:
                yield self._prepared(source, raw, row, lambda key, job: job)
            return
        pool, running = self._pool, WeakValueDictionary[bytes, "Future[Pixels]"]()

        def decoded(key: bytes, job: Callable[[], Pixels]) -> Callable[[], Pixels]:
            if key in known:
                return job  # never called
            future = running.get(key)
            if future is None:
                running[key] = future = pool.submit(job)
            return future.result

        work = (self._prepared(source, raw, row, decoded) for raw, row in samples)
        yield from read_ahead(work, lambda prepared: max(1, len(prepared.pictures)), self._ahead)

    def _prepared(
        self,
        source: str,
        raw: RawSample,
        row: SelectedRow,
        decoded: Callable[[bytes, Callable[[], Pixels]], Callable[[], Pixels]],
    ) -> Prepared:
        shown = {s.image for s in raw.segments if s.role == "user" and s.image is not None}
        pictures = []
        for index, (image, scanned) in enumerate(zip(raw.images, row.images, strict=True)):
            if image.data is None:
                why = "no such picture" if image.error == "missing-image" else "its bytes could not be read"
                return Prepared(raw, row, fault=(image.error, f"{image.name}: {why}"))
            if hashlib.sha256(image.data).digest() != scanned.sha256:
                # It must not slip in under the old one's hashes and split.
                raise SourceError(
                    f"source {source}: {raw.file}: picture {image.name} changed after it was scanned. "
                    "Touch the list that names it, so that it is scanned again, and run again."
                )
            way = self._how.pad_file if index in shown else self._how.crop_file
            key = scanned.sha256 + (b"pad" if index in shown else b"crop")
            pictures.append(Picture(key, decoded(key, partial(way, image.data, self._side, self._max_pixels))))
        return Prepared(raw, row, tuple(pictures))


def read_ahead(source: Iterator[T], weight: Callable[[T], int], limit: int) -> Iterator[T]:
    """The same things in the same order, taken from ``source`` by another thread that runs ahead of the consumer.

    At most ``limit`` of weight are in flight, counting what the consumer holds; a single thing may weigh more. What
    ``source`` raises is raised here, in its place. The thread ends with the iterator, also where that is given up.
    """
    taken: deque[tuple[T, int]] = deque()
    change = threading.Condition()
    weighs, stopped, ended = 0, False, False
    error: BaseException | None = None

    def may_go(size: int) -> bool:
        return stopped or weighs == 0 or weighs + size <= limit

    def run() -> None:
        nonlocal weighs, ended, error
        try:
            for thing in source:
                size = weight(thing)
                with change:
                    change.wait_for(partial(may_go, size))
                    if stopped:
                        break
                    taken.append((thing, size))
                    weighs += size
                    change.notify_all()
        except BaseException as e:
            error = e
        finally:
            with change:
                ended = True
                change.notify_all()

    thread = threading.Thread(target=run, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            with change:
                change.wait_for(lambda: taken or ended)
                if not taken:
                    break
                thing, size = taken.popleft()
            yield thing
            del thing  # before the next is waited for: it may be large
            with change:
                weighs -= size
                change.notify_all()
        if error is not None:
            raise error
    finally:
        with change:
            stopped = True
            change.notify_all()
        thread.join()
