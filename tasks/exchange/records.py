"""Stored sequences in the order of training, whole or cut into their documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.storage import Storage
from infra.store.plan import PackedStore, Plan
from infra.store.sequences import Bits, SequenceReader, Tokens
from model.data.order import Order
from tasks.occurrences import track

CHUNK = 256
"""Sequences read at once."""
UNSEEN = -1
"""The position of what no training sees."""
_SIDECARS = 64
_FROM_SPAN = ("source", "part", "row", "occurrence", "first_token")


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence, or one document as it lies in a sequence (a piece, where it was too long for one)."""

    tokens_T: Tokens
    starts_K: npt.NDArray[np.int32]
    """Where documents begin in it, and the padding behind them."""
    loss_T: Bits | None
    fields: dict[str, Any]
    """``position``: of pre-training the one that ``calumma trace`` takes, of fine-tuning counted over its packed
    epochs, -1 of what no training sees. Of a document also where it came from, as in the sidecars' spans."""


def sequences(store: Storage, plan: Plan, packed: PackedStore, progress: Any = None) -> Iterator[Record]:
    """A folder's sequences in the order in which training sees them; held-out ones as they are stored."""
    reader = SequenceReader(store, packed.folder)
    for position, _, tokens_T, starts_T, loss_T in _rows(reader, plan, packed, progress):
        yield Record(tokens_T, np.flatnonzero(starts_T).astype(np.int32), loss_T, {"position": position})


def documents(store: Storage, plan: Plan, packed: PackedStore, progress: Any = None) -> Iterator[Record]:
    """The documents of those sequences, one by one, padding left out."""
    reader = SequenceReader(store, packed.folder)

    @lru_cache(maxsize=_SIDECARS)
    def spans(file: int) -> tuple[Any, npt.NDArray[np.int64]]:
        table = reader.spans(file)
        return table, table["sequence"].to_numpy()

    for position, sequence, tokens_T, _, loss_T in _rows(reader, plan, packed, progress):
        table, numbers = spans(sequence // reader.info.file_sequences)
        first, last = np.searchsorted(numbers, [sequence, sequence + 1])
        for span in table.slice(first, last - first).to_pylist():
            here = slice(span["offset"], span["offset"] + span["length"])
            fields = {"position": position, **{name: span[name] for name in _FROM_SPAN}}
            yield Record(tokens_T[here], np.zeros(1, np.int32), None if loss_T is None else loss_T[here], fields)


def _rows(
    reader: SequenceReader, plan: Plan, packed: PackedStore, progress: Any
) -> Iterator[tuple[int, int, Tokens, Bits, Bits | None]]:
    """(position, number within the folder, ids, starts, loss bits) of every sequence."""
    folders = {"pretrain": plan.stages, "finetune": plan.finetune}.get(packed.kind, [])
    order = Order([(folder.name, folder.slices) for folder in folders], plan.seed)
    before = order.stage_span(order.names.index(packed.name))[0] if folders else 0
    chunks = range(0, len(reader), CHUNK)
    for start in track(chunks, len(chunks), packed.name, progress):
        places = np.arange(start, min(start + CHUNK, len(reader)))
        numbers = order.locate(before + places)[1] if folders else places
        tokens_BT, starts_BT, loss_BT = reader.read(numbers.tolist())
        for row, sequence in enumerate(numbers.tolist()):
            position = before + start + row if folders else UNSEEN
            yield position, sequence, tokens_BT[row], starts_BT[row], None if loss_BT is None else loss_BT[row]
