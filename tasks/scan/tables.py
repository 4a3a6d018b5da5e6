"""The tables that ``scan`` and ``select`` write, one part a work item."""

from __future__ import annotations

import pyarrow as pa

from infra.store.samples import FACE, SCORE
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
        pa.field("url", pa.string(), nullable=False),  # as the source names it; empty where it names none
        pa.field("faces", pa.list_(FACE), nullable=False),  # where scan.faces is on
    ]
)

SCAN = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        # Of a reader of byte ranges counted from its range's start: tasks.scan.selected.first_row has what to add.
        pa.field("row", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # kept | filtered | quarantined
        pa.field("reason", pa.string(), nullable=False),  # the filter's name or the error's class; empty when kept
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("content", pa.binary(32), nullable=False),  # equal samples, equal hashes; zeros when quarantined
        pa.field("text_bytes", pa.int64(), nullable=False),  # UTF-8 bytes of all captions or segments
        pa.field("images", pa.list_(SCANNED_IMAGE), nullable=False),  # those that stay, in order
        pa.field("dropped", pa.list_(pa.int32()), nullable=False),  # numbers of pictures the document goes without
        pa.field("language", pa.string(), nullable=False),  # ISO 639-1, or und; empty where not asked for
        pa.field("scores", pa.list_(SCORE), nullable=False),
        pa.field("near", pa.list_(pa.uint64()), nullable=False),  # MinHash bands of the text; empty where not asked for
    ],
    metadata={FORMAT_KEY: b"calumma-scan 2"},
)

SELECT = pa.schema(
    [
        pa.field("sample_id", pa.binary(16), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # exact | perceptual | near; empty when kept
    ],
    metadata={FORMAT_KEY: b"calumma-select 2"},
)
