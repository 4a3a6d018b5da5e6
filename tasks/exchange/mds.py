"""MosaicML Streaming's format MDS: writing and reading its shards, without its package.

A shard ``shard.00000.mds`` is the number of samples n (uint32), n + 1 byte offsets (uint32), a JSON text that names and
types the columns, and the samples; a sample is the sizes (uint32) of its columns of no fixed size and then the columns'
bytes, in order of their names. ``index.json`` lists the shards. From the documentation of mosaicml-streaming 0.13
(Apache-2.0), https://docs.mosaicml.com/projects/streaming; all numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.storage import Storage

SHARD_BYTES = 1 << 26
HEAD_BYTES = 1 << 20
"""Of the text that names and types the columns, at most."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_DYNAMIC = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}
"""How an array of no fixed type begins: the bits of its type, one more where it has a sign."""


class BadShard(Exception):
    """The bytes are not a shard of this format, or a column is not what is looked for; the message says what."""


class MdsWriter:
    """Writes samples of fixed columns to a folder; ``finish`` writes the index, without which there is no data set."""

    def __init__(self, store: Storage, columns: Mapping[str, str], shard_bytes: int = SHARD_BYTES) -> None:
        """``columns``: encodings by name: ``str``, ``int32``, ``int64`` or ``ndarray:DTYPE``, also with ``:LENGTH``."""
        self._store, self._limit = store, shard_bytes
        self._columns = dict(sorted(columns.items()))
        self._sizes = [_size(encoding) for encoding in self._columns.values()]
        self._about: dict[str, Any] = {
            "column_encodings": list(self._columns.values()),
            "column_names": list(self._columns),
            "column_sizes": self._sizes,
            "compression": None,
            "format": "mds",
            "hashes": ["sha1"],
            "size_limit": shard_bytes,
            "version": 2,
        }
        self._head = json.dumps(self._about, sort_keys=True).encode()
        self._samples: list[bytes] = []
        self._bytes = 0
        self._shards: list[dict[str, Any]] = []

    def write(self, sample: Mapping[str, Any]) -> None:
        """One sample with a value for each column; what lies beyond a shard's limit begins the next."""
        data = [_encode(encoding, sample[name]) for name, encoding in self._columns.items()]
        sizes = [len(d) for d, fixed in zip(data, self._sizes, strict=True) if fixed is None]
        encoded = np.array(sizes, "<u4").tobytes() + b"".join(data)
        if self._samples and 8 + len(self._head) + self._bytes + len(encoded) + 4 > self._limit:
            self._flush()
        self._samples.append(encoded)
        self._bytes += len(encoded) + 4

    def finish(self) -> None:
        """Writes the last shard and the index."""
        if self._samples:
            self._flush()
        index = {"shards": self._shards, "version": 2}
        self._store.put("index.json", json.dumps(index, sort_keys=True).encode())

    def _flush(self) -> None:
        offsets = np.cumsum([0, *map(len, self._samples)]) + 4 + 4 * (len(self._samples) + 1) + len(self._head)
        data = b"".join(
            [np.uint32(len(self._samples)).tobytes(), offsets.astype("<u4").tobytes(), self._head, *self._samples]
        )
        name = f"shard.{len(self._shards):05d}.mds"
        self._store.put(name, data)
        raw = {"basename": name, "bytes": len(data), "hashes": {"sha1": hashlib.sha1(data).hexdigest()}}
        self._shards.append({**self._about, "raw_data": raw, "samples": len(self._samples), "zip_data": None})
        self._samples, self._bytes = [], 0


