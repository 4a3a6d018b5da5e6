"""Documents to pieces of at most a sequence: what fits stays whole, and no picture is cut.

A document longer than a sequence is cut between or inside its texts. Where its pictures lie is known without its ids: a
pair's follows from its length and order, others' places are in the index.

Shape suffixes: K uses of documents, P pieces of them, M numbers in a flat list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from tasks.mix.group import Group, Integers


@dataclass(frozen=True, eq=False)
class Uses:
    """Documents in the order in which they are packed, (K,) each."""

    source_K: Integers
    part_K: Integers
    row_K: Integers
    occurrence_K: Integers
    length_K: Integers
    image_K: Integers
    pictures_K: Integers
    """Pictures whose places are known, of documents longer than a sequence."""
    first_picture_K: Integers
    """Where they begin in the list of all pictures' places."""

    def __getitem__(self, chosen_K: Integers) -> Uses:
        return Uses(*(getattr(self, f.name)[chosen_K] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.length_K)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Stretches of documents, (P,) each."""

    use_P: Integers
    """Number of the document among those packed together."""
    first_P: Integers
    """First token of the document in the piece."""
    length_P: Integers
    image_P: Integers
    """Image tokens in the piece."""


def places(
    group: Group, index_K: Integers, occurrence_K: Integers, length_K: Integers, capacity: int
) -> tuple[Integers, Integers, Integers]:
    """Pictures of the documents longer than ``capacity``: how many, where they begin in the list, and the list.

    A pair's only picture is its second token, or ends before its last one.
    """
    pair_K = (length_K > capacity) & group.pair_N[index_K]
    first_K = group.image_first_N[index_K] ^ (occurrence_K % 2 == 1)
    place_K = np.where(first_K, 1, length_K - 1 - group.image_tokens_N[index_K])
    count_K = np.where(pair_K, 1, group.pictures_N[index_K])
    begin_K = np.where(pair_K, len(group.pictures_M) + np.cumsum(pair_K) - 1, group.first_picture_N[index_K])
    return count_K, begin_K, np.concatenate([group.pictures_M, place_K[pair_K]])


def cut_all(uses: Uses, pictures_M: Integers, capacity: int) -> Pieces:
    """Pieces of at most ``capacity`` tokens: one of each document that fits, several of each that does not."""
    plain_K = (uses.length_K <= capacity) | (uses.pictures_K == 0)
    number_K = np.flatnonzero(plain_K)
    count_K = -(-uses.length_K[number_K] // capacity)
    use_P = np.repeat(number_K, count_K)
    first_P = capacity * (np.arange(len(use_P)) - np.repeat(np.cumsum(count_K) - count_K, count_K))
    length_P = np.minimum(uses.length_K[use_P] - first_P, capacity)
    rows = [
        (use, first, stop - first, image)
        for use in np.flatnonzero(~plain_K).tolist()
        for first, stop, image in cuts(*_pictured(uses, use, pictures_M), capacity)
    ]
    pictured = np.array(rows, np.int64).reshape(-1, 4).T
    plain = (use_P, first_P, length_P, uses.image_K[use_P])
    return Pieces(*(np.concatenate([a, b]) for a, b in zip(plain, pictured, strict=True)))


def _pictured(uses: Uses, use: int, pictures_M: Integers) -> tuple[int, list[int], int]:
    count, first = int(uses.pictures_K[use]), int(uses.first_picture_K[use])
    begins = pictures_M[first : first + count].tolist()
    return int(uses.length_K[use]), begins, int(uses.image_K[use]) // count


def cuts(length: int, begins: list[int], size: int, capacity: int) -> Iterator[tuple[int, int, int]]:
    """First token, stop and image tokens of each piece of a document whose pictures of ``size`` tokens begin there.

    Pieces are as long as possible, and no picture is in two of them. ``size`` must not be above ``capacity``.
    """
    at = number = 0
    while at < length:
        stop = min(at + capacity, length)
        before = number
        while number < len(begins) and begins[number] + size <= stop:
            number += 1
        if number < len(begins) and begins[number] < stop:
            stop = begins[number]
        yield at, stop, (number - before) * size
        at = stop
