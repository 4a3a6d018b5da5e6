"""From stored sequences to what the model is given: one pass over a micro-batch, no work sequence by sequence.

Shape suffixes: B sequences of a micro-batch, T positions, N = B·T positions in a row, K segments (documents, pieces of
documents, paddings), C places for their borders.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from infra.store.sequences import Bits, SequenceReader, Tokens
from model.vocabulary import FIRST_IMAGE_CODE, PAD, Vocabulary

IGNORE = -100
"""The label of a position that must not count."""

Batch = dict[str, torch.Tensor]


def make_batch(
    tokens_BT: Tokens,
    starts_BT: Bits,
    loss_BT: Bits | None,
    sequences_B: npt.ArrayLike,
    vocabulary: Vocabulary,
    segments: int | None = None,
) -> Batch:
    """What the model is given, from what the store holds.

    - ``tokens`` (B, T) int64;
    - ``labels`` (B, T) int64, already shifted: the id that the position must predict, ``IGNORE`` where that is in
      another document, padding, past the end, or switched off by its loss bit;
    - ``loss_mask`` (B, T) bool: where there is a label;
    - ``image`` (B, T) bool: the label is a picture's token (BOI, a code, EOI);
    - ``modality`` (B, T) bool: the token is a picture's;
    - ``documents`` (B, T) int32: number of the document within the sequence, -1 on padding;
    - ``positions`` (B, T) int64: from 0 in each document;
    - ``cu_seqlens`` (C,) int32: where each segment of the flattened micro-batch begins, and then B·T to the end: what
      varlen attention takes. Padding at a sequence's end is a segment of its own; segments of no length fill up;
    - ``max_seqlen`` () int32: the longest segment;
    - ``sequences`` (B,) int64: number of the sequence in its folder, -1 for one that is all padding.

    Args:
        tokens_BT: uint16, ``<pad>`` only behind the last document of a sequence.
        starts_BT: bool, where a document, a piece of one or the padding begins; always at a sequence's first token.
        loss_BT: bool, tokens that are to be predicted; None: all.
        sequences_B: int64.
        segments: Segments a sequence for which ``cu_seqlens`` has room, so that its shape stays the same: C is
            B·segments + 1, and twice as many, or four times, where a micro-batch holds more. None: T / 16.
    """
    b, t = tokens_BT.shape
    n, tokens_N = b * t, tokens_BT.reshape(-1)
    starts_K = np.flatnonzero(starts_BT)
    ends_K = np.append(starts_K[1:], n)
    lengths_K, padding_K = ends_K - starts_K, tokens_N[starts_K] == PAD
    # One piece of memory for all: large arrays one by one cost more in page faults than in work.
    memory = np.empty(n * 31, np.uint8)
    ids_N, labels_N, positions_N = memory[: n * 24].view(np.int64).reshape(3, n)
    documents_N = memory[n * 24 : n * 28].view(np.int32)
    mask_N, image_N, modality_N = memory[n * 28 :].view(np.bool_).reshape(3, n)

    ids_N[:], labels_N[:-1] = tokens_N, tokens_N[1:]
    shifted_N = tokens_N - np.uint16(FIRST_IMAGE_CODE)  # ids below 4 wrap round
    np.less_equal(shifted_N, vocabulary.boi - FIRST_IMAGE_CODE, out=modality_N)
    if loss_BT is None:
        mask_N[:] = True
    else:
        mask_N[:-1] = loss_BT.reshape(-1)[1:]
    mask_N[ends_K - 1] = False  # what a segment's last token would predict lies in the next
    for k in np.flatnonzero(padding_K).tolist():
        mask_N[starts_K[k] : ends_K[k]] = False
    np.logical_and(modality_N[1:], mask_N[:-1], out=image_N[:-1])
    image_N[-1] = False
    np.copyto(labels_N, IGNORE, where=~mask_N)

    first_K = np.maximum.accumulate(np.where(starts_K % t, 0, np.arange(len(starts_K))))  # of the segment's sequence
    numbers_K = np.where(padding_K, -1, np.arange(len(starts_K)) - first_K)
    documents_N[:] = np.repeat(numbers_K.astype(np.int32), lengths_K)
    np.subtract(_numbers(n), np.repeat(starts_K, lengths_K), out=positions_N)
    found = {
        "tokens": ids_N,
        "labels": labels_N,
        "loss_mask": mask_N,
        "image": image_N,
        "modality": modality_N,
        "documents": documents_N,
        "positions": positions_N,
    }
    return {name: torch.from_numpy(values_N.reshape(b, t)) for name, values_N in found.items()} | {
        "cu_seqlens": torch.from_numpy(_borders(starts_K, n, b * (segments or max(1, t // 16)))),
        "max_seqlen": torch.tensor(int(lengths_K.max()), dtype=torch.int32),
        "sequences": torch.from_numpy(np.array(sequences_B, np.int64)),
    }


def read_batch(
    reader: SequenceReader, sequences_B: npt.NDArray[np.int64], vocabulary: Vocabulary, segments: int | None = None
) -> Batch:
    """Reads sequences and makes a batch of them; -1 stands for one that is all padding."""
    return make_batch(*reader.read(sequences_B.tolist(), fill=PAD), sequences_B, vocabulary, segments)


@lru_cache(maxsize=4)
def _numbers(n: int) -> npt.NDArray[np.int64]:
    """0 … n - 1, made once."""
    return np.arange(n)


def _borders(starts_K: npt.NDArray[np.int64], end: int, room: int) -> npt.NDArray[np.int32]:
    """The starts, then ``end`` up to the fixed size."""
    while room < len(starts_K):
        room *= 2
    borders = np.full(room + 1, end, np.int32)
    borders[: len(starts_K)] = starts_K
    return borders
