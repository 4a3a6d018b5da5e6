"""Which positions make a step: in closed form, from the order, the batch sizes by position and the skipped intervals.

A *live* position is one counted without the skipped ones. Stages and the phases of a growing batch cut the live
positions into stretches; inside a stretch every step takes ``batch`` of them, and the last one what is left. So any
step, and the step at any position, is found by bisection, whatever happened before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from infra.errors import RecipeError
from model.data.order import Integers, Order

Phases = tuple[tuple[int, int], ...]
"""(first position, batch) with rising positions, the first of them 0."""


@dataclass(frozen=True)
class BatchSizes:
    """The global batch in sequences, by position of the run.

    As at a stage's end, the last step before a batch changes is short where the batch does not divide what is left.
    """

    phases: Phases

    def __post_init__(self) -> None:
        positions = [start for start, _ in self.phases]
        if positions[:1] != [0] or any(a >= b for a, b in pairwise(positions)):
            raise RecipeError(f"batch sizes by position {list(self.phases)}: positions must begin with 0 and rise")
        for start, batch in self.phases:
            if batch < 1:
                raise RecipeError(f"the batch from position {start} on is {batch}; expected at least 1")

    @classmethod
    def of(cls, batch: int | BatchSizes, ramp: Iterable[tuple[int, int]] = ()) -> BatchSizes:
        """``batch`` throughout, but after a ramp of (until position, batch) with rising positions."""
        if isinstance(batch, BatchSizes):
            return batch
        phases, start = [], 0
        for until, small in ramp:
            phases.append((start, small))
            start = until
        return cls((*phases, (start, batch)))

    @property
    def largest(self) -> int:
        return max(batch for _, batch in self.phases)

    def at(self, position: int) -> int:
        """The batch of a step that begins at this position."""
        return self.phases[bisect_right(self.phases, position, key=lambda phase: phase[0]) - 1][1]

    def since(self, position: int) -> Phases:
        """The phases from a position on, the present one as if it began there."""
        return ((position, self.at(position)), *(phase for phase in self.phases if phase[0] > position))

    def then(self, position: int, others: BatchSizes) -> BatchSizes:
        """These before a position and ``others`` from there on; a step ends there."""
        return BatchSizes((*(phase for phase in self.phases if phase[0] < position), *others.since(position)))


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the live positions ``start`` to ``stop - 1``, all of one stage."""

    number: int
    stage: int
    start: int
    stop: int
    batch: int
    """What a whole step has here; the last one of a stage or phase may have fewer."""


class Steps:
    """All steps of a run; ``len`` is their number."""

    def __init__(self, order: Order, batch: BatchSizes, skipped: Sequence[tuple[int, int]] = ()) -> None:
        self._order = order
        gaps = _merged(skipped, len(order))
        self._gap_starts, self._gap_stops = [a for a, _ in gaps], [b for _, b in gaps]
        removed = [0, *accumulate(b - a for a, b in gaps)]
        self._removed = np.array(removed, np.int64)
        self._gap_live = np.array([a - gone for (a, _), gone in zip(gaps, removed, strict=False)], np.int64)
        self._stretches = list(self._cut(batch))
        self._first_steps = [0, *accumulate(-(-(s.stop - s.start) // s.batch) for s in self._stretches)]

    def __len__(self) -> int:
        return self._first_steps[-1]

    def __getitem__(self, number: int) -> Step:
        if not 0 <= number < len(self):
            raise IndexError(f"step {number} of a run of {len(self)} steps")
        index = bisect_right(self._first_steps, number) - 1
        stretch = self._stretches[index]
        start = stretch.start + (number - self._first_steps[index]) * stretch.batch
        stop = min(start + stretch.batch, stretch.stop)
        return Step(number, stretch.stage, start, stop, stretch.batch)

    def at(self, consumed: int) -> int:
        """The number of the step that comes once ``consumed`` positions are done; ``len`` at the end.

        ValueError where that is inside a step.
        """
        live = self.live(consumed)
        index = bisect_right(self._stretches, live, key=lambda stretch: stretch.start) - 1
        if index < 0 or live >= self._stretches[-1].stop:
            return len(self)
        stretch = self._stretches[index]
        steps, inside = divmod(live - stretch.start, stretch.batch)
        if inside:
            raise ValueError(f"position {consumed} is inside a step")
        return self._first_steps[index] + steps

    def consumed(self, step: Step) -> int:
        """The position after a step's last one."""
        return int(self.positions(np.array([step.stop - 1]))[0]) + 1

    def positions(self, live_N: npt.ArrayLike) -> Integers:
        """The positions (N,) int64 that live positions stand for."""
        x_N = np.asarray(live_N, np.int64)
        found_N: Integers = x_N + self._removed[np.searchsorted(self._gap_live, x_N, side="right")]
        return found_N

    def live(self, position: int) -> int:
        """How many positions before this one are not skipped."""
        index = bisect_right(self._gap_starts, position)
        if not index:
            return position
        beyond = max(0, self._gap_stops[index - 1] - position)
        return position - int(self._removed[index]) + beyond

    def _cut(self, batch: BatchSizes) -> Iterable[Step]:
        """The stretches, each as one long step; those without positions are left out."""
        for stage in range(len(self._order.names)):
            first, last = self._order.stage_span(stage)
            phases = batch.since(first)
            for number, (start, size) in enumerate(phases):
                stop = phases[number + 1][0] if number + 1 < len(phases) else last
                begin, end = self.live(min(start, last)), self.live(min(stop, last))
                if begin < end:
                    yield Step(0, stage, begin, end, size)


def _merged(intervals: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Intervals (start, stop) within 0 … length - 1, in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted((a, min(b, length)) for a, b in intervals if a < length):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found
