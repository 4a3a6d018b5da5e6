"""What the makers of sources share: which rows there are, what they say and show, and how tables are written."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tasks.sources.config import Kind, SourceConfig

BROKEN = b"this is no picture"
"""The picture of a row of kind ``not-an-image``: read without complaint, and refused when it is decoded."""
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


class Expected(NamedTuple):
    """A row that must be reported: its file, its row, and the class."""

    file: str
    row: int
    error: str


Written = tuple[Kind, str, dict[str, Any], list[Expected]]
"""Kind, path within the folder, options, and what must be reported."""
Made = tuple[SourceConfig, set[Expected]]
Row = tuple[int, str]
"""The number of a good row and "", or a number from -1 down and the kind of a bad one."""


@dataclass(frozen=True)
class Format:
    """How a source of one format is made, and the kinds of bad rows that it can have."""

    write: Callable[[Path, list[Row]], Written]
    """Writes the rows below a folder."""
    type: str
    bad: tuple[str, ...]

    def make(self, folder: Path, good: int, bad: Sequence[str] = (), name: str = "s") -> Made:
        folder.mkdir(parents=True, exist_ok=True)
        kind, path, options, faults = self.write(folder, mixed(good, bad))
        config = SourceConfig(name=name, type=self.type, kind=kind, path=str(folder / path), options=options)
        assert len(faults) == len(bad)
        return config, set(faults)


def mixed(good: int, bad: Sequence[str]) -> list[Row]:
    """Rows in order, the bad ones spread evenly, neither first nor last where there are enough good ones."""
    rows: list[Row] = [(n, "") for n in range(good)]
    for k, kind in reversed(list(enumerate(bad))):
        rows.insert((k + 1) * good // (len(bad) + 1), (-1 - k, kind))
    return rows


def text_of(number: int) -> str:
    return f"This is the text with the number {number}. It says no more than that."


@cache
def picture(number: int) -> bytes:
    """A PNG of 24 by 24 pixels unlike that of any other number from -10,000 up."""
    noise = np.random.default_rng(number + 10_000)
    coarse = noise.integers(0, 256, (4, 4, 3), np.uint8)
    pixels = coarse.repeat(6, 0).repeat(6, 1)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def name_of(number: int) -> str:
    """Also in the order in which rows stand, if the place is given instead of the number."""
    return f"p{number:06d}"


def json_line(fields: Any, bad: str) -> bytes:
    line = json.dumps(fields, ensure_ascii=False).encode()
    if bad == "bad-json":
        return line[:-5]
    if bad == "not-utf-8":
        return line.replace(b"number", b"n\xffmber")
    return json.dumps([fields]).encode() if bad == "no-object" else line


SAME = {"no-object": "bad-json", "unlike-lengths": "bad-structure"}
"""Kinds of bad rows that are not called like the class that they are reported in."""


def faults_of(file: str, rows: list[Row], first: int = 1) -> list[Expected]:
    return [Expected(file, n, SAME.get(bad, bad)) for n, (_, bad) in enumerate(rows, first) if bad]


def write_table(path: Path, columns: dict[str, Any], group: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)


def strings(values: Sequence[str | None], bad: Sequence[str]) -> pa.Array:
    """Texts of which some are not UTF-8, as other programs than Arrow write them."""
    data = [
        b"\xff" + v.encode() if v and b == "not-utf-8" else v and v.encode() for v, b in zip(values, bad, strict=True)
    ]
    found = pa.array(data, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(found), found.buffers(), found.null_count)
