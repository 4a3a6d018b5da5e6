"""What planning and packing know of the document store: lengths and flags; and its ids, where those are needed.

Shape suffixes: N documents of the table, M numbers in the flat list of lengths, K chosen uses of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.storage import Storage
from infra.store.commit import load_part
from infra.store.documents import DOCUMENTS
from infra.store.tables import read_table
from tasks.documents.captions import draw, realise
from tasks.documents.ids import Ids, unpack_bits

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_COLUMNS = ["sample_id", "kind", "category", "held_out", "loss", "lengths", "image_tokens"]
_PARTS = 16
"""Parts of the document store that a reader keeps in memory."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Every document of the store as columns, in part and row order."""

    parts: tuple[str, ...]
    part_sources: tuple[str, ...]
    """The source of each part."""
    part_N: Integers
    row_N: Integers
    held_out_N: Mask
    pair_N: Mask
    category_N: npt.NDArray[np.str_]
    first_caption_N: Integers
    """h of caption (h + k) mod n."""
    captions_N: Integers
    """How many lengths the document has."""
    first_length_N: Integers
    """Where they begin in ``lengths_M``."""
    lengths_M: Integers
    image_tokens_N: Integers
    answer_tokens_N: Integers
    """Tokens with a loss bit; 0 for what is not a conversation."""

    def __len__(self) -> int:
        return len(self.part_N)

    @property
    def source_N(self) -> npt.NDArray[np.str_]:
        return np.array(self.part_sources, np.str_)[self.part_N] if self.parts else np.zeros(0, np.str_)

    def lengths(self, index_K: Integers, occurrence_K: Integers) -> Integers:
        """Tokens of the documents at these occurrences."""
        caption_K = (self.first_caption_N[index_K] + occurrence_K) % self.captions_N[index_K]
        found: Integers = self.lengths_M[self.first_length_N[index_K] + caption_K]
        return found

    def answer_tokens(self, index_K: Integers, occurrence_K: Integers) -> Integers:
        """Tokens with a loss bit; the same at every occurrence."""
        found: Integers = self.answer_tokens_N[index_K]
        return found


def load_documents(store: Storage, parts: Sequence[str], seed: int) -> Documents:
    """Reads the parts' lengths and flags from a tokenize step's folder."""
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("part", "row", "held", "pair", "category")}
    columns |= {name: [] for name in ("first", "captions", "lengths", "image", "answer")}
    for number, part in enumerate(parts):
        name = f"parts/{part}.parquet"
        table = read_table(store.get(name), DOCUMENTS, store.url(name), _COLUMNS).combine_chunks()
        pair = table["kind"].to_numpy() == "pairs"
        lengths = table["lengths"].combine_chunks()
        first = [draw(i, seed)[0] if p else 0 for i, p in zip(table["sample_id"].to_pylist(), pair, strict=True)]
        answer = [int.from_bytes(bits).bit_count() for bits in table["loss"].to_pylist()]
        columns["part"].append(np.full(table.num_rows, number, np.int64))
        columns["row"].append(np.arange(table.num_rows))
        columns["held"].append(np.array(table["held_out"].to_pylist(), np.bool_))
        columns["pair"].append(pair.astype(np.bool_))
        columns["category"].append(np.array(table["category"].to_pylist(), np.str_))
        columns["first"].append(np.array(first, np.int64))
        columns["captions"].append(lengths.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
        columns["lengths"].append(lengths.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
        columns["image"].append(table["image_tokens"].to_numpy().astype(np.int64))
        columns["answer"].append(np.array(answer, np.int64))
    types: dict[str, Any] = {"held": np.bool_, "pair": np.bool_, "category": np.str_}
    whole = {k: np.concatenate(v) if v else np.zeros(0, types.get(k, np.int64)) for k, v in columns.items()}
    return Documents(
        parts=tuple(parts),
        part_sources=tuple(load_part(store, part).source for part in parts),
        part_N=whole["part"],
        row_N=whole["row"],
        held_out_N=whole["held"],
        pair_N=whole["pair"],
        category_N=whole["category"],
        first_caption_N=whole["first"],
        captions_N=whole["captions"],
        first_length_N=np.cumsum(whole["captions"]) - whole["captions"],
        lengths_M=whole["lengths"],
        image_tokens_N=whole["image"],
        answer_tokens_N=whole["answer"],
    )


class DocumentReader:
    """The ids of documents by part, row and occurrence."""

    def __init__(self, store: Storage, seed: int) -> None:
        self._store, self._seed = store, seed
        self._part = lru_cache(maxsize=_PARTS)(self._load)

    def ids(self, part: str, row: int, occurrence: int) -> Ids:
        """All ids of the document at this occurrence, (n,) uint16."""
        return realise(self._part(part)[row], occurrence, self._seed)

    def loss(self, part: str, row: int) -> Mask:
        """A conversation's loss bits, (n,) bool."""
        found = self._part(part)[row]
        return unpack_bits(found["loss"], found["lengths"][0])

    def _load(self, part: str) -> list[dict[str, Any]]:
        name = f"parts/{part}.parquet"
        rows: list[dict[str, Any]] = read_table(self._store.get(name), DOCUMENTS, self._store.url(name)).to_pylist()
        return rows
