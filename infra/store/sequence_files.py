"""The files of the sequence store: packed tokens without headers, sequence ``i`` at an offset known beforehand.

A folder holds ``sequences`` sequences of ``length`` ids, ``file_sequences`` a file (the last file may be shorter)::

    sequences.json        what the folder holds, written last
    seq-000000.u16        ids, uint16 little-endian; sequence i begins at byte (i mod file_sequences)·length·2
                          of file i div file_sequences
    seq-000000.starts     a bit a token, ceil(length/8) bytes a sequence, least significant bit first: set where a
                          document, a piece of one, or the padding begins; always at a sequence's first token
    seq-000000.loss       the same form, for conversations only: set on tokens that the model is to learn to produce
    seq-000000.sums       8 bytes a block of 64 sequences: XXH3-64 of the block's bytes in .u16, .starts and .loss
    seq-000000.parquet    the spans: which stretch of which document lies where; for inspection and accounts only

With 4,096 ids and 32,768 sequences a file these are DESIGN's 256 MiB files. Nothing is listed to find a sequence.
Shape suffixes: S sequences, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import StoreError
from infra.store.tables import FORMAT_KEY

VERSION = 2
"""1 had blake2b for its checksums, which took longer than everything else in reading a sequence first."""
INFO = "sequences.json"
BLOCK = 64
"""Sequences under one checksum."""
SUM_BYTES = 8

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
    metadata={FORMAT_KEY: b"calumma-spans 2"},
)

Tokens = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.uint8]


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
        if info.version < VERSION:
            raise StoreError(f"{where}: sequence store version {info.version}, of older checksums. Run `mix` again.")
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
    kinds = {"u16": np.ascontiguousarray(tokens_ST, "<u2").view(np.uint8), "starts": pack_bits(starts_ST)}
    if loss_ST is not None:
        kinds["loss"] = pack_bits(loss_ST)
    blocks = range(0, len(tokens_ST), BLOCK)
    sums = b"".join(checksum([rows[first : first + BLOCK] for rows in kinds.values()]) for first in blocks)
    return {suffix: rows.tobytes() for suffix, rows in kinds.items()} | {"sums": sums}


def checksum(kinds: Sequence[Rows]) -> bytes:
    """Of a block: the bytes of its rows in every kind of file, in the order of ``SequencesInfo.row_bytes``."""
    digest = xxhash.xxh3_64()
    for rows in kinds:
        digest.update(np.ascontiguousarray(rows).data)
    return digest.digest()


def pack_bits(bits_ST: Bits) -> Rows:
    """(S, T) bool as (S, ceil(T/8)) uint8, least significant bit first."""
    return np.packbits(bits_ST, axis=1, bitorder="little")


def unpack_bits(rows_BD: Rows, length: int) -> Bits:
    """The reverse of :func:`pack_bits`, (S, length) bool."""
    return np.unpackbits(rows_BD, axis=1, count=length, bitorder="little").view(np.bool_)
