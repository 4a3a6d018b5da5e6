"""The peer of the pipeline: the same decoding and encoding in plain processes, and nothing else.

Files lie in memory before the clock starts, codes end in a list: no Ray, no tables, no hashes, no commit.
"""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from model.image_tokenizer.load import ImageTokenizer
    from tasks.context import StepContext
    from tasks.encode.transforms import Pixels
    from tasks.recipe import Recipe


@dataclass(frozen=True)
class _Peer:
    """What a process of the bare loop has."""

    barrier: Barrier
    recipe: Recipe
    tokenizer: ImageTokenizer


_peer: _Peer | None = None


def _start(barrier: Barrier, context: StepContext, device: str, niceness: int) -> None:
    global _peer
    os.nice(niceness - os.nice(0))
    import torch

    from model.image_tokenizer.fast import keep_freed_memory
    from model.image_tokenizer.load import load_image_tokenizer

    torch.set_num_threads(1)
    if device == "cpu":
        keep_freed_memory()  # as the step's own workers
    encode = context.recipe.encode
    tokenizer = load_image_tokenizer(
        context.store("image-tokenizer"), device, decoder=False, precision=encode.precision, compile=encode.compile
    )
    _peer = _Peer(barrier, context.recipe, tokenizer)


def _loop(tars: list[str], threads: int) -> tuple[int, float]:
    """Encodes the tars' pictures, after one batch to warm up; how many, and seconds."""
    import torch

    from tasks.encode.transforms import transform

    assert _peer is not None
    recipe, tokenizer = _peer.recipe, _peer.tokenizer
    batch, side = recipe.encode.batch, recipe.image_tokenizer.resolution
    crop_file, max_pixels = transform(recipe.pictures.transform).crop_file, recipe.scan.max_pixels
    files = [file for tar in tars for file in _pictures(tar)]
    found = []

    def square(data: bytes) -> Pixels:
        return crop_file(data, side, max_pixels)

    def encode(squares: list[Pixels]) -> None:
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        found.append(tokenizer.encode(pixels).cpu().numpy().astype(np.uint16))

    with ThreadPoolExecutor(max(1, threads)) as pool:
        decoded = pool.map if threads else map
        encode(list(decoded(square, files[:batch])))
        _peer.barrier.wait()
        began = time.monotonic()
        squares = []
        for pixels in decoded(square, files):
            squares.append(pixels)
            if len(squares) == batch:
                encode(squares)
                squares = []
        if squares:
            encode(squares)
        return len(files), time.monotonic() - began


def _pictures(tar: str) -> Iterator[bytes]:
    with tarfile.open(tar) as members:
        for member in members:
            if member.name.endswith(".jpg"):
                file = members.extractfile(member)
                assert file is not None
                yield file.read()


class BareLoop:
    """As many processes as the pool has actors, each with the tokenizer loaded and an equal share of the tars."""

    def __init__(
        self, context: StepContext, folder: Path, workers: int, device: str, threads: int, niceness: int
    ) -> None:
        """``niceness``: of the other side's processes; else whatever the machine does beside would meet one alone."""
        spawn = get_context("spawn")
        setup = spawn.Barrier(workers), context, device, niceness
        self._pool = ProcessPoolExecutor(workers, spawn, _start, setup)
        tars = sorted(map(str, folder.glob("*.tar")))
        self._shares = [tars[n::workers] for n in range(workers)]
        self._threads = threads

    def rate(self) -> float:
        """Pictures/s of all processes together: the sum of each one's own."""
        runs = self._pool.map(_loop, self._shares, [self._threads] * len(self._shares))
        return sum(count / seconds for count, seconds in runs)

    def close(self) -> None:
        self._pool.shutdown()
