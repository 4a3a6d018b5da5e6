"""Step ``select``: across each whole source, which of the samples that ``scan`` kept are used.

First the removal list, then exact duplicates, then (if asked for) perceptual ones; of several equal samples the one
with the lowest id stays, so the choice does not depend on order, work items or workers. A source's ids and hashes are
held in memory together: 48 bytes a sample, 56 with perceptual hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import SourceError
from infra.store.commit import PARTS
from infra.store.manifest import Rows
from infra.store.tables import read_table, write_table
from tasks.context import StepContext
from tasks.pool import PartOutput, run_items
from tasks.scan.config import SelectConfig
from tasks.scan.selected import work_items
from tasks.scan.tables import KEPT, SCAN, SELECT
from tasks.sources.base import WorkItem
from tasks.sources.config import Kind

KEEP, REMOVED, EXACT, PERCEPTUAL = range(4)
REASONS = ("", "removed", "exact", "perceptual")

Ids = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The kept samples of a source (or of one part), in source order; n of them."""

    ids: Ids
    """(n,) of 16 bytes."""
    contents: Ids
    """(n,) of 32 bytes."""
    phashes: npt.NDArray[np.uint64] | None
    """(n,), pairs only, where perceptual duplicates are wanted."""


def choose(candidates: Candidates, config: SelectConfig, removal: Ids) -> npt.NDArray[np.int8]:
    """What becomes of each candidate: KEEP, REMOVED, EXACT or PERCEPTUAL; (n,) int8."""
    fate = np.full(len(candidates.ids), KEEP, dtype=np.int8)
    fate[np.isin(candidates.ids, removal)] = REMOVED
    if config.exact_duplicates:
        _drop_repeats(fate, candidates.ids, candidates.contents, EXACT)
    if config.perceptual_duplicates and candidates.phashes is not None:
        _drop_repeats(fate, candidates.ids, candidates.phashes, PERCEPTUAL)
    return fate


def read_removal_list(path: Path) -> Ids:
    """The ids of a removal list: 32 hex digits a line; empty lines and ``#`` comments are passed over."""
    found = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b"?"
        if text and len(value) != 16:
            raise SourceError(f"{path}:{number}: {text[:60]!r} is not a sample id; expected 32 hex digits")
        if text:
            found.append(value)
    return np.array(found, dtype="S16")


class SelectWorker:
    """Writes the decisions of one part; they were made for the whole source before."""

    def __init__(self, fates: dict[str, tuple[Ids, npt.NDArray[np.int8]]], removal_name: str) -> None:
        self._fates, self._removal_name = fates, removal_name

    def process(self, item: WorkItem) -> PartOutput:
        ids, fate = self._fates[item.part]
        raw_ids = ids.tobytes()
        rows = [
            {"sample_id": raw_ids[16 * i : 16 * i + 16], "keep": bool(f == KEEP), "reason": REASONS[f]}
            for i, f in enumerate(fate.tolist())
        ]
        counts = Counter(fate.tolist())
        ledger = Rows(
            entered=len(fate),
            out=counts[KEEP],
            duplicate={REASONS[f]: counts[f] for f in (EXACT, PERCEPTUAL) if counts[f]},
            removed={self._removal_name: counts[REMOVED]} if counts[REMOVED] else {},
        )
        return PartOutput(item.part, item.source, {f"{item.part}.parquet": write_table(rows, SELECT)}, ledger)


def run(context: StepContext) -> None:
    """Selects in the job's process: it is sorting, and a source's hashes must be seen together."""
    config = context.recipe.select
    path = None if config.removal_list is None else Path(context.recipe.folder) / config.removal_list
    removal = np.array([], dtype="S16") if path is None else read_removal_list(path)
    items = work_items(context)
    fates: dict[str, tuple[Ids, npt.NDArray[np.int8]]] = {}
    for source in context.recipe.sources:
        own = [item for item in items if item.source == source.name]
        parts = [_candidates(context, item, source.kind, config) for item in own]
        whole = _joined(parts)
        _refuse_equal_ids(source.name, whole.ids)
        fate = choose(whole, config, removal)
        ends = np.cumsum([len(p.ids) for p in parts]).tolist()
        for item, part, end in zip(own, parts, ends, strict=True):
            fates[item.part] = (part.ids, fate[end - len(part.ids) : end])
    worker = SelectWorker(fates, PurePath(config.removal_list or "").name)
    context.finish(parts=run_items(context, items, lambda _: worker, workers=0))


def _drop_repeats(fate: npt.NDArray[np.int8], ids: Ids, values: npt.NDArray[Any], reason: int) -> None:
    """Of the candidates still kept, marks all but the lowest id of each group of equal values."""
    (alive,) = np.nonzero(fate == KEEP)
    order = alive[np.lexsort((ids[alive], values[alive]))]
    fate[order[1:][values[order[1:]] == values[order[:-1]]]] = reason


def _candidates(context: StepContext, item: WorkItem, kind: Kind, config: SelectConfig) -> Candidates:
    store, name = context.store("scan"), f"{PARTS}/{item.part}.parquet"
    wanted = kind == "pairs" and config.perceptual_duplicates
    columns = ["sample_id", "state", "content", *(["images"] if wanted else [])]
    table = read_table(store.get(name), SCAN, store.url(name), columns)
    table = table.filter(pc.equal(table["state"], KEPT))
    phashes = None
    if wanted:  # a kept pair has exactly one picture
        phashes = pc.struct_field(pc.list_flatten(table["images"]), "phash").to_numpy().astype(np.uint64)
    return Candidates(_fixed(table["sample_id"], 16), _fixed(table["content"], 32), phashes)


def _joined(parts: Sequence[Candidates]) -> Candidates:
    phashes = [p.phashes for p in parts if p.phashes is not None]
    return Candidates(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.contents for p in parts]),
        np.concatenate(phashes) if phashes else None,
    )


def _fixed(column: pa.ChunkedArray, width: int) -> Ids:
    """A fixed-size binary column as (n,) of that many bytes, copied once."""
    data = b"".join(column.to_pylist())
    return np.frombuffer(data, dtype=f"S{width}")


def _refuse_equal_ids(source: str, ids: Ids) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        example = unique[counts > 1][:1].tobytes().hex()
        raise SourceError(
            f"source {source}: {len(ids) - len(unique)} samples have the key of another (first id {example}). "
            "A reader must give every sample its own key; see tasks/sources/base.py."
        )
