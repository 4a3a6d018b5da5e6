"""The sequence store: packed tokens in headerless files, so that sequence ``i`` lies at an offset known beforehand.

A folder holds ``sequences`` sequences of ``length`` ids, ``file_sequences`` a file (the last file may be shorter)::

    sequences.json        what the folder holds, written last
    seq-000000.u16        ids, uint16 little-endian; sequence i begins at byte (i mod file_sequences)·length·2
                          of file i div file_sequences
    seq-000000.starts     a bit a token, ceil(length/8) bytes a sequence, least significant bit first: set where a
                          document, a piece of one, or the padding begins; always at a sequence's first token
    seq-000000.loss       the same form, for conversations only: set on tokens that the model is to learn to produce
    seq-000000.sums       8 bytes a block of 64 sequences: blake2b-64 of the block's bytes in .u16, .starts and .loss
    seq-000000.parquet    the spans: which stretch of which document lies where; for inspection and accounts only

With 4,096 ids and 32,768 sequences a file these are DESIGN's 256 MiB files. Nothing is listed to find a sequence.
Shape suffixes: S sequences, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.tables import FORMAT_KEY, read_table

VERSION = 1
INFO = "sequences.json"
BLOCK = 64
"""Sequences under one checksum."""
SUM_BYTES = 8
_MAPPED_FILES = 128
"""Memory maps kept open by a reader; a slice of the full-size store is 32 files of three kinds."""

SPANS = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),  # within the folder
        pa.field("offset", pa.int32(), nullable=False),  # of the span's first token in the sequence
        pa.field("length", pa.int32(), nullable=False),  # tokens
        pa.field("source", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # of the document store
        pa.field("row", pa.int32(), nullable=False),  # within the part
        pa.field("occurrence", pa.int32(), nullable=False),  # the k-th use of the document
        pa.field("first_token", pa.int32(), nullable=False),  # of the document; above 0 in pieces after the first
        pa.field("image_tokens", pa.int32(), nullable=False),  # BOI … EOI within the span
    ],
    metadata={FORMAT_KEY: f"calumma-spans {VERSION}".encode()},
)

Tokens = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.bool_]


class SequencesInfo(BaseModel):
    """``sequences.json``: the numbers from which every offset follows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["calumma-sequences"] = "calumma-sequences"
    version: int = VERSION
    sequences: int = Field(ge=0)
    length: int = Field(ge=1)
    """Ids a sequence."""
    file_sequences: int = Field(ge=1)
    loss: bool = False
    """Whether there are loss bits."""

    @property
    def files(self) -> int:
        return -(-self.sequences // self.file_sequences)

    @property
    def row_bytes(self) -> dict[str, int]:
        """Bytes a sequence takes in each kind of file, in the order that a checksum covers them."""
        bits = -(-self.length // 8)
        return {"u16": 2 * self.length, "starts": bits, **({"loss": bits} if self.loss else {})}

    def rows(self, file: int) -> int:
        """Sequences in a file."""
        return min(self.file_sequences, self.sequences - file * self.file_sequences)

    def dump(self) -> bytes:
        return (json.dumps(self.model_dump(), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def load(cls, data: bytes, where: str) -> SequencesInfo:
        try:
            info = cls.model_validate_json(data)
        except ValidationError as e:
            raise StoreError(f"{where}: does not describe a sequence store ({e.error_count()} faults: {e})") from e
        if info.version > VERSION:
            raise StoreError(
                f"{where}: sequence store version {info.version}; this Calumma reads up to {VERSION}. Use a newer one."
            )
        return info


def stem(file: int) -> str:
    """The name of a file without its suffix: ``seq-000012``."""
    return f"seq-{file:06d}"


def encode_file(tokens_ST: Tokens, starts_ST: Bits, loss_ST: Bits | None = None) -> dict[str, bytes]:
    """One file of the store as bytes by suffix: ``u16``, ``starts``, ``loss`` where given, ``sums``.

    Beside it belongs ``parquet``: the spans, written by ``write_table(rows, SPANS)``.
    """
    if tokens_ST.dtype != np.uint16 or tokens_ST.ndim != 2 or starts_ST.shape != tokens_ST.shape:
        raise ValueError(f"tokens must be uint16 (S, T) and starts (S, T), got {tokens_ST.dtype} {tokens_ST.shape}")
    if not starts_ST[:, 0].all():
        raise ValueError("a sequence's first token must be marked as a start")
    kinds = {"u16": np.ascontiguousarray(tokens_ST, "<u2").view(np.uint8), "starts": _pack(starts_ST)}
    if loss_ST is not None:
        kinds["loss"] = _pack(loss_ST)
    blocks = range(0, len(tokens_ST), BLOCK)
    sums = b"".join(_checksum([rows[first : first + BLOCK] for rows in kinds.values()]) for first in blocks)
    return {suffix: rows.tobytes() for suffix, rows in kinds.items()} | {"sums": sums}


class SequenceReader:
    """Reads sequences of one folder by number: memory-mapped on a local disk, by ranged reads elsewhere.

    With ``verify`` each block's checksum is checked when the block is first touched; a mismatch is a StoreError that
    names file, block and bytes.
    """

    def __init__(self, store: Storage, folder: str = "", *, verify: bool = True) -> None:
        self._store = store.sub(folder) if folder else store
        self.info = SequencesInfo.load(self._store.get(INFO), self._store.url(INFO))
        self._blocks_a_file = -(-self.info.file_sequences // BLOCK)
        # Virtual memory until touched, so that a reader of billions of sequences starts at once.
        self._seen = np.zeros(self.info.files * self._blocks_a_file, np.bool_) if verify else None
        self._mapped = lru_cache(maxsize=_MAPPED_FILES)(self._map)

    def __len__(self) -> int:
        return self.info.sequences

    def sequence(self, index: int) -> tuple[Tokens, Bits, Bits | None]:
        """One sequence: ids (T,), starts (T,) and loss bits (T,) or None where the store has none."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {self._store.root}, which holds {len(self)}")
        file, row = divmod(index, self.info.file_sequences)
        block = file * self._blocks_a_file + row // BLOCK
        if self._seen is not None and not self._seen[block]:
            self.verify_block(file, row // BLOCK)
            self._seen[block] = True
        tokens_T = self._rows(file, "u16", row, row + 1)[0].view("<u2").astype(np.uint16, copy=False)
        starts_T = _unpack(self._rows(file, "starts", row, row + 1)[0], self.info.length)
        loss_T = _unpack(self._rows(file, "loss", row, row + 1)[0], self.info.length) if self.info.loss else None
        return tokens_T, starts_T, loss_T

    def verify_block(self, file: int, block: int) -> None:
        """Checks one block of 64 sequences against its checksum."""
        first = block * BLOCK
        last = min(first + BLOCK, self.info.rows(file))
        found = _checksum([self._rows(file, suffix, first, last) for suffix in self.info.row_bytes])
        expected = self._bytes(file, "sums", block * SUM_BYTES, (block + 1) * SUM_BYTES).tobytes()
        if found != expected:
            name = self._store.url(stem(file))
            raise StoreError(
                f"{name}: sequences {first} to {last - 1} of this file do not match their checksum "
                f"(expected {expected.hex()}, found {found.hex()}). A byte of .u16, .starts, .loss or .sums changed "
                "after it was written: delete the step's folder and run `mix` again."
            )

    def verify_all(self) -> None:
        """Checks every block; StoreError at the first that is damaged."""
        for file in range(self.info.files):
            for block in range(-(-self.info.rows(file) // BLOCK)):
                self.verify_block(file, block)

    def spans(self, file: int) -> pa.Table:
        """The sidecar of a file, ordered by sequence and offset."""
        name = f"{stem(file)}.parquet"
        return read_table(self._store.get(name), SPANS, self._store.url(name))

    def _rows(self, file: int, suffix: str, first: int, last: int) -> npt.NDArray[np.uint8]:
        size = self.info.row_bytes[suffix]
        return self._bytes(file, suffix, first * size, last * size).reshape(last - first, size)

    def _bytes(self, file: int, suffix: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        name = f"{stem(file)}.{suffix}"
        if self._store.local:
            return self._mapped(file, suffix)[start:stop]
        with self._store.open(name) as f:
            f.seek(start)
            data = f.read(stop - start)
        if len(data) != stop - start:
            raise StoreError(f"{self._store.url(name)}: ends at {start + len(data)}; bytes up to {stop} were expected")
        return np.frombuffer(data, np.uint8)

    def _map(self, file: int, suffix: str) -> npt.NDArray[np.uint8]:
        path = self._store.path(f"{stem(file)}.{suffix}")
        rows = self.info.rows(file)
        size = -(-rows // BLOCK) * SUM_BYTES if suffix == "sums" else rows * self.info.row_bytes[suffix]
        try:
            found = path.stat().st_size
        except FileNotFoundError as e:
            raise StoreError(f"{path}: no such file; the store has {self.info.files} files. Run `mix` again.") from e
        if found != size:
            raise StoreError(f"{path}: {found:,} bytes; {rows} sequences take {size:,}. Run `mix` again.")
        return np.memmap(path, np.uint8, "r")


def _checksum(kinds: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    digest = hashlib.blake2b(digest_size=SUM_BYTES)
    for rows in kinds:
        digest.update(np.ascontiguousarray(rows).data)
    return digest.digest()


def _pack(bits_ST: Bits) -> npt.NDArray[np.uint8]:
    return np.packbits(bits_ST, axis=1, bitorder="little")


def _unpack(row: npt.NDArray[np.uint8], length: int) -> Bits:
    return np.unpackbits(row, count=length, bitorder="little").view(np.bool_)
