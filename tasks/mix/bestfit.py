"""Best-fit decreasing: the longest document first, each into the fullest sequence that still has room for it.

Sequences are kept by the room they have left, and which rooms occur is one integer's bits, so that the smallest
sufficient room is found by a shift. Documents of one length are placed together, several into a sequence at once, which
is what best fit does with them one by one: a sequence just used is the fullest.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def best_fit(lengths_N: Integers, capacity: int) -> tuple[Integers, Integers, int]:
    """Sequence and offset of each length, (N,) each, and the number of sequences.

    Every length must be from 1 to ``capacity``. Sequences are numbered as they are opened.
    """
    if len(lengths_N) and not 1 <= int(lengths_N.min()) <= int(lengths_N.max()) <= capacity:
        raise ValueError(f"lengths from {lengths_N.min()} to {lengths_N.max()} for a capacity of {capacity}")
    order_N = np.argsort(-lengths_N, kind="stable")
    sorted_N = lengths_N[order_N]
    borders = [*np.flatnonzero(np.diff(sorted_N, prepend=0)).tolist(), len(sorted_N)]
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms, opened = 0, 0
    sequences, offsets = [0] * len(sorted_N), [0] * len(sorted_N)
    for at, stop in pairwise(borders):
        length = int(sorted_N[at])
        while at < stop:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                sequence = by_room[room].pop()
                if not by_room[room]:
                    rooms ^= 1 << room
            else:
                room, sequence = capacity, opened
                opened += 1
            count = min(room // length, stop - at)
            begin = capacity - room
            sequences[at : at + count] = [sequence] * count
            offsets[at : at + count] = range(begin, begin + count * length, length)
            at += count
            room -= count * length
            if room:
                by_room[room].append(sequence)
                rooms |= 1 << room
    sequence_N, offset_N = np.empty(len(order_N), np.int64), np.empty(len(order_N), np.int64)
    sequence_N[order_N], offset_N[order_N] = sequences, offsets
    return sequence_N, offset_N, opened
