"""What best fit leaves empty, filled with text of documents that are cut anyway.

Three pairs fill three quarters of a sequence, and there may be too few short documents for the rest of it. A text
longer than a sequence has to be cut somewhere: some of its whole-sequence pieces are cut smaller, to the size of the
rooms that are left. A piece that holds a part of a picture, or a document that fits, is never cut.

Shape suffixes: P pieces, R rooms, B pieces that are cut smaller, Q what they become.
"""

from __future__ import annotations

import numpy as np

from tasks.mix.cut import Pieces
from tasks.mix.group import Integers

MIN_ROOM = 64
"""Smaller rooms stay empty: so few tokens without what went before them teach little."""


def fill_rooms(
    pieces: Pieces, length_K: Integers, sequence_P: Integers, offset_P: Integers, sequences: int, capacity: int
) -> tuple[Pieces, Integers, Integers, int]:
    """The pieces with some cut smaller, their sequences and offsets, and how many sequences are left.

    As many whole-sequence pieces of text as the rooms can take are spread over the largest rooms.

    Args:
        pieces: As best fit took them, P of them.
        length_K: Tokens of the documents that they are pieces of; one that just fits a sequence stays whole.
        sequence_P: Where best fit put each; of ``sequences`` sequences.
        offset_P: Of each piece's first token in its sequence.
        sequences: How many best fit opened.
        capacity: Tokens of a sequence.
    """
    room_S = capacity - np.bincount(sequence_P, pieces.length_P, sequences).astype(np.int64)
    room_R = np.flatnonzero(room_S >= MIN_ROOM)
    room_R = room_R[np.argsort(-room_S[room_R], kind="stable")]
    end_R = np.cumsum(room_S[room_R])
    whole_B = np.flatnonzero(
        (pieces.length_P == capacity) & (pieces.image_P == 0) & (length_K[pieces.use_P] > capacity)
    )
    count = min(len(whole_B), int(end_R[-1]) // capacity if len(end_R) else 0)
    if count == 0:
        return pieces, sequence_P, offset_P, sequences
    whole_B = whole_B[-count:]
    total = count * capacity
    # In one row, the rooms and the text to be spread over them: a stretch ends where a room or a piece does.
    edges = np.union1d(end_R[end_R < total], np.arange(0, total + 1, capacity))
    at_Q, length_Q = edges[:-1], np.diff(edges)
    which_Q = np.searchsorted(end_R, at_Q, side="right")
    target_Q, source_Q = room_R[which_Q], whole_B[at_Q // capacity]
    begin_Q = end_R[which_Q] - room_S[target_Q]
    stretches = Pieces(
        use_P=pieces.use_P[source_Q],
        first_P=pieces.first_P[source_Q] + at_Q % capacity,
        length_P=length_Q,
        image_P=np.zeros(len(at_Q), np.int64),
    )
    kept_P = np.ones(len(pieces.use_P), np.bool_)
    kept_P[whole_B] = False
    gone_S = np.zeros(sequences, np.int64)
    gone_S[sequence_P[whole_B]] = 1
    number_S = np.arange(sequences) - np.cumsum(gone_S)
    joined = Pieces(
        *(
            np.concatenate([getattr(pieces, name)[kept_P], getattr(stretches, name)])
            for name in ("use_P", "first_P", "length_P", "image_P")
        )
    )
    offset_Q = capacity - room_S[target_Q] + at_Q - begin_Q
    return (
        joined,
        number_S[np.concatenate([sequence_P[kept_P], target_Q])],
        np.concatenate([offset_P[kept_P], offset_Q]),
        sequences - count,
    )
