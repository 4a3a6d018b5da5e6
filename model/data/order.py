"""The order of training in closed form: position → stage → slice → keyed permutation → sequence.

Nothing is shuffled in memory and nothing is stored: any position of any stage is computed alone, in O(1), so that a run
starts and resumes anywhere at once, and every rank and worker agrees without speaking. Which positions make a step is
in ``steps.py``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_KEPT = 16
"""Permutations whose keys are kept; a stage is gone through slice by slice."""
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

Integers = npt.NDArray[np.int64]


class Permutation:
    """A bijection of 0 … n-1 that looks random, from a key: a Feistel network over the next power of four.

    Numbers that leave the range walk on until they are back in it (cycle walking, fewer than 4 steps on average).
    Eight rounds with SplitMix64's finalizer as the round function: small ranges need more than Luby and Rackoff's four.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        if n < 0:
            raise ValueError(f"a permutation of {n} elements")
        self.n = n
        self._half = np.uint64(max(1, -(-max(n - 1, 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [_key64(*key, round_) for round_ in range(_ROUNDS)]

    def __call__(self, numbers: npt.ArrayLike) -> Integers:
        """Where each number goes; numbers must be in 0 … n-1. Any shape; int64."""
        x = np.array(numbers, np.int64)  # a copy: walked in place
        if x.size and (x.min() < 0 or x.max() >= self.n):
            raise IndexError(f"numbers {x.min()} to {x.max()} of a permutation of {self.n}")
        flat = self._once(x.reshape(-1).astype(np.uint64))
        while (outside := np.flatnonzero(flat >= self.n)).size:
            flat[outside] = self._once(flat[outside])
        return flat.astype(np.int64).reshape(x.shape)

    def all(self) -> Integers:
        """The whole permutation (n,)."""
        return self(np.arange(self.n))

    def _once(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


class Order:
    """All positions of a run. ``stages`` holds each stage's name and its sequences by slice; ``len`` is their sum."""

    def __init__(self, stages: Sequence[tuple[str, Sequence[int]]], seed: int) -> None:
        self.names = [name for name, _ in stages]
        self._starts = [0, *accumulate(sum(slices) for _, slices in stages)]
        self._slice_starts = [np.array([0, *accumulate(slices)], np.int64) for _, slices in stages]
        self._seed = seed

    def __len__(self) -> int:
        return self._starts[-1]

    def stage_span(self, stage: int) -> tuple[int, int]:
        """First position of a stage, and the one after its last."""
        return self._starts[stage], self._starts[stage + 1]

    def stage_of(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a run of {len(self)} sequences")
        return bisect_right(self._starts, position) - 1

    def locate(self, positions: npt.ArrayLike) -> tuple[int, Integers]:
        """The stage that holds all of ``positions`` (N,), and their sequences (N,) within the stage's folder."""
        x_N = np.asarray(positions, np.int64)
        stage = self.stage_of(int(x_N.min()))
        start, stop = self.stage_span(stage)
        if int(x_N.max()) >= stop:
            raise IndexError(f"positions {x_N.min()} to {x_N.max()} lie in more than one stage")
        slices = self._slice_starts[stage]
        number_N = np.searchsorted(slices, x_N - start, side="right") - 1
        found_N = np.empty_like(x_N)
        for number in sorted(set(number_N.tolist())):  # np.unique would import numpy.ma first
            here = number_N == number
            first, size = int(slices[number]), int(slices[number + 1] - slices[number])
            permutation = _slice_permutation(size, self._seed, self.names[stage], number)
            found_N[here] = first + permutation(x_N[here] - start - first)
        return stage, found_N


@lru_cache(maxsize=_KEPT)
def _slice_permutation(size: int, seed: int, stage: str, number: int) -> Permutation:
    return Permutation(size, seed, "order", stage, number)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _key64(*key: int | str) -> np.uint64:
    text = "\0".join(str(k) for k in key)
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
