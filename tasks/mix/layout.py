"""Pass 1 of packing, layout: which stretch of which document lies where, one slice a work item.

The documents of a stage are merged so that at every point each stream has given the same share of its tokens. That
order is cut into slices of equal shares; a slice's documents are packed window by window, by best fit, across streams.
A document that fits a sequence is never cut; a longer one never inside a picture (``cut.py``).

A slice is worked on alone: from its number and the streams' sums follow the groups that it needs. What it becomes is a
table of spans, whose sequences are counted from the slice's own first one.

Shape suffixes: N documents of a group, K uses of documents, P pieces of them, M numbers in a flat list.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from infra.store.manifest import Rows
from infra.store.sequences import SPANS
from infra.store.tables import FORMAT_KEY, write_table
from tasks.context import StepContext
from tasks.mix.bestfit import best_fit
from tasks.mix.cut import Uses, cut_all, places
from tasks.mix.fill import fill_rooms
from tasks.mix.group import Group, Integers
from tasks.mix.index import ROW_GROUP, load_group
from tasks.mix.streams import Run, in_order
from tasks.pool import PartOutput

_CODED = pa.dictionary(pa.int32(), pa.string())
LAYOUT = pa.schema(
    [field.with_type(_CODED) if field.name in ("source", "part") else field for field in SPANS],
    metadata={FORMAT_KEY: b"calumma-layout 1"},
)
"""As ``SPANS``, but ``sequence`` counts from the slice's first one."""
GROUPS = 64
"""Groups that a worker keeps in memory: a small source's come again in every pass."""


@dataclass(frozen=True, slots=True)
class Strand:
    """What one stream gives to one slice."""

    stream: str
    key: str
    start: int
    stop: int
    """The interval of the whole packing, in the stream's documents."""
    tokens: int
    """The interval's."""
    runs: tuple[Run, ...]
    """Those with documents that may lie in the slice."""


@dataclass(frozen=True, slots=True)
class SliceItem:
    """One slice to be laid out."""

    store: str
    """The packed store that it belongs to, e.g. ``stages/stage-1``."""
    number: int
    slices: int
    """Of the whole store."""
    strands: tuple[Strand, ...]
    limit: int = 0
    """Held-out documents: at most so many sequences; pairs come twice, once in either order."""

    @property
    def part(self) -> str:
        return f"layout-{self.store.replace('/', '-')}-{self.number:06d}"

    @property
    def file(self) -> str:
        """Where its spans lie, relative to ``parts/``."""
        return f"layout/{self.store}/{self.number:06d}.parquet"


