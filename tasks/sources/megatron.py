"""Documents that are tokens already, in Megatron's indexed data sets (``.bin`` with its ``.idx``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infra.errors import StoreError
from tasks.exchange.megatron import BadIndex, Index
from tasks.sources.base import BadRow, RawSample, WorkItem
from tasks.sources.files import MAX_FILE_BYTES, UnusableRow, ends_in
from tasks.sources.listed import ListedSource
from tasks.sources.tokens import documents_in, ids_of_numbers

READ_DOCUMENTS = 1024


class MegatronTokens(ListedSource):
    """The documents of the data sets below ``path``; one that holds packed sequences is cut into their documents."""

    format = "megatron 1"
    suffixes = (".idx", ".bin")

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        storage, wanted = self.root().storage, ends_in(".idx")
        for file in self.files():
            if not wanted(file.name):
                continue
            try:
                count = Index.of(storage, file.name, file.size).documents
            except BadIndex:
                count = 1  # reading it says what is wrong
            for start in range(0, count, target):
                yield {"file": file.name, "first": start, "stop": min(start + target, count), "bytes": file.size}

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        storage = self.root().storage
        file, start, stop = (item.locator[name] for name in ("file", "first", "stop"))
        tokens = file[: -len(".idx")] + ".bin"
        row = start
        try:
            index, end = Index.of(storage, file, item.locator["bytes"]), storage.size(tokens)
            while row < stop:
                last = min(row + READ_DOCUMENTS, stop)
                for stretches in index.documents_of(row, last):
                    row += 1
                    if any(b > end for _, b in stretches):
                        yield BadRow(file, row, "damaged-file", f"{tokens} ends before this document does")
                        continue
                    if sum(b - a for a, b in stretches) > MAX_FILE_BYTES:
                        yield BadRow(file, row, "too-large", f"a document of more than {MAX_FILE_BYTES:,} bytes")
                        continue
                    data = b"".join(storage.range(tokens, a, b) for a, b in _joined(stretches))
                    try:
                        ids = ids_of_numbers(np.frombuffer(data, index.dtype))
                    except UnusableRow as e:
                        yield BadRow(file, row, e.error, e.message)
                        continue
                    yield from documents_in(ids, file, row)
        except BadIndex as e:
            yield BadRow(file, row + 1, "damaged-file", str(e))
        except StoreError as e:
            if storage.exists(tokens):
                raise
            yield BadRow(file, row + 1, "damaged-file", f"there is no {tokens} ({e})")


def _joined(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of bytes, those that touch as one."""
    found: list[tuple[int, int]] = []
    for a, b in stretches:
        if found and found[-1][1] == a:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return found
