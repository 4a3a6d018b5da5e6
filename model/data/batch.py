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
    ends_K = np.concatenate((starts_K[1:], (n,)))
    lengths_K, padding_K = ends_K - starts_K, tokens_N[starts_K] == PAD
    # Few arrays and few calls: a micro-batch costs more by their number than by its tokens.
    ids_N, labels_N = numbers = np.empty((2, n), np.int64)
    mask_N, image_N, modality_N = masks = np.empty((3, n), np.bool_)

    ids_N[:], labels_N[:-1] = tokens_N, tokens_N[1:]
    shifted_N = tokens_N - np.uint16(FIRST_IMAGE_CODE)  # ids below 4 wrap round
    np.less_equal(shifted_N, vocabulary.boi - FIRST_IMAGE_CODE, out=modality_N)
    if loss_BT is None:
        mask_N[:] = True
    else:
        mask_N[:-1] = loss_BT.reshape(-1)[1:]
        np.copyto(labels_N, IGNORE, where=~mask_N)
    # What a segment's last token would predict lies in the next one, and padding predicts nothing.
    silent = [slice(int(starts_K[k]), int(ends_K[k])) for k in padding_K.nonzero()[0].tolist()]
    for chosen in (ends_K - 1, *silent):
        mask_N[chosen] = False
        labels_N[chosen] = IGNORE
    np.logical_and(modality_N[1:], mask_N[:-1], out=image_N[:-1])
    image_N[-1] = False

    first_K = np.maximum.accumulate(np.where(starts_K % t, 0, np.arange(len(starts_K))))  # of the segment's sequence
    numbers_K = np.where(padding_K, -1, np.arange(len(starts_K)) - first_K).astype(np.int32)
    positions_N = np.repeat(starts_K, lengths_K)
    np.subtract(_numbers(n), positions_N, out=positions_N)
    tokens, labels = torch.from_numpy(numbers.reshape(2, b, t)).unbind()
    loss_mask, image, modality = torch.from_numpy(masks.reshape(3, b, t)).unbind()
    return {
        "tokens": tokens,
        "labels": labels,
        "loss_mask": loss_mask,
        "image": image,
        "modality": modality,
        "documents": torch.from_numpy(np.repeat(numbers_K, lengths_K).reshape(b, t)),
        "positions": torch.from_numpy(positions_N.reshape(b, t)),
        "cu_seqlens": torch.from_numpy(_borders(starts_K, n, b * (segments or max(1, t // 16)))),
        "max_seqlen": torch.from_numpy(np.array(lengths_K.max(), np.int32)),
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