@dataclass(frozen=True, slots=True)
class Shard:
    """What the head of a shard says."""

    columns: dict[str, tuple[str, int | None]]
    """Encoding and fixed size by name, in order."""
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, store: Storage, name: str, size: int) -> Shard:
        """Reads a shard's head; BadShard where it has none. ``size`` is that of the file."""
        count = int.from_bytes(_exactly(store, name, 0, 4), "little")
        if 4 * (count + 2) > size:
            raise BadShard(f"it claims {count:,} samples in {size:,} bytes")
        offsets = np.frombuffer(_exactly(store, name, 4, 8 + 4 * count), "<u4").astype(np.int64)
        begin = 8 + 4 * count
        if offsets[0] < begin or (np.diff(offsets) < 0).any() or offsets[-1] > size:
            raise BadShard("its offsets are out of order or beyond its end")
        if offsets[0] - begin > HEAD_BYTES:
            raise BadShard(f"it describes its columns in {offsets[0] - begin:,} bytes; at most {HEAD_BYTES:,} are read")
        try:
            about = json.loads(_exactly(store, name, begin, int(offsets[0])))
            names, encodings, sizes = (about[f"column_{what}"] for what in ("names", "encodings", "sizes"))
            columns = {str(n): (str(e), s) for n, e, s in zip(names, encodings, sizes, strict=True)}
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise BadShard(f"it does not say what its columns are ({e})") from e
        if not all(s is None or (type(s) is int and s >= 0) for _, s in columns.values()):
            raise BadShard("a column's size is no number")
        return cls(columns, offsets)

    def column(self, sample: bytes, wanted: str) -> tuple[str, bytes]:
        """A column's encoding and bytes in a sample."""
        if wanted not in self.columns:
            raise BadShard(f"no column {wanted!r}; there are {', '.join(self.columns)}")
        open_ends = sum(not size for _, size in self.columns.values())
        if len(sample) < 4 * open_ends:
            raise BadShard(f"a sample of {len(sample)} bytes is shorter than the sizes of its columns")
        sizes = iter(np.frombuffer(sample[: 4 * open_ends], "<u4").tolist())
        at = 4 * open_ends
        try:
            for name, (encoding, fixed) in self.columns.items():
                length = fixed or next(sizes)
                if name == wanted and at + length <= len(sample):
                    return encoding, sample[at : at + length]
                at += length
        except StopIteration:
            pass
        raise BadShard("a sample is shorter than its columns")


def integers(encoding: str, data: bytes, of_bytes: str) -> npt.NDArray[Any]:
    """The integers in a column: an array of one dimension, or bytes that hold such numbers of type ``of_bytes``."""
    kind, _, rest = encoding.partition(":")
    if kind not in ("ndarray", "bytes"):
        raise BadShard(f"a column of type {encoding}; expected ndarray or bytes")
    dtype, _, shape = rest.partition(":")
    at = 0
    if kind == "bytes":
        dtype = of_bytes
    else:
        if not dtype:
            dtype, at = _DYNAMIC.get(data[0] if data else 0, "of floats"), 1
        if not shape:
            # The number of dimensions and the type of the shape share a byte.
            about = data[at] if len(data) > at else 0
            if about >> 2 != 1:
                raise BadShard(f"an array of {about >> 2} dimensions; expected 1")
            at += 1 + (1 << (about & 3))
    if dtype not in DTYPES:
        raise BadShard(f"numbers {dtype}; expected one of {', '.join(DTYPES)}")
    if (len(data) - at) % np.dtype(dtype).itemsize:
        raise BadShard(f"{len(data) - at} bytes are no whole number of {dtype}")
    return np.frombuffer(data[at:], np.dtype(dtype).newbyteorder("<"))


def _encode(encoding: str, value: Any) -> bytes:
    kind, _, rest = encoding.partition(":")
    if kind == "str":
        return str(value).encode()
    if kind != "ndarray":
        return np.array(value, np.dtype(kind).newbyteorder("<")).tobytes()
    dtype, _, shape = rest.partition(":")
    data = np.ascontiguousarray(value, np.dtype(dtype).newbyteorder("<"))
    if shape:
        return data.tobytes()
    width = next(w for w in range(4) if len(data) < 1 << (8 << w))
    return bytes([1 << 2 | width]) + len(data).to_bytes(1 << width, "little") + data.tobytes()


def _size(encoding: str) -> int | None:
    kind, _, rest = encoding.partition(":")
    dtype, _, shape = rest.partition(":")
    if kind == "ndarray":
        return np.dtype(dtype).itemsize * int(shape) if shape else None
    return None if kind == "str" else np.dtype(kind).itemsize


def _exactly(store: Storage, name: str, start: int, stop: int) -> bytes:
    data = store.range(name, start, stop)
    if len(data) != stop - start:
        raise BadShard(f"it ends at byte {start + len(data):,}; {stop:,} were expected")
    return data
