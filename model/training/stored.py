"""Pieces of a training's state in files: written by every rank, read by any other number of them.

The files are in safetensors' format. A tensor is called ``KIND/START/NAME``: a stretch of the flattened parameter NAME
from element START on. The header also holds the parameters' shapes and AdamW's count of steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.training.state import KINDS, Piece
from model.transformer.tensors import LazyTensors

FILE_BYTES = 256 << 20
"""A file is closed when it has as many bytes or more; that is also what is held in memory to write it."""


class Copied(NamedTuple):
    """A rank's pieces, copied, and no longer changed by training."""

    pieces: list[Piece]
    taken: int
    """AdamW's count of steps."""


def copied(pieces: Iterable[Piece], taken: int) -> Copied:
    """Copies pieces to the CPU: the only part of a checkpoint that training waits for."""
    copies = (piece._replace(**{kind: getattr(piece, kind).to("cpu", copy=True) for kind in KINDS}) for piece in pieces)
    return Copied(list(copies), taken)


def files_of(state: Copied) -> Iterator[bytes]:
    """The contents of the files, one after the other; at least one, and each below ``FILE_BYTES`` and a piece."""
    held: list[Piece] = []
    for piece in state.pieces:
        held.append(piece)
        if sum(12 * len(p.weight) for p in held) >= FILE_BYTES:
            yield _file(held, state.taken)
            held = []
    if held or not state.pieces:
        yield _file(held, state.taken)


def _file(pieces: list[Piece], taken: int) -> bytes:
    tensors = {f"{kind}/{p.start}/{p.name}": getattr(p, kind) for p in pieces for kind in KINDS}
    shapes = {p.name: list(p.shape) for p in pieces}
    return bytes(save(tensors, {"shapes": json.dumps(shapes), "taken": str(taken)}))


class _Fragment(NamedTuple):
    start: int
    length: int
    file: str
    offset: int
    """Of its first byte in the file."""


class StoredState:
    """What files of a checkpoint hold; their headers are read at once, the rest as it is asked for."""

    def __init__(self, store: Storage, names: Iterable[str]) -> None:
        """StoreError where a file is none of ours, or the files are not of one step."""
        self._store = store
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._fragments: dict[tuple[str, str], list[_Fragment]] = {}
        taken = set()
        for name in names:
            try:
                size = int.from_bytes(store.range(name, 0, 8), "little")
                header: dict[str, Any] = json.loads(store.range(name, 8, 8 + size))
                facts = header.pop("__metadata__")
                taken.add(int(facts["taken"]))
                self.shapes |= {n: tuple(shape) for n, shape in json.loads(facts["shapes"]).items()}
                for key, tensor in header.items():
                    kind, start, parameter = key.split("/", 2)
                    begin, end = tensor["data_offsets"]
                    fragment = _Fragment(int(start), (end - begin) // 4, name, 8 + size + begin)
                    self._fragments.setdefault((kind, parameter), []).append(fragment)
            except (ValueError, KeyError, TypeError) as e:
                raise StoreError(f"{store.url(name)}: not a file of a checkpoint ({e!r})") from e
        if len(taken) != 1:
            raise StoreError(f"{store.root}: files of one checkpoint, found after {sorted(taken)} steps of AdamW")
        (self.taken,) = taken

    def fill(self, piece: Piece) -> None:
        """Writes the stored values into a piece's memory. StoreError unless all of them are stored."""
        shape = self.shapes.get(piece.name)
        if shape != piece.shape:
            raise StoreError(
                f"{self._store.root}: the checkpoint's {piece.name} has shape {shape}, the model's {piece.shape}. "
                "Set `model` as it was, or delete the checkpoints to start this training anew."
            )
        for kind in KINDS:
            self._read(kind, piece.name, piece.start, getattr(piece, kind))

    def weights(self) -> Mapping[str, Tensor]:
        """All parameters whole, float32; each is read when it is asked for, and not kept."""
        return LazyTensors({name: partial(self._weight, name) for name in self.shapes})

    def _weight(self, name: str) -> Tensor:
        found = torch.empty(self.shapes[name])
        self._read("weight", name, 0, found.view(-1))
        return found

    def _read(self, kind: str, name: str, start: int, out_N: Tensor) -> None:
        stop, read = start + len(out_N), 0
        for f in self._fragments.get((kind, name), ()):
            a, b = max(start, f.start), min(stop, f.start + f.length)
            if a >= b:
                continue
            data = self._store.range(f.file, f.offset + 4 * (a - f.start), f.offset + 4 * (b - f.start))
            out_N[a - start : b - start].copy_(torch.from_numpy(np.frombuffer(data, np.float32).copy()))
            read += b - a
        if read != len(out_N):
            raise StoreError(
                f"{self._store.root}: of elements {start} to {stop - 1} of {name} ({kind}, "
                f"{math.prod(self.shapes[name])} in all) the checkpoint's files hold {read}"
            )
