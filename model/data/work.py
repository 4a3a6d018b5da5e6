"""What one rank does of every step, and doing some of it ahead.

Shape suffixes: B sequences of a micro-batch, N of several steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from model.data.order import Integers, Order
from model.data.steps import Step, Steps

AHEAD = 1024
"""Of sequences' numbers, one alone costs as much to compute as hundreds."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Work:
    """A micro-batch before it is read."""

    stage: int
    sequences_B: Integers
    """Numbers in the stage's folder, -1 for one that is all padding."""
    consumed: int
    """The run's position once the micro-batch is done: it moves with the last one of a step."""
    step: int
    micro: int
    """Its number in the step, from 0."""


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of every global batch: its rows ``rank``, ``rank + world``, …, in micro-batches."""

    rank: int
    world: int
    micro_batch: int
    ahead: int = AHEAD
    """Sequences whose numbers are computed at once, about."""

    def accumulation(self, batch: int) -> int:
        """Micro-batches that a global batch takes on every rank."""
        return -(-batch // (self.world * self.micro_batch))

    def work(self, order: Order, steps: Steps, number: int) -> Iterator[Work]:
        """The micro-batches from a step on."""
        while number < len(steps):
            several = list(self._alike(steps, number))
            yield from self._several(order, steps, several)
            number += len(several)

    def _several(self, order: Order, steps: Steps, several: list[Step]) -> Iterator[Work]:
        """Steps of one stage and batch, their sequences' numbers computed in one go."""
        rows = self.accumulation(several[0].batch) * self.micro_batch
        live = [np.arange(step.start + self.rank, step.stop, self.world) for step in several]
        live_N = np.concatenate(live)
        located_N = order.locate(steps.positions(live_N))[1] if live_N.size else live_N
        before = steps.consumed(steps[several[0].number - 1]) if several[0].number else 0
        ends = (steps.positions([step.stop - 1 for step in several]) + 1).tolist()
        at = 0
        for step, mine, after in zip(several, live, ends, strict=True):
            sequences_N = np.full(rows, -1, np.int64)
            sequences_N[: len(mine)] = located_N[at : at + len(mine)]
            at += len(mine)
            after = steps.consumed(step)
            for micro, row in enumerate(range(0, rows, self.micro_batch)):
                stop = row + self.micro_batch
                consumed = after if stop == rows else before
                yield Work(step.stage, sequences_N[row:stop], consumed, step.number, micro)
            before = after

    def _alike(self, steps: Steps, number: int) -> Iterator[Step]:
        """A step and those after it of the same stage and batch, of some ``ahead`` sequences of this rank."""
        first = steps[number]
        count = max(1, self.ahead * self.world // first.batch)
        for step in map(steps.__getitem__, range(number, min(number + count, len(steps)))):
            if (step.stage, step.batch) != (first.stage, first.batch):
                return
            yield step


def ahead(work: Callable[[Given], Made], given: Iterable[Given], count: int) -> Iterator[Made]:
    """``map(work, given)``, ``count`` of them done ahead on threads, in order."""
    if not count:
        yield from map(work, given)
        return
    waiting, todo = deque[Future[Made]](), iter(given)
    pool = ThreadPoolExecutor(count, "prefetch")
    try:
        waiting.extend(pool.submit(work, thing) for thing in islice(todo, count))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, thing) for thing in islice(todo, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
