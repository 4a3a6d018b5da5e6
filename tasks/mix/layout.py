"""Pass 1 of packing: which stretch of which document lies where, from lengths alone.

The documents of a stage are merged so that at every point each stream has given the same share of its tokens. That
order is cut into slices and, inside them, into windows of documents; each window is packed by best fit, across streams.
A document that fits a sequence is never cut. A longer one is cut between or inside texts, never inside a picture.

Shape suffixes: K uses of documents, P pieces of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.store.sequences import SPANS
from model.vocabulary import Vocabulary
from tasks.documents.ids import Ids, is_image
from tasks.mix.bestfit import best_fit
from tasks.mix.documents import Documents, Integers

Uses = tuple[Integers, Integers]
"""Index in the table of documents and occurrence, (K,) each."""
ReadIds = Callable[[int, int], Ids]
"""Index and occurrence to ids; asked for only where a document is longer than a sequence."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """Stretches of documents, (P,) each."""

    index_P: Integers
    occurrence_P: Integers
    first_P: Integers
    """First token of the document in the piece."""
    length_P: Integers
    image_P: Integers
    """Image tokens in the piece."""

    def __len__(self) -> int:
        return len(self.index_P)

    def __getitem__(self, chosen: Integers) -> Pieces:
        return Pieces(*(column[chosen] for column in self._columns()))

    def _columns(self) -> tuple[Integers, ...]:
        return self.index_P, self.occurrence_P, self.first_P, self.length_P, self.image_P


@dataclass(frozen=True, eq=False)
class Layout:
    """Where every piece lies, ordered by sequence and offset."""

    pieces: Pieces
    sequence_P: Integers
    offset_P: Integers
    slices: list[int]
    """Sequences by slice."""

    @property
    def sequences(self) -> int:
        return sum(self.slices)

    def first(self, sequences: int) -> Layout:
        """The layout of the first so many sequences, as one slice."""
        kept = np.flatnonzero(self.sequence_P < sequences)
        return Layout(self.pieces[kept], self.sequence_P[kept], self.offset_P[kept], [min(sequences, self.sequences)])

    def table(self, documents: Documents, first: int, last: int) -> pa.Table:
        """The spans of sequences ``first`` to ``last - 1``, schema SPANS."""
        begin, end = np.searchsorted(self.sequence_P, [first, last])
        pieces = self.pieces[np.arange(begin, end)]
        part_P = documents.part_N[pieces.index_P]
        columns = {
            "sequence": self.sequence_P[begin:end],
            "offset": self.offset_P[begin:end],
            "length": pieces.length_P,
            "source": np.array(documents.part_sources, object)[part_P],
            "part": np.array(documents.parts, object)[part_P],
            "row": documents.row_N[pieces.index_P],
            "occurrence": pieces.occurrence_P,
            "first_token": pieces.first_P,
            "image_tokens": pieces.image_P,
        }
        return pa.table([pa.array(columns[field.name], field.type) for field in SPANS], schema=SPANS)


def lay_out(
    streams: Sequence[Uses],
    documents: Documents,
    read_ids: ReadIds,
    vocabulary: Vocabulary,
    *,
    length: int,
    window: int,
    slice_sequences: int,
) -> Layout:
    """Packs the streams' documents into sequences of ``length`` tokens."""
    index_K, occurrence_K, share_K = merge(streams, documents)
    tokens = int(documents.lengths(index_K, occurrence_K).sum())
    slices = max(1, -(-tokens // (length * slice_sequences)))
    borders = np.searchsorted(share_K, np.arange(slices + 1) / slices)
    borders[-1] = len(share_K)
    packed: list[tuple[Pieces, Integers, Integers]] = []
    counts: list[int] = []
    opened = 0
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        before = opened
        # Windows of equal size: a short last one would pack badly.
        for chosen in np.array_split(np.arange(begin, end), max(1, -(-(end - begin) // window))):
            pieces = cut_all((index_K[chosen], occurrence_K[chosen]), documents, read_ids, vocabulary, length)
            sequence_P, offset_P, new = best_fit(pieces.length_P, length)
            order_P = np.lexsort((offset_P, sequence_P))
            packed.append((pieces[order_P], sequence_P[order_P] + opened, offset_P[order_P]))
            opened += new
        counts.append(opened - before)
    columns = zip(*((*pieces._columns(), sequence_P, offset_P) for pieces, sequence_P, offset_P in packed), strict=True)
    *pieces_columns, sequence_P, offset_P = (np.concatenate(column) for column in columns)
    return Layout(Pieces(*pieces_columns), sequence_P, offset_P, counts)


def merge(streams: Sequence[Uses], documents: Documents) -> tuple[Integers, Integers, npt.NDArray[np.float64]]:
    """All streams' documents as one, ordered by how much of its stream is used at the document's middle.

    Index, occurrence and that share, (K,) each. Whatever stretch is taken of it, each stream gives in proportion to its
    tokens.
    """
    index, occurrence, shares = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for index_K, occurrence_K in streams:
        length_K = documents.lengths(index_K, occurrence_K)
        end_K = np.cumsum(length_K)
        index.append(index_K)
        occurrence.append(occurrence_K)
        shares.append((2 * end_K - length_K) / (2 * max(1, int(length_K.sum()))))
    whole = np.concatenate(shares)
    order = np.argsort(whole, kind="stable")
    return np.concatenate(index)[order], np.concatenate(occurrence)[order], whole[order]


def cut_all(uses: Uses, documents: Documents, read_ids: ReadIds, vocabulary: Vocabulary, length: int) -> Pieces:
    """Pieces of at most ``length`` tokens: one of each document that fits, several of each that does not."""
    index_K, occurrence_K = uses
    length_K = documents.lengths(index_K, occurrence_K)
    fits_K = length_K <= length
    rows = [
        (index, occurrence, first, stop - first, image)
        for index, occurrence in zip(index_K[~fits_K].tolist(), occurrence_K[~fits_K].tolist(), strict=True)
        for first, stop, image in cuts(read_ids(index, occurrence), vocabulary, length)
    ]
    long = np.array(rows, np.int64).reshape(-1, 5).T
    whole = (index_K[fits_K], occurrence_K[fits_K], np.zeros(int(fits_K.sum()), np.int64), length_K[fits_K])
    columns = (*whole, documents.image_tokens_N[index_K[fits_K]])
    return Pieces(*(np.concatenate([a, b]) for a, b in zip(columns, long, strict=True)))


def cuts(ids: Ids, vocabulary: Vocabulary, length: int) -> Iterator[tuple[int, int, int]]:
    """First token, stop and image tokens of each piece: as long as possible, and no picture in two pieces."""
    begins = np.flatnonzero(ids == vocabulary.boi)
    ends = np.flatnonzero(ids == vocabulary.eoi) + 1
    image = is_image(ids, vocabulary)
    at = 0
    while at < len(ids):
        stop = min(at + length, len(ids))
        picture = int(np.searchsorted(begins, stop)) - 1  # the last one that begins before the cut
        if picture >= 0 and ends[picture] > stop:
            stop = int(begins[picture])
        yield at, stop, int(image[at:stop].sum())
        at = stop
