"""Pass 2 of packing: writes one file of sequences from its layout and the document store, and counts what it wrote.

Shape suffixes: S sequences, T tokens, F = S·T tokens in a row, P spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.store.manifest import Rows
from infra.store.sequences import SPANS, encode_file, stem
from infra.store.tables import read_table, write_table
from model.vocabulary import PAD, Vocabulary
from tasks.context import StepContext
from tasks.documents.ids import MODALITIES, Ids, is_image
from tasks.mix.documents import DocumentReader, changed
from tasks.mix.group import Integers
from tasks.mix.layout import LAYOUT
from tasks.pool import PartOutput

COUNTED = 1 << 22
"""Tokens whose modalities are counted at a time."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some neighbouring sequences of a slice's layout."""

    file: str
    """The layout's table, relative to ``parts/``."""
    first: int
    """The slice's first sequence within the store."""
    start: int
    stop: int
    """Sequences ``start`` to ``stop - 1``, counted within the slice."""


@dataclass(frozen=True, slots=True)
class SequenceFile:
    """One file to be written: which, and where it stands what lies in it."""

    store: str
    """The packed store it belongs to, e.g. ``stages/stage-1``: a folder below ``parts/``."""
    number: int
    first: int
    """The file's first sequence within the store."""
    sequences: int
    loss: bool
    stretches: tuple[Stretch, ...]

    @property
    def part(self) -> str:
        return f"{self.store.replace('/', '-')}-{self.number:06d}"


