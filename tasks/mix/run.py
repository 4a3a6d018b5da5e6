"""The step ``mix``: plans the stages, packs documents into sequences, writes them.

The folder it makes::

    plan.json, plan.parquet, mixture.png      the plan; the loader starts from plan.json
    parts/index/SOURCE-000000.parquet         pass 1, lengths: what is known of a group of documents without its ids
    parts/layout/stages/STAGE/000000.parquet  pass 1, layout: what lies where in a slice
    parts/stages/STAGE/seq-000000.u16 …       pass 2: pre-training (infra/store/sequences.py)
    parts/finetune/epoch-0/seq-000000.u16 …   fine-tuning, with loss bits
    parts/held-out/SOURCE/seq-000000.u16 …    what no training sees

Groups, slices, files and the ledger's items are work items over the pool, each made from what was committed before it.
This process holds sums: some numbers a group, slice and file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from infra.store.commit import PARTS, entry, load_parts
from infra.store.manifest import FileEntry, PartManifest
from infra.store.plan import INTERVALS, PLAN, PackedStore, Plan
from infra.store.sequences import INFO, SequencesInfo
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.mix.account import Accountant, account_items
from tasks.mix.index import Indexer, conditions, group_items, load_group
from tasks.mix.layout import LayoutMaker
from tasks.mix.packings import Packing, Packings, Streams, slices_of
from tasks.mix.show import bars
from tasks.mix.write import SequenceFile, SequenceWriter, Stretch
from tasks.pool import Item, Worker, run_items

SMALL = 200_000
"""Documents for which lengths, layout and ledger are worked out in this process: starting workers takes longer."""
PICTURE = "mixture.png"


def run(context: StepContext, workers: int | None = None) -> None:
    """Plans, packs, writes and commits the step; ``workers`` 0: everything in this process, without Ray."""
    recipe, store = context.recipe, context.store()
    documents = context.manifest("tokenize")
    small = sum(rows.out for rows in documents.rows.values()) <= SMALL

    def work(items: Sequence[Item], worker: Callable[[StepContext], Worker], unit: str, light: bool) -> list[str]:
        return run_items(context, items, worker, workers=0 if light and small else workers, unit=unit)

    for source in recipe.sources:
        conditions(context, source.name)  # a misspelt column ends the step here, not in a worker
    groups = list(group_items(documents.parts, recipe.seed))
    index = work(groups, Indexer, "groups", light=True)
    load = lru_cache(maxsize=8)(lambda part: load_group(context, part))
    streams = Streams.of(load_parts(store, index), recipe, load)
    packings = Packings(recipe, streams).all()
    slices = {packing.store: slices_of(packing, recipe.mix) for packing in packings}
    layouts = work([item for items in slices.values() for item in items], LayoutMaker, "slices", light=True)
    for packing in packings:
        packing.laid_out([m.facts for m in load_parts(store, [item.part for item in slices[packing.store]])])
    store.need(sum(p.sequences for p in packings) * recipe.mix.sequence_length * 9 // 4, "the packed sequences")
    files = [item for packing in packings for item in files_of(packing, context)]
    _sweep(context, packings)
    written = work(files, SequenceWriter, "files", light=False)
    _sweep(context, packings)  # again: a worker may have been killed in the middle of a file
    items = account_items(streams.groups, streams.used(packings), streams.held_out(packings))
    accounts = work(items, Accountant, "groups", light=True)
    made = _packed(packings, load_parts(store, written))
    plan = Plan(
        fingerprint=context.fingerprint,
        seed=recipe.seed,
        sequence_length=recipe.mix.sequence_length,
        vocabulary=recipe.vocabulary.model_dump(mode="json"),
        stages=[made[p.store] for p in packings if p.kind == "pretrain"],
        finetune=[made[p.store] for p in packings if p.kind == "finetune"],
        held_out={p.name: made[p.store] for p in packings if p.kind == "held-out"},
    )
    parts = [*index, *layouts, *written, *accounts]
    context.finish(parts=parts, files=_put(context, plan, packings), facts=_facts(plan))


def files_of(packing: Packing, context: StepContext) -> Iterator[SequenceFile]:
    """The packing's files as work items: each with the stretches of slices that it holds."""
    size = context.recipe.mix.file_sequences
    borders = [0, *accumulate(packing.slices)]
    for number, first in enumerate(range(0, packing.sequences, size)):
        last = min(first + size, packing.sequences)
        stretches = []
        for at in range(bisect_right(borders, first) - 1, bisect_left(borders, last)):
            begin = borders[at]
            start, stop = max(first, begin) - begin, min(last, borders[at + 1]) - begin
            if start < stop:  # not of a slice without sequences
                stretches.append(Stretch(packing.layouts[at], begin, start, stop))
        yield SequenceFile(packing.store, number, first, last - first, packing.loss, tuple(stretches))


