"""Streams: documents without end. Pass p of a stream is all its documents in an order of its own, from the seed.

The order is groups in seeded order, and inside each group rows in seeded order: neighbouring rows of a source are often
of a kind, and a reader still goes through few parts at once. Document ``n`` of a stream belongs to pass
``n // per_pass``, and that is its occurrence: every document is used once before any is used again. A stage of training
takes an interval of the stream; the next goes on from there.

All sums come from the groups' totals; a group's documents are looked at only where an interval begins or ends in it. So
the planner holds a few numbers a group, whatever the corpus.

Shape suffixes: G groups, R runs (a group in a pass), K documents.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from model.data.order import Permutation
from tasks.mix.group import Group, Integers

Measure = Literal["tokens", "answer_tokens"]
"""What a quota counts."""
Load = Callable[[str], Group]
"""A group by the name of its index part."""
_PASSES = 4


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the first so many documents of a stream."""

    tokens: int = 0
    image_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, n) - getattr(other, n) for n in self.__slots__))


@dataclass(frozen=True, slots=True)
class Run:
    """A group's documents in one pass."""

    group: str
    """Name of the index part."""
    number: int
    """Of the group within the stream."""
    turn: int
    """The pass, and so the documents' occurrence."""
    first: int
    """Number of its first document in the stream."""
    tokens: int
    """Of the stream before that document, counted from where an interval begins; below 0 if it begins inside."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass: groups in their order, and what lies before each, (G + 1,)."""

    order_G: Integers
    documents: Integers
    tokens: Integers
    image_tokens: Integers
    answer_tokens: Integers


class Stream:
    """One source's documents (or one category's conversations), endlessly."""

    def __init__(
        self, name: str, key: str, groups: Sequence[tuple[str, Mapping[str, Any]]], load: Load, seed: int
    ) -> None:
        """``groups``: index parts that hold documents of the stream ``key``, each with its totals."""
        self.name, self.key, self._load, self._seed = name, key, load, seed
        self.groups = tuple(part for part, _ in groups)
        totals = [found for _, found in groups]
        self._documents_G, self._image_G, self._answer_G = (
            np.array([t[n] for t in totals], np.int64) for n in ("documents", "image_tokens", "answer_tokens")
        )
        captions = sorted({int(n) for t in totals for n in t["sums"]})
        self._sums = {n: np.array([t["sums"].get(str(n), [0] * n) for t in totals], np.int64) for n in captions}
        self.per_pass = int(self._documents_G.sum())
        self._image, self._answer = int(self._image_G.sum()), int(self._answer_G.sum())
        self._pass = lru_cache(maxsize=_PASSES)(self._order)
        # Of documents with n captions: tokens of the first 0 to n passes, in Python's numbers, which have no end.
        self._turns = {n: [0, *accumulate(sums.sum(axis=0).tolist())] for n, sums in self._sums.items()}

    def tokens_of_pass(self, number: int) -> int:
        """Tokens of a whole pass; captions take turns, so that passes differ."""
        return sum(int(sums[:, number % n].sum()) for n, sums in self._sums.items())

    @property
    def supply(self) -> Totals:
        """Everything once: pass 0."""
        return Totals(self.tokens_of_pass(0), self._image, self._answer)

    def prefix(self, count: int) -> Totals:
        """Sums over the stream's documents 0 to ``count - 1``."""
        if count == 0:
            return Totals()
        number, within = divmod(count, self.per_pass)
        found = self._passes_before(number)
        if not within:
            return found
        here = self._pass(number)
        place = int(np.searchsorted(here.documents, within, side="right")) - 1
        found += Totals(int(here.tokens[place]), int(here.image_tokens[place]), int(here.answer_tokens[place]))
        if (rest := within - int(here.documents[place])) == 0:
            return found
        index_K, length_K, group = self._documents_of(number, place)
        index_K = index_K[:rest]
        return found + Totals(
            int(length_K[: len(index_K)].sum()),
            int(group.image_tokens_N[index_K].sum()),
            int(group.answer_tokens_N[index_K].sum()),
        )

    def take(self, start: int, quota: int, measure: Measure) -> int:
        """Where the interval from ``start`` stops that ends with the first document to reach ``quota``."""
        if quota <= 0:
            return start
        if not getattr(self.supply, measure):
            raise ValueError(f"{self.name}: {quota:,} {measure} of a stream without any")
        target = getattr(self.prefix(start), measure) + quota
        first = start // self.per_pass
        most = first + 1 + target * max(self._turns)  # one at least is counted each time that all turns come again
        number = first + bisect_left(
            range(first, most), target, key=lambda turn: getattr(self._passes_before(turn + 1), measure)
        )
        rest = target - getattr(self._passes_before(number), measure)
        here = self._pass(number)
        place = int(np.searchsorted(getattr(here, measure), rest)) - 1
        rest -= int(getattr(here, measure)[place])
        index_K, length_K, group = self._documents_of(number, place)
        counted_K = np.cumsum(length_K if measure == "tokens" else group.answer_tokens_N[index_K])
        within = int(here.documents[place]) + int(np.searchsorted(counted_K, rest)) + 1
        return number * self.per_pass + within

    def runs(self, start: int, stop: int) -> list[Run]:
        """The runs that hold the documents ``start`` to ``stop - 1``, in order."""
        found: list[Run] = []
        if start >= stop:
            return found
        begin = self.prefix(start).tokens
        for number in range(start // self.per_pass, -(-stop // self.per_pass)):
            here, base = self._pass(number), number * self.per_pass
            before = self._passes_before(number).tokens - begin
            first = int(np.searchsorted(here.documents, start - base, side="right")) - 1
            last = int(np.searchsorted(here.documents, stop - base))
            for place in range(max(0, first), min(last, len(here.order_G))):
                group = int(here.order_G[place])
                at, tokens = base + int(here.documents[place]), before + int(here.tokens[place])
                found.append(Run(self.groups[group], group, number, at, tokens))
        return found

    def firsts(self) -> dict[str, int]:
        """By group, the number of its first document in pass 0."""
        here = self._pass(0)
        return {self.groups[g]: int(n) for g, n in zip(here.order_G.tolist(), here.documents, strict=False)}

    def _passes_before(self, number: int) -> Totals:
        """Sums over whole passes."""
        tokens = sum(turns[-1] * (number // n) + turns[number % n] for n, turns in self._turns.items())
        return Totals(tokens, number * self._image, number * self._answer)

    def _order(self, number: int) -> _Pass:
        order_G = Permutation(len(self.groups), self._seed, "groups", self.name, number).all()
        tokens_G = sum((sums[:, number % n] for n, sums in self._sums.items()), np.zeros(len(order_G), np.int64))
        columns = (self._documents_G, tokens_G, self._image_G, self._answer_G)
        return _Pass(order_G, *(np.concatenate([[0], np.cumsum(column[order_G])]) for column in columns))

    def _documents_of(self, number: int, place: int) -> tuple[Integers, Integers, Group]:
        """The documents at a place of a pass in their order, their lengths, and the group that they are rows of."""
        which = int(self._pass(number).order_G[place])
        group = self._load(self.groups[which])
        index_K = in_order(group, self.key, self._seed, self.name, which, number)
        return index_K, group.lengths(index_K, number), group


def in_order(group: Group, key: str, seed: int, stream: str, number: int, turn: int) -> Integers:
    """A group's documents of a stream in the order of one pass, (K,) rows of the group."""
    members_K = group.members(key)
    found: Integers = members_K[Permutation(len(members_K), seed, "rows", stream, turn, number).all()]
    return found
