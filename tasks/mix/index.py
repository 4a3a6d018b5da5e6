"""Pass 1 of packing, lengths: what planning and layout must know of every document, without its ids.

Some parts of one source's document store make a *group*, and a group's lengths one table, ``index/SOURCE-000000``.
The manifests hold each group's sums, from which all planning follows; the tables are read again where single documents
matter. Which conditions of the recipe a document does not meet is decided here, once.

Shape suffixes: N documents of a group, M numbers in a flat list, K chosen uses of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.samples import SAMPLES
from infra.store.tables import FORMAT_KEY, open_table, read_table, write_table
from model.data.order import Permutation
from tasks.addresses import parse_part
from tasks.context import StepContext
from tasks.documents.captions import draw
from tasks.mix.conditions import OF_SAMPLES, SCORE, Where, sample_columns, to_read
from tasks.mix.group import Group, Integers, stream_keys
from tasks.pool import PartOutput

GROUP_PARTS = 8
"""Parts whose rows are shuffled together, and which a file of sequences therefore takes its documents from."""
ROW_GROUP = 1 << 16
TOO_LONG = 1
"""In the column ``finetune``: the conversation is longer than a sequence. Conditions are counted from 2."""
NOT_ASKED = -1
"""In the column ``finetune``: the source is none of ``finetune_mix.sources``."""

INDEX = pa.schema(
    [
        pa.field("part", pa.dictionary(pa.int32(), pa.string()), nullable=False),  # of the document store
        pa.field("row", pa.int32(), nullable=False),  # within the part
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("pretrain", pa.int16(), nullable=False),  # 0, or the first condition of mix.where it fails, from 1
        pa.field("finetune", pa.int16(), nullable=False),  # 0, NOT_ASKED, TOO_LONG, or the first condition, from 2
        pa.field("category", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("pair", pa.bool_(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),  # pairs: h mod n of caption (h + k) mod n
        pa.field("image_first", pa.bool_(), nullable=False),  # pairs: at occurrence 0
        pa.field("lengths", pa.list_(pa.int32()), nullable=False),  # as in the document store
        pa.field("image_tokens", pa.int32(), nullable=False),
        pa.field("answer_tokens", pa.int32(), nullable=False),  # tokens with a loss bit
        # Where each picture begins, of documents longer than a sequence that are no pairs; else empty.
        pa.field("pictures", pa.list_(pa.int32()), nullable=False),
    ],
    metadata={FORMAT_KEY: b"calumma-index 1"},
)

_COLUMNS = ["sample_id", "kind", "category", "held_out", "loss", "lengths", "image_tokens", "captions"]


@dataclass(frozen=True, slots=True)
class IndexItem:
    """One group: some parts of a source's document store."""

    source: str
    number: int
    parts: tuple[str, ...]

    @property
    def part(self) -> str:
        return f"index-{self.source}-{self.number:06d}"


def group_items(parts: Sequence[str], seed: int) -> Iterator[IndexItem]:
    """The document store's parts as groups: each source's in seeded order, eight at a time."""
    by_source: dict[str, list[str]] = {}
    for part in parts:
        found = parse_part(part)
        by_source.setdefault(found.source if found else part, []).append(part)
    for source, own in by_source.items():
        order = Permutation(len(own), seed, "parts", source).all().tolist()
        for number, first in enumerate(range(0, len(own), GROUP_PARTS)):
            yield IndexItem(source, number, tuple(own[i] for i in order[first : first + GROUP_PARTS]))


def conditions(context: StepContext, source: str) -> tuple[Where, Where]:
    """A source's conditions for pre-training and fine-tuning; RecipeError if one of them is none."""
    recipe = context.recipe
    scores = tuple(scorer.name for scorer in recipe.scan.scorers)
    return (
        Where(f"mix.where.{source}", recipe.mix.where.get(source, {}), scores),
        Where(f"finetune_mix.where.{source}", recipe.finetune_mix.where.get(source, {}), scores),
    )