class LayoutMaker:
    """Lays out one slice at a time."""

    def __init__(self, context: StepContext) -> None:
        self._context, self._mix = context, context.recipe.mix
        self._group = lru_cache(maxsize=GROUPS)(lambda part: load_group(context, part))

    def process(self, item: SliceItem) -> PartOutput:
        uses, pictures_M, sources, parts = self.uses(item)
        table, sequences = self._pack(uses, pictures_M, item.limit)
        columns = {name: pa.array(column) for name, column in table.items()}
        for name, words in (("source", sources), ("part", parts)):
            columns[name] = pa.DictionaryArray.from_arrays(columns[name].cast(pa.int32()), pa.array(words, pa.string()))
        spans = pa.table([columns[field.name].cast(field.type) for field in LAYOUT], schema=LAYOUT)
        begun_P = table["first_token"] == 0
        documents = np.unique(np.stack([table["part"], table["row"]]), axis=1).shape[1] if item.limit else 0
        return PartOutput(
            part=item.part,
            source=item.store,
            files={item.file: write_table(spans, LAYOUT, row_group=ROW_GROUP, checksums=True)},
            rows=Rows(),
            facts={
                "sequences": sequences,
                "documents": int(begun_P.sum()),
                "split_documents": int((begun_P & table["continued"]).sum()),
                "held_out": documents,
            },
        )

    def _pack(self, uses: Uses, pictures_M: Integers, limit: int) -> tuple[dict[str, Any], int]:
        """Columns of the layout, ordered by sequence and offset, and the number of sequences."""
        length, opened = self._mix.sequence_length, 0
        packed: list[tuple[Integers, ...]] = []
        # Windows of equal size: a short last one would pack badly.
        for chosen_K in np.array_split(np.arange(len(uses)), max(1, -(-len(uses) // self._mix.window))):
            window = uses[chosen_K]
            pieces = cut_all(window, pictures_M, length)
            packed_P = best_fit(pieces.length_P, length)
            pieces, sequence_P, offset_P, new = fill_rooms(pieces, window.length_K, *packed_P, length)
            order_P = np.argsort(sequence_P * length + offset_P)
            use_P = pieces.use_P + (chosen_K[0] if len(chosen_K) else 0)
            columns = (use_P, pieces.first_P, pieces.length_P, pieces.image_P, sequence_P + opened, offset_P)
            packed.append(tuple(column[order_P] for column in columns))
            opened += new
        use_P, first_P, length_P, image_P, sequence_P, offset_P = (
            np.concatenate(column) for column in zip(*packed, strict=True)
        )
        if limit and opened > limit:
            kept_P = sequence_P < limit
            use_P, first_P, length_P = use_P[kept_P], first_P[kept_P], length_P[kept_P]
            image_P, sequence_P, offset_P, opened = image_P[kept_P], sequence_P[kept_P], offset_P[kept_P], limit
        return {
            "sequence": sequence_P,
            "offset": offset_P,
            "length": length_P,
            "source": uses.source_K[use_P],
            "part": uses.part_K[use_P],
            "row": uses.row_K[use_P],
            "occurrence": uses.occurrence_K[use_P],
            "first_token": first_P,
            "image_tokens": image_P,
            "continued": uses.length_K[use_P] > length_P,
        }, opened

    def uses(self, item: SliceItem) -> tuple[Uses, Integers, list[str], list[str]]:
        """The slice's documents, merged; all their pictures' places; and what the codes of sources and parts mean."""
        columns: list[list[Integers]] = []
        shares: list[Any] = []
        sources: dict[str, int] = {}
        parts: dict[str, int] = {}
        pictures: list[Integers] = [np.zeros(0, np.int64)]
        known = 0
        for strand in item.strands:
            for run in strand.runs:
                group = self._group(run.group)
                index_K, occurrence_K, share_K = self._chosen(item, strand, run, group)
                if not len(index_K):
                    continue
                code_N = np.array([parts.setdefault(p, len(parts)) for p in group.parts], np.int64)
                length_K = group.lengths(index_K, occurrence_K)
                count_K, first_K, places_M = places(group, index_K, occurrence_K, length_K, self._mix.sequence_length)
                columns.append(
                    [
                        np.full(len(index_K), sources.setdefault(group.source, len(sources))),
                        code_N[group.part_N[index_K]],
                        group.row_N[index_K],
                        occurrence_K,
                        length_K,
                        group.image_tokens_N[index_K],
                        count_K,
                        first_K + known,
                    ]
                )
                pictures.append(places_M)
                known += len(places_M)
                shares.append(share_K)
        if not columns:
            return Uses(*(np.zeros(0, np.int64) for _ in fields(Uses))), pictures[0], [], []
        order_K = np.argsort(np.concatenate(shares), kind="stable")
        if item.limit:
            enough = item.limit * self._mix.sequence_length
            order_K = order_K[: int(np.searchsorted(np.cumsum(np.concatenate([c[4] for c in columns])), enough)) + 1]
        uses = Uses(*(np.concatenate(column)[order_K] for column in zip(*columns, strict=True)))
        return uses, np.concatenate(pictures), list(sources), list(parts)

    def _chosen(self, item: SliceItem, strand: Strand, run: Run, group: Group) -> tuple[Integers, Integers, Any]:
        """A run's documents that lie in the slice: rows of the group, occurrences, and how much of the stream is used
        at the middle of each."""
        index_K = in_order(group, strand.key, self._context.recipe.seed, strand.stream, run.number, run.turn)
        occurrence_K = np.full(len(index_K), run.turn)
        number_K = run.first + np.arange(len(index_K))
        if item.limit:  # a pair once in either order
            uses_K = 1 + group.pair_N[index_K].astype(np.int64)
            index_K, number_K = np.repeat(index_K, uses_K), np.repeat(number_K, uses_K)
            occurrence_K = np.arange(len(index_K)) - np.repeat(np.cumsum(uses_K) - uses_K, uses_K)
        length_K = group.lengths(index_K, occurrence_K)
        twice_K = 2 * (run.tokens + np.cumsum(length_K)) - length_K  # twice the tokens up to its middle
        inside_K = (number_K >= strand.start) & (number_K < strand.stop)
        if not item.limit:
            inside_K &= twice_K * item.slices // (2 * strand.tokens) == item.number
        chosen_K = np.flatnonzero(inside_K)
        share_K = number_K[chosen_K] if item.limit else twice_K[chosen_K] / (2 * strand.tokens)
        return index_K[chosen_K], occurrence_K[chosen_K], share_K
