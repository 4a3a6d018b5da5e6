"""Accounts: how many tokens of each source and modality any step sees, from the plan and the sidecars alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.storage import Storage
from infra.store.plan import PackedStore, load_plan
from infra.store.sequences import SequenceReader
from model.data.order import Order

Counts = dict[str, dict[str, int]]
"""By source: ``text`` (control ids included) and ``image`` (BOI, codes, EOI)."""

_FILES = 8
"""Sidecars kept in memory."""


class Account:
    """The accounts of one run (``pretrain`` or ``finetune``) of a mix step's folder."""

    def __init__(self, mix_store: Storage, run: str) -> None:
        plan = load_plan(mix_store)
        self._folders: list[PackedStore] = plan.stages if run == "pretrain" else plan.finetune
        self._readers = [SequenceReader(mix_store, folder.folder, verify=False) for folder in self._folders]
        self.order = Order([(folder.name, folder.slices) for folder in self._folders], plan.seed)
        self._spans = lru_cache(maxsize=_FILES)(self._load)

    def step(self, step: int, batch: int) -> Counts:
        """A step's tokens when nothing is skipped; ``batch`` is the global batch in sequences."""
        return self.positions(self.order.step(step, batch))

    def positions(self, positions: Iterable[int]) -> Counts:
        """The tokens of any positions of the run."""
        by_stage: dict[int, list[int]] = {}
        for position in positions:
            by_stage.setdefault(self.order.stage_of(position), []).append(position)
        counts: Counts = {}
        for stage, chosen in sorted(by_stage.items()):
            _, sequences = self.order.locate(chosen)
            file_sequences = self._readers[stage].info.file_sequences
            for sequence in np.sort(sequences).tolist():
                table, number = self._spans(stage, sequence // file_sequences)
                first, last = np.searchsorted(number, [sequence, sequence + 1])
                for row in table.slice(first, last - first).to_pylist():
                    here = counts.setdefault(row["source"], {"text": 0, "image": 0})
                    here["image"] += row["image_tokens"]
                    here["text"] += row["length"] - row["image_tokens"]
        return dict(sorted(counts.items()))

    def _load(self, stage: int, file: int) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        table = self._readers[stage].spans(file).select(["sequence", "source", "length", "image_tokens"])
        return table, table["sequence"].to_numpy()