class SequenceWriter:
    """Writes one file of sequences at a time."""

    def __init__(self, context: StepContext) -> None:
        recipe = context.recipe
        self._store = context.store()
        self._length, self._vocabulary = recipe.mix.sequence_length, recipe.vocabulary
        self._documents = DocumentReader(context.store("tokenize"), recipe.seed)

    def process(self, item: SequenceFile) -> PartOutput:
        spans = pa.concat_tables([self._read(stretch) for stretch in item.stretches])
        begin_P = (_numbers(spans["sequence"]) - item.first) * self._length + _numbers(spans["offset"])
        length_P = _numbers(spans["length"])
        size = item.sequences * self._length
        tokens_F = np.full(size, PAD, np.uint16)
        starts_F = np.zeros(size, np.bool_)
        loss_F = np.zeros(size, np.bool_) if item.loss else None
        self._fill(spans, begin_P, length_P, tokens_F, loss_F)
        starts_F[begin_P] = True
        used_S = np.bincount(begin_P // self._length, length_P, item.sequences).astype(np.int64)
        padded_S = np.flatnonzero(used_S < self._length)
        starts_F[padded_S * self._length + used_S[padded_S]] = True
        shape = (item.sequences, self._length)
        files = encode_file(
            tokens_F.reshape(shape), starts_F.reshape(shape), None if loss_F is None else loss_F.reshape(shape)
        )
        files["parquet"] = write_table(spans, SPANS, checksums=True)
        counts, cut_pictures = count_spans(tokens_F, begin_P, length_P, spans["source"], self._vocabulary)
        begun = int((_numbers(spans["first_token"]) == 0).sum())
        return PartOutput(
            part=item.part,
            source=item.store,
            files={f"{item.store}/{stem(item.number)}.{suffix}": data for suffix, data in files.items()},
            rows=Rows(entered=begun, out=begun),
            tokens={modality: sum(count[modality] for count in counts.values()) for modality in MODALITIES},
            facts={
                "tokens": counts,
                "cut_pictures": cut_pictures,
                "padding": size - int(used_S.sum()),
            },
        )

    def _read(self, stretch: Stretch) -> pa.Table:
        """The stretch's spans, their sequences counted within the store: schema SPANS."""
        wanted = [("sequence", ">=", stretch.start), ("sequence", "<", stretch.stop)]
        name = f"parts/{stretch.file}"
        with self._store.open(name) as f:
            table = read_table(f, LAYOUT, self._store.url(name), wanted=wanted)
        sequence = pc.add(table["sequence"], stretch.first)
        table = table.set_column(table.schema.get_field_index("sequence"), SPANS.field("sequence"), sequence)
        return table.select(SPANS.names).cast(SPANS)

    def _fill(
        self,
        spans: pa.Table,
        begin_P: Integers,
        length_P: Integers,
        tokens_F: Ids,
        loss_F: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Puts every span's ids (and loss bits) where they belong, part after part, so that each is read once."""
        part = spans["part"].combine_chunks().dictionary_encode()
        code_P, row_P = part.indices.to_numpy(), _numbers(spans["row"])
        order_P = np.lexsort((row_P, code_P))
        borders = np.searchsorted(code_P[order_P], np.arange(len(part.dictionary) + 1))
        occurrences, firsts = _numbers(spans["occurrence"]), _numbers(spans["first_token"])
        for code, name in enumerate(part.dictionary.to_pylist()):
            mine_P = order_P[borders[code] : borders[code + 1]]
            columns = (begin_P, length_P, occurrences, firsts)
            spans_of = list(zip(*(column[mine_P].tolist() for column in columns), strict=True))
            for group, row, at in self._documents.rows(name, row_P[mine_P]):
                begin, length, occurrence, first = spans_of[at]
                out = tokens_F[begin : begin + length]
                if first or group.write(row, occurrence, out) != length:  # a piece of a longer document
                    whole, stop = group.ids(row, occurrence), first + length
                    if len(whole) < stop:
                        where = int(row_P[mine_P[at]])
                        raise changed(name, where, f"{len(whole)} ids where the layout counts on {stop}")
                    out[:] = whole[first:stop]
                if loss_F is not None:
                    loss_F[begin : begin + length] = group.loss(row)[first : first + length]


def count_spans(
    tokens_F: Ids, begin_P: Integers, length_P: Integers, source: pa.ChunkedArray, vocabulary: Vocabulary
) -> tuple[dict[str, dict[str, int]], int]:
    """Tokens by source and modality, and how many spans hold a begin of image without its end, or the reverse.

    Spans must be in the order in which they lie; pictures never nest.
    """
    coded = source.combine_chunks().dictionary_encode()
    code_P, names = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    image_P, text_P = np.zeros(len(begin_P), np.int64), np.zeros(len(begin_P), np.int64)
    cut = 0
    for first, stop in _blocks(begin_P, length_P):
        if first == stop:
            continue
        low, high = int(begin_P[first]), int(begin_P[stop - 1] + length_P[stop - 1])
        ids_F, at_P, end_P = (
            tokens_F[low:high],
            begin_P[first:stop] - low,
            begin_P[first:stop] + length_P[first:stop] - low,
        )
        for counts_P, mask_F in ((image_P, is_image(ids_F, vocabulary)), (text_P, ids_F >= vocabulary.text_start)):
            sums_F = np.concatenate([[0], np.cumsum(mask_F, dtype=np.int32)])
            counts_P[first:stop] = sums_F[end_P] - sums_F[at_P]
        cut += _cut_pictures(ids_F, at_P, vocabulary)
    found = {}
    for code, name in enumerate(names):
        own_P = code_P == code
        image, text = int(image_P[own_P].sum()), int(text_P[own_P].sum())
        found[name] = {"text": text, "image": image, "control": int(length_P[own_P].sum()) - image - text}
    return dict(sorted(found.items())), cut


def _blocks(begin_P: Integers, length_P: Integers) -> list[tuple[int, int]]:
    """Stretches of spans that together reach over some millions of tokens."""
    if not len(begin_P):
        return []
    edges = np.searchsorted(begin_P, np.arange(COUNTED, int(begin_P[-1] + length_P[-1]), COUNTED))
    bounds = [0, *edges.tolist(), len(begin_P)]
    return list(pairwise(bounds))


def _cut_pictures(ids_F: Ids, at_P: Integers, vocabulary: Vocabulary) -> int:
    """Spans in which begins and ends of images do not take turns, from a begin to an end."""
    mark_M = np.flatnonzero((ids_F == vocabulary.boi) | (ids_F == vocabulary.eoi))
    span_M = np.searchsorted(at_P, mark_M, side="right") - 1
    count_P = np.bincount(span_M, minlength=len(at_P))
    turn_M = np.arange(len(mark_M)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
    wrong_M = (ids_F[mark_M] == vocabulary.boi) != (turn_M % 2 == 0)
    wrong_P = np.bincount(span_M, wrong_M, len(at_P)) + count_P % 2
    return int((wrong_P > 0).sum())


def _numbers(column: Any) -> Integers:
    found: Integers = column.to_numpy().astype(np.int64)
    return found
