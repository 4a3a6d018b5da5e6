"""What tests of the loader share: micro-batches put together to steps and to global batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from infra.storage import Storage
from model.data.loader import IGNORE, Batch, SequenceLoader
from model.data.steps import BatchSizes
from model.vocabulary import PAD

RAMP = BatchSizes.of(8, [(3, 2), (17, 5)])
KEYS = ("tokens", "labels", "loss_mask", "documents", "positions", "image", "modality", "sequences")


def by_step(micros: Iterable[Batch], start: int = 0) -> list[list[Batch]]:
    """The micro-batches of each step, from a position on: the position moves with a step's last one."""
    steps: list[list[Batch]] = [[]]
    before = start
    for micro in micros:
        steps[-1].append(micro)
        if int(micro["consumed"]) != before:
            before = int(micro["consumed"])
            steps.append([])
    return steps[:-1]


def global_batches(
    store: Storage,
    run: str,
    batch: int | BatchSizes,
    world: int,
    micro: int | None,
    workers: int = 0,
    state: Mapping[str, Any] | None = None,
) -> list[Batch]:
    """Each step's rows in the order of the global batch, without the rows that only fill up."""
    loaders = [SequenceLoader(store, run, batch, r, world, micro, state) for r in range(world)]  # type: ignore[arg-type]
    start = loaders[0].consumed
    ranks = [by_step(DataLoader(loader, batch_size=None, num_workers=workers), start) for loader in loaders]
    assert {len(steps) for steps in ranks} == {loaders[0].steps - loaders[0]._steps.at(start)}
    found = []
    for mine in zip(*ranks, strict=True):
        assert len({len(micros) for micros in mine}) == 1
        by_rank = [{key: torch.cat([m[key] for m in micros]) for key in KEYS} for micros in mine]
        # Row i is rank i mod world's.
        rows = {key: torch.stack([r[key] for r in by_rank], dim=1).flatten(0, 1) for key in KEYS}
        real = rows["sequences"] >= 0
        assert (rows["tokens"][~real] == PAD).all()
        assert (rows["labels"][~real] == IGNORE).all()
        assert bool(real[: int(real.sum())].all())
        found.append({key: value[real] for key, value in rows.items()})
    return found


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether these batches are equal, tensor by tensor."""
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def through_workers(loader: SequenceLoader, workers: int) -> Iterator[Batch]:
    """The loader's micro-batches by torch's DataLoader."""
    for micro in DataLoader(loader, batch_size=None, num_workers=workers):
        loader.delivered(micro)
        yield micro
