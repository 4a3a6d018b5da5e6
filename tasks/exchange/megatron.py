"""Megatron's indexed data sets: a ``.bin`` of tokens and an ``.idx`` beside it, written and read without its package.

``.idx``, all little-endian: ``MMIDIDX`` and two zeros, version 1 (uint64), code of the tokens' type (uint8), number of
sequences n (uint64), number of document borders d (uint64), lengths in tokens (n × int32), byte offsets in ``.bin``
(n × int64), and the borders (d × int64): document i is the sequences from border i to border i + 1. From the public
description of Megatron-LM's ``IndexedDataset`` (megatron-core 0.16, BSD-3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.storage import Storage

MAGIC = b"MMIDIDX\x00\x00"
CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Types by code; 6 and 7 are floats, which no token is."""
FILE_BYTES = 1 << 28
_HEAD = struct.Struct("<9sQBQQ")


class BadIndex(Exception):
    """The bytes are not an index of this format, or do not fit the ``.bin``; the message says what."""


@dataclass
class MegatronWriter:
    """Writes documents of one sequence each to ``PREFIX-00000.bin`` and ``.idx`` and so on in a folder.

    A file is held in memory until it is full: Megatron blends as many as it is given.
    """

    store: Storage
    dtype: str = "uint16"
    file_bytes: int = FILE_BYTES
    prefix: str = "tokens"
    files: list[str] = field(default_factory=list)
    """What was written, without endings."""

    def __post_init__(self) -> None:
        self._tokens: list[bytes] = []
        self._lengths: list[int] = []
        self._bytes = 0

    def write(self, tokens_T: npt.NDArray[np.uint16]) -> None:
        """One document."""
        data = tokens_T.astype(np.dtype(self.dtype).newbyteorder("<")).tobytes()
        if self._tokens and self._bytes + len(data) > self.file_bytes:
            self.finish()
        self._tokens.append(data)
        self._lengths.append(len(tokens_T))
        self._bytes += len(data)

    def finish(self) -> None:
        """Writes what has not been written, the index last."""
        if not self._tokens:
            return
        name = f"{self.prefix}-{len(self.files):05d}"
        self.store.put(f"{name}.bin", b"".join(self._tokens))
        n = len(self._lengths)
        code = next(code for code, dtype in CODES.items() if dtype == self.dtype)
        offsets = np.cumsum([0, *map(len, self._tokens)])[:-1]
        self.store.put(
            f"{name}.idx",
            _HEAD.pack(MAGIC, 1, code, n, n + 1)
            + np.array(self._lengths, "<i4").tobytes()
            + offsets.astype("<i8").tobytes()
            + np.arange(n + 1, dtype="<i8").tobytes(),
        )
        self.files.append(name)
        self._tokens, self._lengths, self._bytes = [], [], 0


@dataclass(frozen=True, slots=True)
class Index:
    """The head of an ``.idx``: enough to know how many documents there are."""

    store: Storage
    name: str
    dtype: np.dtype[Any]
    sequences: int
    borders: int

    @classmethod
    def of(cls, store: Storage, name: str, size: int) -> Index:
        """Reads it; BadIndex where it is none. ``size`` is that of the file."""
        head = store.range(name, 0, _HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            raise BadIndex("it does not begin like an index of Megatron's")
        _, version, code, sequences, borders = _HEAD.unpack(head)
        if version != 1:
            raise BadIndex(f"version {version}; expected 1")
        if code not in CODES:
            raise BadIndex(f"tokens of type code {code}; expected one of {', '.join(map(str, CODES))}")
        if not borders:
            raise BadIndex("it has no document borders")
        if _HEAD.size + 12 * sequences + 8 * borders > size:
            raise BadIndex("it ends before its numbers do")
        return cls(store, name, np.dtype(CODES[code]).newbyteorder("<"), sequences, borders)

    @property
    def documents(self) -> int:
        return self.borders - 1

    def documents_of(self, start: int, stop: int) -> list[list[tuple[int, int]]]:
        """Of each document from ``start`` to ``stop - 1`` the stretches of ``.bin``: (first byte, byte after)."""
        lengths_at = _HEAD.size
        offsets_at = lengths_at + 4 * self.sequences
        borders = self._numbers("<i8", offsets_at + 8 * self.sequences, start, stop + 1)
        first, last = int(borders[0]), int(borders[-1])
        if (np.diff(borders) < 0).any() or first < 0 or last > self.sequences:
            raise BadIndex("its document borders are out of order")
        lengths = self._numbers("<i4", lengths_at, first, last) * self.dtype.itemsize
        offsets = self._numbers("<i8", offsets_at, first, last)
        if lengths.size and (lengths.min() < 0 or offsets.min() < 0):
            raise BadIndex("it holds lengths or offsets below 0")
        ends = offsets + lengths
        if (ends < offsets).any():
            raise BadIndex("it holds offsets that no file has")
        places = list(zip(offsets.tolist(), ends.tolist(), strict=True))
        cuts = (borders - first).tolist()
        return [places[a:b] for a, b in pairwise(cuts)]

    def _numbers(self, dtype: str, at: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        size = np.dtype(dtype).itemsize
        data = self.store.range(self.name, at + size * start, at + size * stop)
        if len(data) != size * (stop - start):
            raise BadIndex("it ends before its numbers do")
        return np.frombuffer(data, dtype).astype(np.int64)
