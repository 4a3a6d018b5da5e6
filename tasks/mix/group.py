"""One group of documents in memory: lengths and flags, and which streams each document belongs to.

Shape suffixes: N documents of the group, M numbers in a flat list, K chosen uses of documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PRETRAIN, HELD_OUT, FINETUNE = "pretrain", "held-out", "finetune/"
"""Streams of a source: what pre-training may use, what no training sees; and by category, what fine-tuning may use."""


@dataclass(frozen=True, eq=False)
class Group:
    """Some documents of one source, in part and row order."""

    source: str
    parts: tuple[str, ...]
    part_N: Integers
    row_N: Integers
    held_out_N: Mask
    pretrain_N: Integers
    finetune_N: Integers
    """Both as in the index: 0 where it may be used, else why not."""
    categories: tuple[str, ...]
    category_N: Integers
    pair_N: Mask
    turn_N: Integers
    """h mod n of caption (h + k) mod n."""
    image_first_N: Mask
    captions_N: Integers
    """How many lengths the document has."""
    first_length_N: Integers
    """Where they begin in ``lengths_M``."""
    lengths_M: Integers
    image_tokens_N: Integers
    answer_tokens_N: Integers
    pictures_N: Integers
    """How many pictures of it are known by place: those of long documents that are no pairs."""
    first_picture_N: Integers
    """Where they begin in ``pictures_M``."""
    pictures_M: Integers
    """Each the place of a begin of image in its document."""
    fits_N: Mask
    """A document of one length that is no longer than a sequence."""

    @classmethod
    def of(cls, table: pa.Table, source: str, sequence_length: int) -> Group:
        """The group in a table of schema ``INDEX``."""
        parts_N, parts = _codes(table["part"])
        category_N, categories = _codes(table["category"])
        captions_N, first_N, lengths_M = _lists(table["lengths"])
        pictures_N, place_N, pictures_M = _lists(table["pictures"])
        numbers = {name: _numbers(table[name]) for name in _NUMBERS}
        flags = {name: table[name].to_numpy().astype(np.bool_) for name in ("held_out", "pair", "image_first")}
        return cls(
            source=source,
            parts=parts,
            part_N=parts_N,
            row_N=numbers["row"],
            held_out_N=flags["held_out"],
            pretrain_N=numbers["pretrain"],
            finetune_N=numbers["finetune"],
            categories=categories,
            category_N=category_N,
            pair_N=flags["pair"],
            turn_N=numbers["turn"],
            image_first_N=flags["image_first"],
            captions_N=captions_N,
            first_length_N=first_N,
            lengths_M=lengths_M,
            image_tokens_N=numbers["image_tokens"],
            answer_tokens_N=numbers["answer_tokens"],
            pictures_N=pictures_N,
            first_picture_N=place_N,
            pictures_M=pictures_M,
            fits_N=(captions_N == 1) & (lengths_M[first_N] <= sequence_length) if len(captions_N) else flags["pair"],
        )

    def __len__(self) -> int:
        return len(self.part_N)

    @property
    def messages_N(self) -> Mask:
        """Which are conversations: what has a loss bit somewhere."""
        return self.answer_tokens_N > 0

    def lengths(self, index_K: Integers, occurrence_K: Integers | int) -> Integers:
        """Tokens of the documents at these occurrences."""
        caption_K = (self.turn_N[index_K] + occurrence_K) % self.captions_N[index_K]
        found: Integers = self.lengths_M[self.first_length_N[index_K] + caption_K]
        return found

    def members(self, key: str) -> Integers:
        """The documents of one of the source's streams, in order: ``PRETRAIN``, ``HELD_OUT`` or ``FINETUNE`` with a
        category."""
        if key == PRETRAIN:
            chosen_N = ~self.held_out_N & (self.pretrain_N == 0)
        elif key == HELD_OUT:
            chosen_N = self.held_out_N & (~self.messages_N | self.fits_N)
        else:
            category = key.removeprefix(FINETUNE)
            number = self.categories.index(category) if category in self.categories else -1
            chosen_N = ~self.held_out_N & (self.finetune_N == 0) & (self.category_N == number)
        return np.flatnonzero(chosen_N)

    def totals(self, index_K: Integers) -> dict[str, Any]:
        """Sums over these documents, from which those of every pass follow.

        ``sums`` has for each number of captions n the tokens of the documents with n captions at occurrence 0 … n-1:
        later occurrences repeat them.
        """
        captions_K = self.captions_N[index_K]
        sums = {}
        for n in np.unique(captions_K).tolist():
            own_K = index_K[captions_K == n]
            sums[str(n)] = [int(self.lengths(own_K, k).sum()) for k in range(n)]
        return {
            "documents": len(index_K),
            "image_tokens": int(self.image_tokens_N[index_K].sum()),
            "answer_tokens": int(self.answer_tokens_N[index_K].sum()),
            "sums": sums,
        }


def stream_keys(group: Group) -> list[str]:
    """The streams that have documents in the group."""
    asked_N = ~group.held_out_N & (group.finetune_N == 0)
    categories = np.unique(group.category_N[asked_N]).tolist()
    keys = [PRETRAIN, HELD_OUT, *(FINETUNE + group.categories[c] for c in categories)]
    return [key for key in keys if len(group.members(key))]


def tokens_of_pass(sums: Mapping[str, list[int]], number: int) -> int:
    """Tokens of a pass, by :meth:`Group.totals`' sums."""
    return sum(turns[number % len(turns)] for turns in sums.values())


_NUMBERS = ("row", "pretrain", "finetune", "turn", "image_tokens", "answer_tokens")


def _numbers(column: pa.ChunkedArray) -> Integers:
    found: Integers = column.to_numpy().astype(np.int64)
    return found


def _codes(column: pa.ChunkedArray) -> tuple[Integers, tuple[str, ...]]:
    """A dictionary-encoded column as numbers, (N,), and what they stand for."""
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows, no chunks
        return np.zeros(0, np.int64), ()
    return array.indices.to_numpy(zero_copy_only=False).astype(np.int64), tuple(array.dictionary.to_pylist())


def _lists(column: pa.ChunkedArray) -> tuple[Integers, Integers, Integers]:
    """A column of lists: lengths (N,), where each begins (N,), and all their numbers (M,)."""
    array = column.combine_chunks()
    counts_N = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    flat_M = array.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return counts_N, np.cumsum(counts_N) - counts_N, flat_M
