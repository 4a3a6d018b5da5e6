"""Documents that are tokens already, in MosaicML Streaming's shards (``.mds``, not compressed)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from infra.config import Config
from tasks.exchange.mds import BadShard, Shard, integers
from tasks.sources.base import BadRow, RawSample, WorkItem
from tasks.sources.files import MAX_FILE_BYTES, UnusableRow
from tasks.sources.listed import ListedSource
from tasks.sources.tokens import documents_in, ids_of_numbers

READ_BYTES = 1 << 25
"""Samples read at once, in bytes."""
HEADS = 8
"""Shards that are tried for one that says how long its samples are; if none does, every shard is one slice."""


class MdsOptions(Config):
    """Options of type ``mds``."""

    tokens: str = "tokens"
    """Column with the ids: an array of integers, or bytes that hold them."""
    dtype: Literal["uint16", "int32", "uint32", "int64", "uint64"] = "uint16"
    """Of ids in a column of bytes."""


class MdsTokens(ListedSource):
    """The samples of the shards below ``path``, cut into documents (:func:`tasks.sources.tokens.documents_in`)."""

    format = "mds 1"
    suffixes = (".mds",)

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        storage, samples_a_byte, tries = self.root().storage, 0.0, HEADS
        for file in self.files():
            if not samples_a_byte and tries:
                tries -= 1
                with suppress(BadShard):
                    samples_a_byte = (len(Shard.of(storage, file.name, file.size).offsets) - 1) / max(1, file.size)
            count = max(1, math.ceil(file.size * samples_a_byte / target))
            for k in range(count):
                yield {"file": file.name, "slice": k, "of": count, "bytes": file.size}

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        storage, options = self.root().storage, self.options(MdsOptions)
        file, k, of = (item.locator[name] for name in ("file", "slice", "of"))
        try:
            shard = Shard.of(storage, file, item.locator["bytes"])
        except BadShard as e:
            yield BadRow(file, k + 1, "damaged-file", str(e))
            return
        total, offsets = len(shard.offsets) - 1, shard.offsets
        row, stop = k * total // of, (k + 1) * total // of
        while row < stop:
            if (size := int(offsets[row + 1] - offsets[row])) > MAX_FILE_BYTES:
                yield BadRow(file, row + 1, "too-large", f"{size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
                row += 1
                continue
            end = max(row + 1, int(np.searchsorted(offsets[: stop + 1], offsets[row] + READ_BYTES, side="right")) - 1)
            data = storage.range(file, int(offsets[row]), int(offsets[end]))
            for n in range(row, end):
                sample = data[offsets[n] - offsets[row] : offsets[n + 1] - offsets[row]]
                try:
                    ids = ids_of_numbers(integers(*shard.column(sample, options.tokens), options.dtype))
                except (BadShard, UnusableRow) as e:
                    error = e.error if isinstance(e, UnusableRow) else "bad-tokens"
                    yield BadRow(file, n + 1, error, e.message if isinstance(e, UnusableRow) else str(e))
                    continue
                yield from documents_in(ids, file, n + 1)
            row = end
