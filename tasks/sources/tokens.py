"""Documents that are tokens already: ids of the recipe's vocabulary, in Parquet or JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.config import Config
from model.vocabulary import BOS, EOS, PAD
from tasks.sources import parquet
from tasks.sources.base import BadRow, EndOfRange, RawSample, WorkItem
from tasks.sources.files import UnusableRow, ends_in, field, optional_text
from tasks.sources.jsonl import JSONL
from tasks.sources.lines import JsonRow, json_rows, line_items
from tasks.sources.listed import ListedSource

_LARGEST = 0xFFFF
_BLOCK = 1 << 20


class TokensOptions(Config):
    """Options of type ``tokens``."""

    tokens: str = "tokens"
    """Field or column with a document's ids: a list of integers, or in Parquet uint16 little-endian as bytes."""
    licence: str | None = "licence"
    """Field or column with the document's licence, where it has one."""


class TokenFiles(ListedSource):
    """Token documents of the Parquet and JSONL files below ``path``.

    A ``<s>`` at the start and a ``</s>`` at the end are taken off. Whether pictures are whole and every id is in the
    recipe's vocabulary is seen when the document store is built (:func:`tasks.documents.ids.token_fault`).
    """

    format = "tokens 1"
    suffixes = (parquet.SUFFIX, *JSONL)

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        storage, lines, tables = self.root().storage, ends_in(*JSONL), ends_in(parquet.SUFFIX)
        return chain(
            line_items(storage, (f for f in self.files() if lines(f.name)), target),
            parquet.slices(storage, (f for f in self.files() if tables(f.name)), target),
        )

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        storage, file = self.root().storage, item.locator["file"]
        if "slice" in item.locator:
            columns = [c for c in (self._options.tokens, self._options.licence) if c is not None]
            for row in parquet.rows(storage, item.locator, columns):
                yield row if isinstance(row, BadRow) else self._sample(file, row[0], f"{file}#{row[0]}", row[1])
            return
        for found in json_rows(storage, item.locator):
            yield self._sample(file, *found) if isinstance(found, JsonRow) else found

    @cached_property
    def _options(self) -> TokensOptions:
        return self.options(TokensOptions)

    def _sample(self, file: str, row: int, key: str, content: dict[str, Any]) -> RawSample | BadRow:
        try:
            tokens = ids_of(field(content, self._options.tokens))
        except UnusableRow as e:
            return BadRow(file, row, e.error, e.message)
        licence = optional_text(content, self._options.licence)
        return RawSample(key, file, row, tokens=tokens, licence=licence)


def ids_of_numbers(numbers_N: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Integers of any type as ids, (N,) uint16; UnusableRow ``bad-tokens`` where one does not fit."""
    if numbers_N.size and (int(numbers_N.min()) < 0 or int(numbers_N.max()) > _LARGEST):
        low, high = numbers_N.min(), numbers_N.max()
        raise UnusableRow("bad-tokens", f"ids from {low} to {high}; expected 0 to {_LARGEST}")
    return numbers_N.astype(np.uint16)


def documents_in(ids_N: npt.NDArray[np.uint16], file: str, row: int) -> Iterator[RawSample]:
    """The documents of a row: what other trainers store may be a packed sequence.

    It is cut before every ``<s>`` and behind every ``</s>``, and padding is left out. What is left without ids is no
    document; the row itself is one where nothing else is. Keys are ``FILE#ROW``, from the second document on with
    ``.1``, ``.2`` and so on.
    """
    ids_N = ids_N[ids_N != PAD]
    edges = _edges((ids_N != BOS) & (ids_N != EOS))
    number = -1
    # Of every two edges the first begins a document and the second ends it.
    for number, (begin, end) in enumerate(zip(edges, edges, strict=True)):
        tokens = ids_N[begin:end].astype("<u2").tobytes()
        yield RawSample(f"{file}#{row}" + (f".{number}" if number else ""), file, row, tokens=tokens)
    if number < 0:
        yield RawSample(f"{file}#{row}", file, row, tokens=b"")


def _edges(kept_N: npt.NDArray[np.bool_]) -> Iterator[int]:
    """Where stretches of True begin and end, in turn; found bit by bit, since a row may be nothing but marks."""
    bounded_N = np.concatenate([[False], kept_N, [False]])
    for start in range(0, len(kept_N) + 1, _BLOCK):
        block_N = bounded_N[start : start + _BLOCK + 1]
        yield from (np.flatnonzero(block_N[1:] != block_N[:-1]) + start).tolist()


def ids_of(value: Any) -> bytes:
    """Ids as uint16 little-endian, without ``<s>`` and ``</s>`` around them.

    ``value`` is a list of integers, or such bytes; UnusableRow ``bad-tokens`` where it is neither.
    """
    if isinstance(value, bytes):
        if len(value) % 2:
            raise UnusableRow("bad-tokens", f"{len(value)} bytes are no whole number of uint16")
        ids_N = np.frombuffer(value, "<u2")
    elif isinstance(value, list):
        if not all(type(v) is int and 0 <= v <= _LARGEST for v in value):
            raise UnusableRow("bad-tokens", f"not all of its {len(value)} ids are integers from 0 to {_LARGEST}")
        ids_N = np.array(value, "<u2")
    else:
        raise UnusableRow("bad-tokens", f"ids are {type(value).__name__}; expected a list of integers or bytes")
    start = int(len(ids_N) > 0 and ids_N[0] == BOS)
    stop = len(ids_N) - int(len(ids_N) > start and ids_N[-1] == EOS)
    return ids_N[start:stop].tobytes()
