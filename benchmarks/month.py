"""A month of training simulated: do the global batches stay the ideal ones, and what would S3 have to bear?

The plan is the paper's, 2.25 billion sequences; the pace the paper's 7B run's, 2,984 tokens a second and GPU (worked
out from its GPU-hours). Nothing is read: the real order, steps, shares and states run, and what is compared is the
numbers of the sequences. A run lives for some hours, until a worker dies or S3 fails for longer than the storage layer
tries again. Then the newest checkpoint's loader state, as JSON, begins another run with another number of ranks; some
runs also skip the positions after the checkpoint, as one does after a loss spike. The batch grows in two steps at the
beginning.

The ideal is computed in another way: whole slices permuted at once, positions that were not skipped cut one after
another. Every step of every run, also those that a failure loses and the next run repeats, must have its digest; and in
every run some steps are put together from all ranks' shares, and some shares of ranks drawn by chance are compared.

    python -m benchmarks.month --json        the whole month, minutes on one core; --days 1 for a look
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import emit, machine_line
from benchmarks.loader_data import FULL, LENGTH, plan_of
from infra.store.block_cache import BlockCache, block_key
from infra.store.sequences import BLOCK
from model.data.order import Order, Permutation
from model.data.state import LoaderState
from model.data.steps import BatchSizes, Steps
from model.data.work import Share

SEED = 1
TOKENS_PER_GPU_S = 2984
GPUS_A_NODE = 8
WORLDS = (512, 640, 768, 896, 1024)
SIZES = BatchSizes.of(2048, [(2_000_000, 512), (6_000_000, 1024)])
CHECKPOINT_STEPS = 250
HOURS_BETWEEN_FAILURES = 4.0
HOURS_BETWEEN_S3_FAILURES = 24.0
"""Outages that outlast the storage layer's half a minute of attempts."""
SKIP_SHARE = 0.1
"""Of the restarts that also skip."""
SLICE = 1 << 20
BLOCK_BYTES = BLOCK * (LENGTH * 2 + LENGTH // 8)
SLOW_DOWN = 0.01
"""Share of requests that S3 answers with SlowDown, each asked again."""


def digest(sequences_N: np.ndarray) -> bytes:
    """blake2b-64 of the numbers."""
    return hashlib.blake2b(np.ascontiguousarray(sequences_N, "<i8").data, digest_size=8).digest()


@dataclass
class Ideal:
    """The digests of the steps of an undisturbed run, computed by slices; intervals may be skipped as it goes."""

    skipped: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    """Position after each step."""

    def __post_init__(self) -> None:
        self._slice, self._numbers = -1, np.zeros(0, np.int64)

    def extend(self, steps: int) -> None:
        """Computes the digests up to a number of steps."""
        while len(self.digests) < steps:
            at = self.consumed[-1] if self.consumed else 0
            wanted, found = SIZES.at(self._next(at)), []
            border = min([p for p, _ in SIZES.phases if p > at] + [self._stage_end(at)])
            while wanted and at < border:
                gap = next(((a, b) for a, b in self.skipped if a <= at < b), None)
                if gap:
                    at = gap[1]
                    if at >= border and not found:  # nothing of this phase was left
                        border = min([p for p, _ in SIZES.phases if p > at] + [self._stage_end(at)])
                        wanted = SIZES.at(at)
                    continue
                stop = min([at + wanted, border, (at // SLICE + 1) * SLICE, *(a for a, _ in self.skipped if a > at)])
                found.append(self._of(at, stop))
                wanted -= stop - at
                at = stop
            self.digests.append(digest(np.concatenate(found)))
            self.consumed.append(at)

    def skip(self, start: int, stop: int) -> None:
        """Steps from ``start`` on are another now."""
        self.skipped.append((start, stop))
        keep = next((n for n, c in enumerate(self.consumed) if c > start), len(self.consumed))
        del self.digests[keep:], self.consumed[keep:]

    def _next(self, at: int) -> int:
        while gap := next((b for a, b in self.skipped if a <= at < b), 0):
            at = gap
        return at

    def _stage_end(self, at: int) -> int:
        first = FULL["stage-1"] * SLICE
        return first if at < first else first + FULL["stage-2"] * SLICE

    def _of(self, start: int, stop: int) -> np.ndarray:
        """The sequences at positions of one slice; slices of all stages have one size."""
        number = start // SLICE
        if number != self._slice:
            first = FULL["stage-1"]
            name, local = ("stage-1", number) if number < first else ("stage-2", number - first)
            self._slice, self._numbers = number, local * SLICE + Permutation(SLICE, SEED, "order", name, local).all()
        return self._numbers[start - number * SLICE : stop - number * SLICE]


def whole_batches(order: Order, steps: Steps, number: int) -> Iterator[np.ndarray]:
    """The sequences of every global batch from a step on, by the loader's own code as one rank."""
    for part in Share(0, 1, SIZES.largest, ahead=1 << 16).work(order, steps, number):
        yield part.sequences_B[part.sequences_B >= 0]


def from_ranks(order: Order, steps: Steps, number: int, world: int) -> np.ndarray:
    """A step put together from the shares of all ranks; row i is rank i mod world's."""
    rows = [rank_step(order, steps, number, rank, world) for rank in range(world)]
    found = np.stack(rows, axis=1).reshape(-1)
    return found[found >= 0]


def rank_step(order: Order, steps: Steps, number: int, rank: int, world: int) -> np.ndarray:
    """One rank's sequences of a step, by the loader's own code."""
    share = Share(rank, world, 2, ahead=1)  # one step is wanted
    micros = islice(share.work(order, steps, number), share.accumulation(steps[number].batch))
    return np.concatenate([part.sequences_B for part in micros])


def simulate(days: float, seed: int) -> dict[str, Any]:
    """Lives through the month; AssertionError at the first step that is not the ideal one."""
    rng = np.random.default_rng(seed)
    plan = plan_of({name: [SLICE] * slices for name, slices in FULL.items()})
    order = Order([(stage.name, stage.slices) for stage in plan.stages], SEED)
    ideal, now, end = Ideal(), 0.0, days * 86_400
    saved = json.dumps(LoaderState(plan=plan.fingerprint, run="pretrain", consumed=0, batch=SIZES.phases).model_dump())
    counts = dict.fromkeys(("runs", "s3_failures", "steps", "repeated_steps", "rank_checks", "whole_checks"), 0)
    worlds: set[int] = set()
    done = 0
    while now < end:
        world = int(rng.choice(WORLDS))
        lives = rng.exponential(HOURS_BETWEEN_FAILURES * 3600)
        outage = rng.exponential(HOURS_BETWEEN_S3_FAILURES * 3600)
        counts["runs"] += 1
        counts["s3_failures"] += outage < lives
        worlds.add(world)
        state = LoaderState.of(json.loads(saved))
        state.require(plan, "pretrain", plan.stages)
        steps = Steps(order, state.batch_sizes(SIZES, accept=False), state.skipped)
        number, left = steps.at(state.consumed), min(lives, outage, end - now)
        assert number == done, "the checkpoint's step is not where the state leads"
        begun, rate = number, TOKENS_PER_GPU_S * world / LENGTH
        batches = whole_batches(order, steps, number)
        while number < len(steps) and (left := left - (step := steps[number]).batch / rate) > 0:
            found = next(batches)
            ideal.extend(number + 1)
            assert digest(found) == ideal.digests[number], f"step {number} of a run of {world} ranks differs"
            number += 1
            if number % CHECKPOINT_STEPS == 0:
                saved = json.dumps(state.model_copy(update={"consumed": steps.consumed(step)}).model_dump())
                done = number
        counts["steps"] += number - begun
        counts["repeated_steps"] += number - done
        if number > begun:
            counts["whole_checks"] += 1
            chosen = int(rng.integers(begun, number))
            assert digest(from_ranks(order, steps, chosen, world)) == ideal.digests[chosen]
            for chosen in rng.integers(begun, number, 8).tolist():
                rank = int(rng.integers(world))
                mine = rank_step(order, steps, chosen, rank, world)
                batch = next(whole_batches(order, steps, chosen))
                assert (mine[mine >= 0] == batch[rank::world]).all()
                counts["rank_checks"] += 1
        now += min(lives, outage)
        if rng.random() < SKIP_SHARE and done < len(steps):
            state = LoaderState.of(json.loads(saved))
            gap = (state.consumed, state.consumed + int(rng.integers(1, 200)) * SIZES.at(state.consumed) + 17)
            saved = json.dumps(state.model_copy(update={"skipped": (*state.skipped, gap)}).model_dump())
            ideal.skip(*gap)
    return {
        **counts,
        "sequences": ideal.consumed[done - 1] if done else 0,
        "skipped_intervals": len(ideal.skipped),
        "worlds": sorted(worlds),
        "equal": True,
    }


def node_blocks(order: Order, steps: Steps, number: int, nodes: int, count: int) -> Iterator[int]:
    """The blocks that the GPUs of one node read, in order, for a number of its sequences."""
    world = nodes * GPUS_A_NODE
    mine = np.arange(GPUS_A_NODE)
    given = 0
    for batch in whole_batches(order, steps, number):
        rows = (np.arange(0, len(batch), world)[:, None] + mine).reshape(-1)
        for sequence in batch[rows[rows < len(batch)]].tolist():
            yield sequence // BLOCK
            given += 1
            if given == count:
                return


def traffic(nodes: int, gigabytes: float, sequences: int) -> dict[str, float]:
    """Hit rate of a node's cache, and what the nodes ask of S3 together; the real cache without its blocks' bytes."""
    order = Order([(name, [SLICE] * slices) for name, slices in FULL.items()], SEED)
    steps = Steps(order, SIZES)
    slots = int(gigabytes * 1e9 / (BLOCK_BYTES + 544))
    cache = BlockCache(None, 64 + slots * 41, rows=1, row_bytes=1)
    nothing = np.zeros((1, 1), np.uint8)
    grown, batch = SIZES.phases[-1]
    first, hits = steps.at(grown + (400 * SLICE - grown) // batch * batch), 0
    for n, block in enumerate(node_blocks(order, steps, first, nodes, sequences)):
        key = block_key(block)
        if cache.row(key, 0, 1) is not None:
            hits += n >= sequences // 3  # the first third only fills it
        else:
            cache.put(key, nothing)
    rate = hits / (sequences - sequences // 3)
    sequences_s = nodes * GPUS_A_NODE * TOKENS_PER_GPU_S / LENGTH
    misses_s = sequences_s * (1 - rate)
    sums_s = sequences_s / SLICE * 32 * nodes * GPUS_A_NODE  # every process reads the checksums of a file once
    return {
        "hit_rate": rate,
        "requests_per_s": (2 * misses_s + sums_s) / (1 - SLOW_DOWN),
        "mb_per_s_and_node": misses_s * BLOCK_BYTES / 1e6 / nodes,
    }


def main() -> None:
    """Simulates, and prints what S3 would have to bear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(machine_line())
    begun = time.process_time()
    figures: dict[str, Any] = {"days": arguments.days, **simulate(arguments.days, arguments.seed)}
    figures["processor_seconds"] = time.process_time() - begun
    table = Table(title="What S3 would have to bear", title_justify="left")
    for name in ("nodes of 8", "cache a node", "hit rate", "requests/s, all", "MB/s a node"):
        table.add_column(name, justify="right")
    for nodes, slices in ((128, 3.0), (64, 3.0), (8, 1.5), (1, 0.1)):
        for gigabytes in (1, 4, 12):
            found = traffic(nodes, gigabytes, int(slices * SLICE / nodes))
            figures |= {f"{key}_{nodes}_nodes_{gigabytes}_gb": value for key, value in found.items()}
            table.add_row(
                str(nodes),
                f"{gigabytes} GB",
                f"{found['hit_rate']:.1%}",
                f"{found['requests_per_s']:,.0f}",
                f"{found['mb_per_s_and_node']:,.1f}",
            )
    Console().print(table)
    emit(figures, arguments.json)


if __name__ == "__main__":
    main()
