"""The tables that ``scan`` and ``select`` write, one part a work item."""

from __future__ import annotations

import pyarrow as pa

from infra.store.tables import FORMAT_KEY

KEPT = "kept"
FILTERED = "filtered"
QUARANTINED = "quarantined"

SCANNED_IMAGE = pa.struct(
    [
        pa.field("sha256", pa.binary(32), nullable=False),  # of the file's bytes
        pa.field("phash", pa.uint64(), nullable=False),  # 64-bit DCT hash of the upright picture
        pa.field("width", pa.int32(), nullable=False),  # pixels, upright
        pa.field("height", pa.int32(), nullable=False),
    ]
)

SCAN = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # kept | filtered | quarantined
        pa.field("reason", pa.string(), nullable=False),  # the filter's name or the error's class; empty when kept
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("content", pa.binary(32), nullable=False),  # equal samples, equal hashes; zeros when quarantined
        pa.field("text_bytes", pa.int64(), nullable=False),  # UTF-8 bytes of all captions or segments
        pa.field("images", pa.list_(SCANNED_IMAGE), nullable=False),
    ],
    metadata={FORMAT_KEY: b"calumma-scan 1"},
)

SELECT = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # exact | perceptual | removed; empty when kept
    ],
    metadata={FORMAT_KEY: b"calumma-select 1"},
)
