"""The document store: samples as token ids of one text tokenizer, one Parquet table a part, written by ``tokenize``.

A pair keeps its picture and each caption apart, because caption and order change with the occurrence. Everything else
is one row of finished tokens. Ids are uint16 little-endian in ``binary`` columns (``np.frombuffer(x, '<u2')``).
"""

from __future__ import annotations

import pyarrow as pa

from infra.store.tables import FORMAT_KEY

VERSION = 1

DOCUMENTS = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),  # pairs: BOI codes EOI; else empty
        pa.field("captions", pa.list_(pa.binary()), nullable=False),  # pairs: ids of each caption; else empty
        pa.field("tokens", pa.binary(), nullable=False),  # else: <s> … </s>
        pa.field("loss", pa.binary(), nullable=False),  # messages: a bit a token, little-endian bit order; else empty
        pa.field("lengths", pa.list_(pa.int32()), nullable=False),  # of the document, by caption; else one number
        pa.field("image_tokens", pa.int32(), nullable=False),  # BOI … EOI, of any occurrence
    ],
    metadata={FORMAT_KEY: f"calumma-documents {VERSION}".encode()},
)