class Indexer:
    """Makes one group's table at a time."""

    def __init__(self, context: StepContext) -> None:
        self._context, self._recipe = context, context.recipe
        self._documents, self._samples = context.store("tokenize"), context.store("encode")

    def process(self, item: IndexItem) -> PartOutput:
        where = conditions(self._context, item.source)
        table = pa.concat_tables([self._part(part, item.source, where) for part in item.parts])
        table = table.unify_dictionaries().combine_chunks()
        group = Group.of(table, item.source, self._recipe.mix.sequence_length)
        held_N, long_N = group.held_out_N, ~group.fits_N
        return PartOutput(
            part=item.part,
            source=item.source,
            files={
                f"index/{item.source}-{item.number:06d}.parquet": write_table(
                    table, INDEX, row_group=ROW_GROUP, checksums=True
                )
            },
            rows=Rows(),
            facts={
                "documents": len(group),
                "held_out": int(held_N.sum()),
                "too_long": {
                    "finetune": int((group.finetune_N == TOO_LONG).sum()),
                    "held-out": int((held_N & long_N & group.messages_N).sum()),
                },
                "streams": {key: group.totals(group.members(key)) for key in stream_keys(group)},
            },
        )

    def _part(self, part: str, source: str, where: tuple[Where, Where]) -> pa.Table:
        name = f"parts/{part}.parquet"
        with self._documents.open(name) as f:
            file = open_table(f, DOCUMENTS, self._documents.url(name))
            table = file.read(columns=_COLUMNS).combine_chunks()
            columns = _columns(table, self._recipe.seed)
            kinds = columns.pop("kind")
            failed_N = self._failed(part, table, columns | {"kind": kinds}, where)
            length = self._recipe.mix.sequence_length
            longest_N: npt.ArrayLike = (
                np.maximum.reduceat(_flat(table["lengths"]), _starts(table["lengths"])) if table.num_rows else []
            )
            long_N = np.asarray(longest_N, np.int64) > length
            pictured_N = long_N & ~columns["pair"] & (columns["image_tokens"] > 0)
            pictures = _pictures(file, np.flatnonzero(pictured_N), self._recipe.vocabulary.boi)
        finetune_N = np.where(failed_N[1] > 0, failed_N[1] + TOO_LONG, 0)
        finetune_N[long_N] = TOO_LONG
        finetune_N[table["held_out"].to_numpy()] = 0
        if source not in self._recipe.finetune_mix.sources:
            finetune_N[:] = NOT_ASKED
        columns |= {"pretrain": failed_N[0], "finetune": finetune_N, "row": np.arange(table.num_rows)}
        arrays = {name: pa.array(values, INDEX.field(name).type) for name, values in columns.items()}
        arrays |= {
            "part": pa.array([part] * table.num_rows, pa.string()).dictionary_encode(),
            "category": table["category"].combine_chunks().dictionary_encode(),
            "held_out": table["held_out"].combine_chunks(),
            "lengths": table["lengths"].combine_chunks(),
            "pictures": _lists(pictures, table.num_rows),
        }
        return pa.table([arrays[field.name].cast(field.type) for field in INDEX], schema=INDEX)

    def _failed(
        self, part: str, table: pa.Table, columns: dict[str, npt.NDArray[Any]], where: tuple[Where, Where]
    ) -> list[Integers]:
        """By document, which of the conditions for pre-training and for fine-tuning it fails first; 0 for none."""
        wanted = tuple(dict.fromkeys(name for each in where for name in each.columns))
        first = pc.list_element(table["lengths"], 0) if table.num_rows else table["lengths"].combine_chunks().flatten()
        known: dict[str, pa.Array] = {
            "kind": pa.array(columns["kind"], pa.string()),
            "category": table["category"],
            "tokens": first,
            "image_tokens": table["image_tokens"],
            "answer_tokens": pa.array(columns["answer_tokens"]),
            "captions": pc.list_value_length(table["captions"]),
        }
        if any(name in OF_SAMPLES or name.startswith(SCORE) for name in wanted):
            name = f"parts/{part}.parquet"
            with self._samples.open(name) as f:
                samples = read_table(f, SAMPLES, self._samples.url(name), to_read(wanted))
            place = pc.index_in(table["sample_id"], samples["sample_id"].combine_chunks())
            known |= sample_columns(samples.take(place), wanted)
        return [each.failed(known, table.num_rows) for each in where]


def load_group(context: StepContext, part: str) -> Group:
    """A group by the name of its part."""
    name = f"parts/index/{part.removeprefix('index-')}.parquet"
    store = context.store()
    table = read_table(store.get(name), INDEX, store.url(name)).combine_chunks()
    found = parse_part(part.removeprefix("index-"))
    return Group.of(table, found.source if found else part, context.recipe.mix.sequence_length)


def _columns(table: pa.Table, seed: int) -> dict[str, npt.NDArray[Any]]:
    """What follows from a document's row alone, (N,) each."""
    kind = table["kind"].to_numpy()
    pair_N = kind == "pairs"
    uses_N = pc.list_value_length(table["lengths"]).to_numpy()
    drawn = [draw(i, seed) if p else (0, False) for i, p in zip(table["sample_id"].to_pylist(), pair_N, strict=True)]
    messages = (kind == "messages").any()
    answers = [int.from_bytes(bits).bit_count() for bits in table["loss"].to_pylist()] if messages else 0
    return {
        "kind": kind,
        "pair": pair_N.astype(np.bool_),
        "turn": np.array([h % n for (h, _), n in zip(drawn, uses_N.tolist(), strict=True)], np.int64),
        "image_first": np.array([first for _, first in drawn], np.bool_),
        "image_tokens": table["image_tokens"].to_numpy(),
        "answer_tokens": np.zeros(table.num_rows, np.int64) + np.array(answers, np.int64),
    }


def _pictures(file: pq.ParquetFile, rows: Integers, boi: int) -> dict[int, Integers]:
    """By row, where each picture of these documents begins; only the row groups that hold them are read."""
    found: dict[int, Integers] = {}
    first = 0
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        mine = rows[(rows >= first) & (rows < first + count)]
        if len(mine):
            tokens = file.read_row_group(number, columns=["tokens"])["tokens"]
            for row in mine.tolist():
                ids = np.frombuffer(tokens[row - first].as_buffer(), "<u2")
                found[row] = np.flatnonzero(ids == boi)
        first += count
    return found


def _lists(by_row: dict[int, Integers], rows: int) -> pa.Array:
    counts = np.zeros(rows + 1, np.int32)
    for row, values in by_row.items():
        counts[row + 1] = len(values)
    flat = np.concatenate([by_row[row] for row in sorted(by_row)]) if by_row else np.zeros(0, np.int64)
    return pa.ListArray.from_arrays(np.cumsum(counts, dtype=np.int32), pa.array(flat, pa.int32()))


def _flat(column: pa.ChunkedArray) -> Integers:
    found: Integers = column.combine_chunks().flatten().to_numpy().astype(np.int64)
    return found


def _starts(column: pa.ChunkedArray) -> Integers:
    counts_N = pc.list_value_length(column).to_numpy().astype(np.int64)
    starts: Integers = np.cumsum(counts_N) - counts_N
    return starts
