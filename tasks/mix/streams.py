"""Streams: documents without end. Pass p of a stream is all its documents in an order of its own, from the seed.

The order is parts in seeded order, 16 of them at a time, and in each such group rows in seeded order: neighbouring rows
of a source are often of a kind, and a reader still goes through few parts at once.

Document ``n`` of a stream belongs to pass ``n // per_pass``, and that is its occurrence: every document is used once
before any is used again. A stage of training takes an interval of the stream; the next goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from infra.errors import RecipeError
from model.data.order import Permutation
from tasks.mix.documents import Documents, Integers

Measure = Callable[[Integers, Integers], Integers]
"""(index_K, occurrence_K) to what a quota counts of each: tokens, or answer tokens."""

SHUFFLED_PARTS = 16
"""Parts whose rows are shuffled together: as many as a reader keeps in memory."""
_PASSES = 2


class Stream:
    """One source's documents (or one category's conversations), endlessly. ``index_N`` are rows of ``documents``."""

    def __init__(self, name: str, documents: Documents, index_N: Integers, seed: int) -> None:
        self.name, self._seed = name, seed
        # The table is in part order: a part's documents are neighbours.
        self._parts = np.split(index_N, np.flatnonzero(np.diff(documents.part_N[index_N])) + 1) if len(index_N) else []
        self.per_pass = len(index_N)
        self._pass = lru_cache(maxsize=_PASSES)(self._order)

    def take(self, start: int, quota: int, measure: Measure) -> tuple[int, int]:
        """The interval from ``start`` that ends with the first document to reach ``quota``: its stop and its count."""
        counted, at = 0, start
        while counted < quota:
            number, within = divmod(at, max(1, self.per_pass))
            index_K = self._pass(number)[within:] if self.per_pass else np.zeros(0, np.int64)
            sums = counted + np.cumsum(measure(index_K, np.full(len(index_K), number)))
            if not len(sums) or (within == 0 and sums[-1] == counted):
                raise RecipeError(
                    f"{self.name}: {quota:,} tokens are wanted of it and it has no training documents with any. "
                    "Give it weight 0, or look into the scan's and tokenize's ledger for where its samples went."
                )
            reached = int(np.searchsorted(sums, quota))
            used = min(reached + 1, len(sums))
            counted, at = int(sums[used - 1]), at + used
        return at, counted

    def documents(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Index and occurrence, (K,) each, of the stream's documents ``start`` to ``stop - 1``."""
        index, occurrence = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while start < stop:
            number, within = divmod(start, self.per_pass)
            found = self._pass(number)[within : within + stop - start]
            index.append(found)
            occurrence.append(np.full(len(found), number, np.int64))
            start += len(found)
        return np.concatenate(index), np.concatenate(occurrence)

    def _order(self, number: int) -> Integers:
        parts = Permutation(len(self._parts), self._seed, "parts", self.name, number).all().tolist()
        shuffled = []
        for group in range(0, len(parts), SHUFFLED_PARTS):
            rows = np.concatenate([self._parts[part] for part in parts[group : group + SHUFFLED_PARTS]])
            shuffled.append(rows[Permutation(len(rows), self._seed, "rows", self.name, number, group).all()])
        return np.concatenate(shuffled)
