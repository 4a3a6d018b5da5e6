"""Pass 2 of packing: writes one file of sequences from its layout and the document store, and counts what it wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import StoreError
from infra.store.manifest import Rows
from infra.store.sequences import SPANS, encode_file, stem
from infra.store.tables import write_table
from model.vocabulary import PAD, Vocabulary
from tasks.context import StepContext
from tasks.documents.ids import MODALITIES, Ids, count_modalities
from tasks.mix.documents import DocumentReader
from tasks.pool import PartOutput


@dataclass(frozen=True, eq=False)
class SequenceFile:
    """One file to be written: which, and what lies in it."""

    store: str
    """The packed store it belongs to, e.g. ``stages/stage-1``: a folder below ``parts/``."""
    number: int
    sequences: int
    loss: bool
    spans: pa.Table
    """Schema SPANS, ordered by sequence and offset."""
    first: int
    """The file's first sequence within the store."""

    @property
    def part(self) -> str:
        return f"{self.store.replace('/', '-')}-{self.number:06d}"


class SequenceWriter:
    """Writes one file of sequences at a time."""

    def __init__(self, context: StepContext) -> None:
        recipe = context.recipe
        self._length, self._vocabulary = recipe.mix.sequence_length, recipe.vocabulary
        self._documents = DocumentReader(context.store("tokenize"), recipe.seed)

    def process(self, item: SequenceFile) -> PartOutput:
        shape = (item.sequences, self._length)
        tokens_ST = np.full(shape, PAD, np.uint16)
        starts_ST = np.zeros(shape, np.bool_)
        loss_ST = np.zeros(shape, np.bool_) if item.loss else None
        counts: dict[str, Counter[str]] = {}
        cut_pictures = 0
        spans: list[dict[str, Any]] = item.spans.to_pylist()
        for span in sorted(spans, key=lambda span: (span["part"], span["row"])):  # part after part: each is read once
            first, stop = span["first_token"], span["first_token"] + span["length"]
            ids = self._documents.ids(span["part"], span["row"], span["occurrence"])[first:stop]
            _check(span, ids)
            row, place = span["sequence"] - item.first, slice(span["offset"], span["offset"] + span["length"])
            tokens_ST[row, place] = ids
            starts_ST[row, span["offset"]] = True
            if loss_ST is not None:
                loss_ST[row, place] = self._documents.loss(span["part"], span["row"])[first:stop]
            counts.setdefault(span["source"], Counter(dict.fromkeys(MODALITIES, 0))).update(
                count_modalities(ids, self._vocabulary)
            )
            cut_pictures += _cuts_picture(ids, self._vocabulary)
        used_S = (tokens_ST != PAD).sum(axis=1)
        padded = np.flatnonzero(used_S < self._length)
        starts_ST[padded, used_S[padded]] = True
        files = encode_file(tokens_ST, starts_ST, loss_ST)
        files["parquet"] = write_table(spans, SPANS)
        begun = sum(span["first_token"] == 0 for span in spans)
        totals = sum(counts.values(), Counter(dict.fromkeys(MODALITIES, 0)))
        return PartOutput(
            part=item.part,
            source=item.store,
            files={f"{item.store}/{stem(item.number)}.{suffix}": data for suffix, data in files.items()},
            rows=Rows(entered=begun, out=begun),
            tokens={modality: totals[modality] for modality in MODALITIES},
            facts={
                "tokens": {source: dict(count) for source, count in sorted(counts.items())},
                "cut_pictures": cut_pictures,
                "padding": int((self._length - used_S).sum()),
            },
        )


def _check(span: dict[str, Any], ids: Ids) -> None:
    if len(ids) != span["length"]:
        raise StoreError(
            f"document {span['part']} row {span['row']}: {len(ids)} ids where the layout counts on {span['length']}. "
            "The document store changed after it was planned: delete the mix step's folder and run `mix` again."
        )


def _cuts_picture(ids: Ids, vocabulary: Vocabulary) -> bool:
    """Whether a begin of image lacks its end, or the reverse; pictures never nest."""
    marks = ids[(ids == vocabulary.boi) | (ids == vocabulary.eoi)]
    return len(marks) % 2 == 1 or bool((marks[::2] != vocabulary.boi).any() or (marks[1::2] != vocabulary.eoi).any())
