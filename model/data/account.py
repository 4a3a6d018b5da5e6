"""Accounts: how many tokens of each source and modality any step sees, from the plan and the sidecars alone.

Shape suffixes: N sequences asked for, R spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from infra.storage import Storage
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from model.data.order import Integers, Order
from model.data.stages import Run, stages_of
from model.data.steps import BatchSizes, Steps

Counts = dict[str, dict[str, int]]
"""By source: ``text`` (control ids included) and ``image`` (BOI, codes, EOI)."""

_FILES = 64
"""Sidecars kept in memory; a slice of the full-size store has 32."""


@dataclass(frozen=True, slots=True)
class _Spans:
    """A sidecar's columns; its rows are in the order of the sequences."""

    sources: list[str]
    sequence_R: Integers
    source_R: Integers
    image_R: Integers
    length_R: Integers


class Account:
    """The accounts of one run (``pretrain`` or ``finetune``) of a mix step's folder.

    ``epochs`` as the loader's: of fine-tuning, None for those that were packed; and its errors.
    """

    def __init__(self, mix_store: Storage, run: Run, epochs: int | None = None) -> None:
        plan = load_plan(mix_store)
        self._folders = stages_of(plan, run, epochs, mix_store)
        readers = {f.folder: SequenceReader(mix_store, f.folder, verify=False) for f in self._folders}
        self._readers = [readers[folder.folder] for folder in self._folders]
        self.order = Order([(folder.name, folder.slices) for folder in self._folders], plan.seed)
        self._spans = lru_cache(maxsize=_FILES)(self._load)

    def steps(self, batch: int | BatchSizes, skipped: Sequence[tuple[int, int]] = ()) -> Steps:
        """The run's steps; ``batch`` is the global batch in sequences, ``skipped`` as in the loader's state."""
        return Steps(self.order, BatchSizes.of(batch), skipped)

    def step(self, number: int, batch: int | BatchSizes, skipped: Sequence[tuple[int, int]] = ()) -> Counts:
        """A step's tokens."""
        steps = self.steps(batch, skipped)
        return self.positions(steps.positions(np.arange(steps[number].start, steps[number].stop)))

    def positions(self, positions: npt.ArrayLike) -> Counts:
        """The tokens of any positions of the run."""
        x_N = np.asarray(positions, np.int64)
        counts: Counts = {}
        for stage in range(len(self._folders)):
            first, last = self.order.stage_span(stage)
            here_N = x_N[(first <= x_N) & (x_N < last)]
            if not here_N.size:
                continue
            sequences_N = np.sort(self.order.locate(here_N)[1])
            files_N = sequences_N // self._readers[stage].info.file_sequences
            for file in np.unique(files_N).tolist():
                self._add(counts, self._spans(self._readers[stage], file), sequences_N[files_N == file])
        return {source: counts[source] for source in sorted(counts)}

    def _add(self, counts: Counts, spans: _Spans, sequences_N: Integers) -> None:
        first_N, last_N = np.searchsorted(spans.sequence_R, [sequences_N, sequences_N + 1])
        rows = np.concatenate([np.arange(a, b) for a, b in zip(first_N.tolist(), last_N.tolist(), strict=True)])
        source_R, total = spans.source_R[rows], len(spans.sources)
        image = np.bincount(source_R, spans.image_R[rows], total)
        length = np.bincount(source_R, spans.length_R[rows], total)
        for number, source in enumerate(spans.sources):
            if length[number]:
                here = counts.setdefault(source, {"text": 0, "image": 0})
                here["image"] += int(image[number])
                here["text"] += int(length[number] - image[number])

    def _load(self, reader: SequenceReader, file: int) -> _Spans:
        table = reader.spans(file).select(["sequence", "source", "length", "image_tokens"])
        source = pc.dictionary_encode(table["source"].combine_chunks())
        numbers = (table[name].to_numpy().astype(np.int64) for name in ("sequence", "image_tokens", "length"))
        sequence_R, image_R, length_R = numbers
        return _Spans(
            source.dictionary.to_pylist(), sequence_R, source.indices.to_numpy().astype(np.int64), image_R, length_R
        )