def _sweep(context: StepContext, packings: Sequence[Packing]) -> None:
    for folder in ("index", *(f"layout/{p.store}" for p in packings), *(p.store for p in packings)):
        context.store().sweep(f"{PARTS}/{folder}")


def _packed(packings: Sequence[Packing], written: Iterator[PartManifest]) -> dict[str, PackedStore]:
    """What was written, by store."""
    tokens: dict[str, dict[str, Counter[str]]] = {p.store: {} for p in packings}
    sums: dict[str, Counter[str]] = {p.store: Counter() for p in packings}
    for manifest in written:
        for source, counts in manifest.facts["tokens"].items():
            tokens[manifest.source].setdefault(source, Counter()).update(counts)
        sums[manifest.source].update({k: manifest.facts[k] for k in ("padding", "cut_pictures")})
    found = {}
    for packing in packings:
        by_source, padding = tokens[packing.store], sums[packing.store]["padding"]
        used = sum(sum(counts.values()) for counts in by_source.values())
        image = sum(counts["image"] for counts in by_source.values())
        found[packing.store] = PackedStore(
            name=packing.name,
            kind=packing.kind,
            folder=f"{PARTS}/{packing.store}",
            sequences=packing.sequences,
            slices=packing.slices,
            documents=packing.documents,
            split_documents=packing.split_documents,
            cut_pictures=sums[packing.store]["cut_pictures"],
            left_out=packing.left_out,
            tokens={source: dict(by_source[source]) for source in sorted(by_source)},
            padding=padding,
            fill=used / (used + padding) if used else 0.0,
            image_share=image / used if used else 0.0,
            intervals=packing.intervals,
        )
    return found


def _put(context: StepContext, plan: Plan, packings: Sequence[Packing]) -> list[FileEntry]:
    mix = context.recipe.mix
    files = {
        f"{PARTS}/{p.store}/{INFO}": SequencesInfo(
            sequences=p.sequences, length=mix.sequence_length, file_sequences=mix.file_sequences, loss=p.loss
        ).dump()
        for p in packings
    }
    rows = [
        {"kind": packed.kind, "name": packed.name, **interval.model_dump()}
        for packed in (*plan.stages, *plan.finetune)
        for interval in packed.intervals
    ]
    files["plan.parquet"] = write_table(rows, INTERVALS, checksums=True)
    files[PICTURE] = bars(plan)
    files[PLAN] = plan.dump()
    for name, data in files.items():
        context.store().put(name, data)
    return [entry(name, files[name]) for name in sorted(files)]


def _facts(plan: Plan) -> dict[str, Any]:
    """What the report and the terminal show; the whole is in plan.json."""
    keep = {"name", "sequences", "documents", "split_documents", "cut_pictures", "left_out", "tokens"}
    keep |= {"padding", "fill", "image_share", "intervals"}
    return {
        "stages": [packed.model_dump(include=keep) for packed in plan.stages],
        "finetune": [packed.model_dump(include=keep) for packed in plan.finetune],
        "held_out": {name: packed.model_dump(include=keep) for name, packed in plan.held_out.items()},
    }
