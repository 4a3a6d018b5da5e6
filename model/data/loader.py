"""The loader: global batches of packed sequences, the same for any number of ranks, resumable from a few numbers.

Three lines in a notebook::

    from infra.storage import Storage
    from model.data.loader import SequenceLoader
    batch = next(iter(SequenceLoader(Storage("work/mix/0123456789ab"), "pretrain", batch=8)))

Shape suffixes: B sequences of a micro-batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.plan import PackedStore, Plan, load_plan
from infra.store.sequences import Bits, SequenceReader, Tokens
from model.data.order import Order
from model.vocabulary import FIRST_IMAGE_CODE, PAD, Vocabulary

IGNORE = -100
"""The label of a position that must not count."""

Run = Literal["pretrain", "finetune"]
Batch = dict[str, torch.Tensor]


def make_batch(
    tokens_BT: Tokens, starts_BT: Bits, loss_BT: Bits | None, sequences_B: npt.ArrayLike, vocabulary: Vocabulary
) -> Batch:
    """What the model is given, from what the store holds.

    - ``tokens`` (B, T) int64;
    - ``labels`` (B, T) int64, already shifted: the id that the position must predict, ``IGNORE`` where that is in
      another document, padding, past the end, or switched off by its loss bit;
    - ``documents`` (B, T) int32: number of the document within the sequence, -1 on padding;
    - ``positions`` (B, T) int64: from 0 in each document;
    - ``image`` (B, T) bool: the label is a picture's token (BOI, a code, EOI);
    - ``sequences`` (B,) int64: number of the sequence in its folder, -1 for one that is all padding.
    """
    padding_BT = tokens_BT == PAD  # documents never hold <pad>
    index_T = np.arange(tokens_BT.shape[1])
    documents_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32) - np.int32(1)
    positions_BT = index_T - np.maximum.accumulate(np.where(starts_BT, index_T, 0), axis=1)
    counts_BT = ~starts_BT[:, 1:] & ~padding_BT[:, 1:]
    if loss_BT is not None:
        counts_BT &= loss_BT[:, 1:]
    labels_BT = np.full(tokens_BT.shape, IGNORE, np.int64)
    labels_BT[:, :-1][counts_BT] = tokens_BT[:, 1:][counts_BT]
    documents_BT[padding_BT] = -1
    return {
        "tokens": torch.from_numpy(tokens_BT.astype(np.int64)),
        "labels": torch.from_numpy(labels_BT),
        "documents": torch.from_numpy(documents_BT),
        "positions": torch.from_numpy(positions_BT),
        "image": torch.from_numpy((labels_BT >= FIRST_IMAGE_CODE) & (labels_BT <= vocabulary.boi)),
        "sequences": torch.from_numpy(np.array(sequences_B, np.int64)),
    }


class SequenceLoader:
    """Iterates over one rank's micro-batches of a run, from a state to the run's end.

    Every global batch is ``batch`` sequences of one stage, filled up with all-padding sequences where the stage ends or
    where ``world * micro_batch`` does not divide it: a step is always ``accumulation`` micro-batches on every rank. Row
    ``i`` of the global batch goes to rank ``i mod world``.
    """

    def __init__(
        self,
        mix_store: Storage,
        run: Run,
        batch: int,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        epochs: int | None = None,
        verify: bool = True,
    ) -> None:
        """``epochs`` of fine-tuning; None: those that were packed. Beyond them, epoch e goes through packing
        e mod (packed epochs) again, in an order of its own."""
        self.plan = load_plan(mix_store)
        self.run, self.batch, self.rank, self.world = run, batch, rank, world
        self.vocabulary = Vocabulary.model_validate(self.plan.vocabulary)
        self._folders = _folders(self.plan, run, epochs, mix_store)
        self._readers = [SequenceReader(mix_store, folder.folder, verify=verify) for folder in self._folders]
        for folder, reader in zip(self._folders, self._readers, strict=True):
            if len(reader) != folder.sequences or reader.info.length != self.plan.sequence_length:
                raise StoreError(
                    f"{mix_store.root}/{folder.folder}: {len(reader)} sequences of {reader.info.length}; the plan says "
                    f"{folder.sequences} of {self.plan.sequence_length}. Delete the step's folder and run `mix` again."
                )
        self.order = Order([(folder.name, folder.slices) for folder in self._folders], self.plan.seed)
        rows = -(-batch // world)
        self.micro_batch = min(micro_batch or rows, rows)
        self.accumulation = -(-rows // self.micro_batch)
        """Micro-batches a step."""
        self.steps = self.order.steps(batch)
        """Steps of the whole run when nothing is skipped."""
        self.consumed = 0
        """Positions consumed by the steps whose micro-batches have all been handed out."""
        self.skipped: list[tuple[int, int]] = []
        """Intervals of positions (start, stop) that are passed over."""
        self.stage = self._folders[0].name
        """Name of the stage that the last batch came from."""
        if state is not None:
            self.load_state_dict(state)

    @property
    def sequence_length(self) -> int:
        return self.plan.sequence_length

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, ``accumulation`` of them a step. The state moves on with the last one of each step."""
        while (found := self.order.next_batch(self.consumed, self.batch, self.skipped)) is not None:
            positions, cursor = found
            stage, sequences_N = self.order.locate(positions)
            mine_B = _share(sequences_N, self.rank, self.world, self.accumulation * self.micro_batch)
            for number in range(self.accumulation):
                chosen = mine_B[number * self.micro_batch : (number + 1) * self.micro_batch]
                micro = _read(self._readers[stage], chosen, self.vocabulary)
                if number == self.accumulation - 1:  # before the yield: a checkpoint is taken while we wait in it
                    self.consumed, self.stage = cursor, self._folders[stage].name
                yield micro

    def skip(self, start: int, stop: int) -> None:
        """Passes over positions ``start`` to ``stop - 1``, say those of a loss spike; from now on part of the state."""
        if not 0 <= start < stop:
            raise RecipeError(f"skip({start}, {stop}): expected 0 <= start < stop")
        self.skipped = sorted({*self.skipped, (start, stop)})

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, as plain JSON: the plan, the run, the position, the skipped intervals."""
        return {
            "plan": self.plan.fingerprint,
            "run": self.run,
            "consumed": self.consumed,
            "skipped": [list(interval) for interval in self.skipped],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state was taken; StoreError if that was in another plan or run."""
        for key, here in (("plan", self.plan.fingerprint), ("run", self.run)):
            if state[key] != here:
                raise StoreError(
                    f"the checkpoint's loader state has {key} {state[key]!r}; the {key} given now is {here!r}. Go on "
                    "with the recipe and sources it was made with, or start this training anew from step 0."
                )
        consumed = int(state["consumed"])
        if not 0 <= consumed <= len(self.order):
            raise StoreError(f"the loader state is at position {consumed}; this run has {len(self.order)} sequences")
        self.consumed = consumed
        self.skipped = [(int(start), int(stop)) for start, stop in state["skipped"]]


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
    batches = -(-count // (batch * world))
    mine_B = _share(np.arange(count), rank, world, batches * batch)
    vocabulary = Vocabulary.model_validate(plan.vocabulary)
    for start in range(0, batches * batch, batch):
        yield _read(reader, mine_B[start : start + batch], vocabulary)


def _folders(plan: Plan, run: Run, epochs: int | None, store: Storage) -> list[PackedStore]:
    packed = plan.stages if run == "pretrain" else plan.finetune
    if not any(folder.sequences for folder in packed):
        raise StoreError(f"{store.root}: the plan holds no sequences for a {run} run")
    if run == "pretrain" or epochs is None:
        return packed
    return [packed[e % len(packed)].model_copy(update={"name": f"epoch-{e}"}) for e in range(epochs)]


def _share(sequences_N: npt.NDArray[np.int64], rank: int, world: int, size: int) -> npt.NDArray[np.int64]:
    """The rank's rows of a global batch, filled up with -1 (all padding) to ``size``."""
    mine = np.full(size, -1, np.int64)
    rows = sequences_N[rank::world]
    mine[: len(rows)] = rows
    return mine


def _read(reader: SequenceReader, sequences_B: npt.NDArray[np.int64], vocabulary: Vocabulary) -> Batch:
    shape = (len(sequences_B), reader.info.length)
    tokens_BT = np.full(shape, PAD, np.uint16)
    starts_BT = np.zeros(shape, np.bool_)
    starts_BT[:, 0] = True
    loss_BT = np.zeros(shape, np.bool_) if reader.info.loss else None
    for row, sequence in enumerate(sequences_B.tolist()):
        if sequence >= 0:
            tokens_BT[row], starts_BT[row], loss = reader.sequence(sequence)
            if loss_BT is not None and loss is not None:
                loss_BT[row] = loss
    return make_batch(tokens_BT, starts_BT, loss_BT, sequences_B, vocabulary)
