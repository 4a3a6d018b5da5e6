"""The step ``mix``: plans the stages, packs documents into sequences, writes them.

The folder it makes::

    plan.json, plan.parquet                   the plan; the loader starts from plan.json
    parts/stages/<stage>/seq-000000.u16 …     pre-training (infra/store/sequences.py)
    parts/finetune/epoch-0/seq-000000.u16 …   fine-tuning, with loss bits
    parts/held-out/<source>/seq-000000.u16 …  what no training sees

Planning and layout run in the job's process; every file of sequences is a work item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from infra.errors import RecipeError
from infra.store.commit import PARTS, entry, load_part
from infra.store.manifest import FileEntry, PartManifest, Rows
from infra.store.plan import INTERVALS, PLAN, Interval, PackedStore, Plan
from infra.store.sequences import INFO, SequencesInfo
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.documents.ids import Ids
from tasks.mix.documents import DocumentReader, Documents, Mask, load_documents
from tasks.mix.layout import Layout, Uses, lay_out
from tasks.mix.plan import finetune_intervals, pretrain_intervals
from tasks.mix.streams import Stream
from tasks.mix.write import SequenceFile, SequenceWriter
from tasks.pool import run_items

Kind = Literal["pretrain", "finetune", "held-out"]
FOLDERS: dict[Kind, str] = {"pretrain": "stages", "finetune": "finetune", "held-out": "held-out"}


@dataclass(frozen=True, eq=False)
class Packing:
    """A folder to be written: what goes in, and where it lies."""

    kind: Kind
    name: str
    layout: Layout
    loss: bool
    intervals: list[Interval] = field(default_factory=list)
    left_out: int = 0

    @property
    def store(self) -> str:
        return f"{FOLDERS[self.kind]}/{self.name}"


def run(context: StepContext, workers: int | None = None) -> None:
    """Plans, packs, writes and commits the step; ``workers`` 0: files are written in this process, without Ray."""
    recipe, store = context.recipe, context.store()
    documents = load_documents(context.store("tokenize"), context.manifest("tokenize").parts, recipe.seed)
    packings = list(Packer(context, documents).packings())
    store.need(sum(p.layout.sequences for p in packings) * recipe.mix.sequence_length * 9 // 4, "the packed sequences")
    items = [item for packing in packings for item in files(packing, documents, context)]
    for packing in packings:
        store.sweep(f"{PARTS}/{packing.store}")
    parts = run_items(context, items, SequenceWriter, workers=workers, unit="files")
    for packing in packings:  # again: a worker may have been killed in the middle of a file
        store.sweep(f"{PARTS}/{packing.store}")
    written = [load_part(store, part) for part in parts]
    made = {p.store: _packed(p, [m for m in written if m.source == p.store], context) for p in packings}
    plan = Plan(
        fingerprint=context.fingerprint,
        seed=recipe.seed,
        sequence_length=recipe.mix.sequence_length,
        vocabulary=recipe.vocabulary.model_dump(mode="json"),
        stages=[made[p.store] for p in packings if p.kind == "pretrain"],
        finetune=[made[p.store] for p in packings if p.kind == "finetune"],
        held_out={p.name: made[p.store] for p in packings if p.kind == "held-out"},
    )
    context.finish(
        parts=parts, files=_put(context, plan, packings), rows=_ledger(documents, packings), facts=_facts(plan)
    )


class Packer:
    """Turns the recipe's mixture into packings, one after another."""

    def __init__(self, context: StepContext, documents: Documents) -> None:
        self._recipe, self._documents = context.recipe, documents
        self._reader = DocumentReader(context.store("tokenize"), context.recipe.seed)
        self._fits_N = documents.lengths(np.arange(len(documents)), np.zeros(len(documents), np.int64)) <= (
            self._recipe.mix.sequence_length
        )

    def packings(self) -> Iterator[Packing]:
        """Stages, epochs, then each source's held-out documents."""
        yield from self._pretrain()
        if self._recipe.finetune_mix.sources:
            yield from self._finetune()
        for source in self._recipe.sources:
            yield self._held_out(source.name, source.kind == "messages")

    def _pretrain(self) -> Iterator[Packing]:
        mix, documents = self._recipe.mix, self._documents
        names = dict.fromkeys(n for stage in mix.stages for n, weight in stage.weights.items() if weight)
        streams = {n: self._stream(n, (documents.source_N == n) & ~documents.held_out_N) for n in names}
        for stage, intervals in zip(mix.stages, pretrain_intervals(mix, streams, documents), strict=True):
            uses = [streams[i.stream].documents(i.start, i.stop) for i in intervals]
            yield Packing("pretrain", stage.name, self._lay_out(uses), loss=False, intervals=intervals)

    def _finetune(self) -> Iterator[Packing]:
        config, documents = self._recipe.finetune_mix, self._documents
        wanted_N = np.isin(documents.source_N, config.sources) & ~documents.held_out_N
        trained_N = wanted_N & self._fits_N
        if not trained_N.any():
            raise RecipeError(
                f"finetune_mix.sources: {', '.join(config.sources)} hold no conversation to train on of at most "
                f"mix.sequence_length = {self._recipe.mix.sequence_length} tokens. Look into tokenize's ledger."
            )
        categories = np.unique(documents.category_N[trained_N]).tolist()
        streams = {c: self._stream(c, trained_N & (documents.category_N == c)) for c in categories}
        left_out = int((wanted_N & ~self._fits_N).sum())
        for epoch, intervals in enumerate(finetune_intervals(config, streams, documents)):
            uses = [streams[i.stream].documents(i.start, i.stop) for i in intervals]
            yield Packing("finetune", f"epoch-{epoch}", self._lay_out(uses), True, intervals, left_out)

    def _held_out(self, source: str, messages: bool) -> Packing:
        """Each document once, a pair once in either order: occurrences 0 and 1."""
        mix, documents = self._recipe.mix, self._documents
        held_N = (documents.source_N == source) & documents.held_out_N
        chosen_N = held_N & self._fits_N if messages else held_N
        stream = self._stream(source, chosen_N)
        index_K, _ = stream.documents(0, stream.per_pass)
        uses_K = 1 + documents.pair_N[index_K].astype(np.int64)
        index_K = np.repeat(index_K, uses_K)
        occurrence_K = np.arange(len(index_K)) - np.repeat(np.cumsum(uses_K) - uses_K, uses_K)
        enough = mix.held_out_sequences * mix.sequence_length
        count = int(np.searchsorted(np.cumsum(documents.lengths(index_K, occurrence_K)), enough)) + 1
        layout = self._lay_out([(index_K[:count], occurrence_K[:count])]).first(mix.held_out_sequences)
        left_out = int((held_N & ~chosen_N).sum())
        return Packing("held-out", source, layout, loss=messages, left_out=left_out)

    def _stream(self, name: str, chosen_N: Mask) -> Stream:
        return Stream(name, self._documents, np.flatnonzero(chosen_N), self._recipe.seed)

    def _lay_out(self, uses: list[Uses]) -> Layout:
        mix = self._recipe.mix
        return lay_out(
            uses,
            self._documents,
            self._read_ids,
            self._recipe.vocabulary,
            length=mix.sequence_length,
            window=mix.window,
            slice_sequences=mix.slice_sequences,
        )

    def _read_ids(self, index: int, occurrence: int) -> Ids:
        part = self._documents.parts[int(self._documents.part_N[index])]
        return self._reader.ids(part, int(self._documents.row_N[index]), occurrence)


