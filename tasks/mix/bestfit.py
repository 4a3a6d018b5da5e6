"""Best-fit decreasing: the longest document first, each into the fullest sequence that still has room for it.

Sequences with equal room are alike, and so are documents of equal length: what is placed at a time is a run of equal
documents into a range of equal sequences. The work grows with the number of different lengths, not with that of
documents. Which rooms occur is one integer's bits, so that the smallest sufficient one is found by a shift.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def best_fit(lengths_N: Integers, capacity: int) -> tuple[Integers, Integers, int]:
    """Sequence and offset of each length, (N,) each, and the number of sequences.

    Every length must be from 1 to ``capacity``. Sequences are numbered as they are opened; of equal lengths the first
    comes first.
    """
    if len(lengths_N) and not 1 <= int(lengths_N.min()) <= int(lengths_N.max()) <= capacity:
        raise ValueError(f"lengths from {lengths_N.min()} to {lengths_N.max()} for a capacity of {capacity}")
    # A stable sort of small integers is a radix sort: several times faster than one of int64.
    small = np.uint16 if capacity < 1 << 16 else np.int64
    order_N = np.argsort((capacity - lengths_N).astype(small), kind="stable")
    sorted_N = lengths_N[order_N]
    borders = [*np.flatnonzero(np.diff(sorted_N, prepend=0)).tolist(), len(sorted_N)]
    placed, opened = _place([(int(sorted_N[a]), b - a) for a, b in pairwise(borders)], capacity)
    first_E, each_E, count_E, begin_E, length_E = np.array(placed, np.int64).reshape(-1, 5).T
    within_N = np.arange(len(order_N)) - np.repeat(np.cumsum(count_E) - count_E, count_E)
    each_N = np.repeat(each_E, count_E)
    sequence_N, offset_N = np.empty(len(order_N), np.int64), np.empty(len(order_N), np.int64)
    sequence_N[order_N] = np.repeat(first_E, count_E) + within_N // each_N
    offset_N[order_N] = np.repeat(begin_E, count_E) + within_N % each_N * np.repeat(length_E, count_E)
    return sequence_N, offset_N, opened


def _place(runs: list[tuple[int, int]], capacity: int) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """Places runs of equal lengths, (length, count) from the longest down, and counts the sequences.

    Each placement is: into sequences from ``first`` on, ``each`` of them to a sequence, ``count`` in all, from offset
    ``begin`` on, of this ``length``.
    """
    by_room: list[list[tuple[int, int]]] = [[] for _ in range(capacity + 1)]
    """Ranges of sequences, (first, number), by the room they have left."""
    rooms, opened = 0, 0
    placed: list[tuple[int, int, int, int, int]] = []
    for length, left in runs:
        while left:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                first, number = by_room[room].pop()
            else:
                room, first, number = capacity, opened, -(-left // (capacity // length))
                opened += number
            each = room // length
            whole, rest = min(number, left // each), 0
            if whole:
                placed.append((first, each, whole * each, capacity - room, length))
                left -= whole * each
            if left and whole < number:  # the run ends in the middle of a sequence
                rest, left = left, 0
                placed.append((first + whole, rest, rest, capacity - room, length))
            used = whole + bool(rest)
            if used < number:
                by_room[room].append((first + used, number - used))
            elif fitting and not by_room[room]:
                rooms ^= 1 << room
            for filled, start, how_many in ((each, first, whole), (rest, first + whole, bool(rest))):
                if how_many and (still := room - filled * length):
                    by_room[still].append((start, how_many))
                    rooms |= 1 << still
    return placed, opened
