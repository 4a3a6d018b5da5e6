"""The sample store: one Parquet table a part, written by ``encode``. Pictures as codebook indices, texts as read."""

from __future__ import annotations

import pyarrow as pa

from infra.store.tables import FORMAT_KEY

VERSION = 2

FACE = pa.struct([pa.field(name, pa.int32(), nullable=False) for name in ("x", "y", "width", "height")])
"""A face's box in pixels of the upright original, from its upper left corner."""
SCORE = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.float32(), nullable=False)])

IMAGE = pa.struct(
    [
        pa.field("codes", pa.binary(), nullable=False),  # uint16 little-endian codebook indices, raster order
        pa.field("width", pa.int32(), nullable=False),  # of the original, upright
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),  # of the file's bytes
        pa.field("phash", pa.uint64(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("faces", pa.list_(FACE), nullable=False),
    ]
)
SEGMENT = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string()), pa.field("image", pa.int32())])

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("segments", pa.list_(SEGMENT), nullable=False),
        pa.field("images", pa.list_(IMAGE), nullable=False),
        pa.field("dropped_images", pa.int32(), nullable=False),  # pictures that the document goes without
        pa.field("language", pa.string(), nullable=False),
        pa.field("scores", pa.list_(SCORE), nullable=False),
        pa.field("tokens", pa.binary(), nullable=False),  # kind tokens: ids, uint16 little-endian; else empty
    ],
    metadata={FORMAT_KEY: f"calumma-samples {VERSION}".encode()},
)

QUARANTINE = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("error", pa.string(), nullable=False),  # class, in kebab-case
        pa.field("message", pa.string(), nullable=False),
    ],
    metadata={FORMAT_KEY: b"calumma-quarantine 1"},
)