def files(packing: Packing, documents: Documents, context: StepContext) -> Iterator[SequenceFile]:
    """The packing's files as work items."""
    size = context.recipe.mix.file_sequences
    for number, first in enumerate(range(0, packing.layout.sequences, size)):
        last = min(first + size, packing.layout.sequences)
        spans = packing.layout.table(documents, first, last)
        yield SequenceFile(packing.store, number, last - first, packing.loss, spans, first)


def _info(packing: Packing, context: StepContext) -> SequencesInfo:
    mix = context.recipe.mix
    return SequencesInfo(
        sequences=packing.layout.sequences,
        length=mix.sequence_length,
        file_sequences=mix.file_sequences,
        loss=packing.loss,
    )


def _packed(packing: Packing, written: list[PartManifest], context: StepContext) -> PackedStore:
    tokens: dict[str, Counter[str]] = {}
    for manifest in written:
        for source, counts in manifest.facts["tokens"].items():
            tokens.setdefault(source, Counter()).update(counts)
    used = sum(sum(counts.values()) for counts in tokens.values())
    image = sum(counts["image"] for counts in tokens.values())
    padding = sum(manifest.facts["padding"] for manifest in written)
    pieces = packing.layout.pieces
    later = pieces.first_P > 0
    split = set(zip(pieces.index_P[later].tolist(), pieces.occurrence_P[later].tolist(), strict=True))
    return PackedStore(
        name=packing.name,
        kind=packing.kind,
        folder=f"{PARTS}/{packing.store}",
        sequences=packing.layout.sequences,
        slices=packing.layout.slices,
        documents=int((~later).sum()),
        split_documents=len(split),
        cut_pictures=sum(manifest.facts["cut_pictures"] for manifest in written),
        left_out=packing.left_out,
        tokens={source: dict(tokens[source]) for source in sorted(tokens)},
        padding=padding,
        fill=used / (used + padding) if used else 0.0,
        image_share=image / used if used else 0.0,
        intervals=packing.intervals,
    )


def _put(context: StepContext, plan: Plan, packings: list[Packing]) -> list[FileEntry]:
    files = {f"{PARTS}/{p.store}/{INFO}": _info(p, context).dump() for p in packings}
    rows = [
        {"kind": packed.kind, "name": packed.name, **interval.model_dump()}
        for packed in (*plan.stages, *plan.finetune)
        for interval in packed.intervals
    ]
    files["plan.parquet"] = write_table(rows, INTERVALS)
    files[PLAN] = plan.dump()
    for name, data in files.items():
        context.store().put(name, data)
    return [entry(name, files[name]) for name in sorted(files)]


def _ledger(documents: Documents, packings: list[Packing]) -> dict[str, Rows]:
    """By source: every document is used at least once, or the plan had no place for it."""
    used_N = np.zeros(len(documents), np.bool_)
    for packing in packings:
        used_N[packing.layout.pieces.index_P] = True
    found = {}
    for source in dict.fromkeys(documents.part_sources):
        mine = used_N[documents.source_N == source]
        unused = int((~mine).sum())
        found[source] = Rows(
            entered=len(mine), out=len(mine) - unused, filtered={"not-planned": unused} if unused else {}
        )
    return found


def _facts(plan: Plan) -> dict[str, Any]:
    """What the report and the terminal show; the whole is in plan.json."""
    keep = {"name", "sequences", "documents", "split_documents", "cut_pictures", "left_out", "tokens"}
    keep |= {"padding", "fill", "image_share", "intervals"}
    return {
        "stages": [packed.model_dump(include=keep) for packed in plan.stages],
        "finetune": [packed.model_dump(include=keep) for packed in plan.finetune],
        "held_out": {name: packed.model_dump(include=keep) for name, packed in plan.held_out.items()},
    }
