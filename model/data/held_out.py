"""Held-out sequences: in stored order, shared evenly by the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from model.data.batch import Batch, read_batch
from model.vocabulary import Vocabulary


def held_out_sources(mix_store: Storage) -> list[str]:
    """The sources that have held-out sequences."""
    return sorted(name for name, packed in load_plan(mix_store).held_out.items() if packed.sequences)


def held_out(
    mix_store: Storage, source: str, limit: int | None = None, *, batch: int = 8, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """A source's held-out sequences, the first ``limit``, in stored order; every rank gets as many batches.

    ``batch`` sequences a batch and rank; the last ones are filled up with all-padding sequences.
    """
    plan = load_plan(mix_store)
    if source not in plan.held_out:
        raise StoreError(f"{mix_store.root}: no held-out sequences of {source!r}; there are {sorted(plan.held_out)}")
    reader = SequenceReader(mix_store, plan.held_out[source].folder)
    count = len(reader) if limit is None else min(limit, len(reader))
    rows = -(-count // (batch * world)) * batch
    mine_N = np.full(rows, -1, np.int64)
    share_N = np.arange(count)[rank::world]
    mine_N[: len(share_N)] = share_N
    vocabulary = Vocabulary.model_validate(plan.vocabulary)
    for start in range(0, rows, batch):
        yield read_batch(reader, mine_N[start : start + batch], vocabulary)
