"""Equal bytes whoever makes them, in whatever order, and however often they are killed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.storage import Storage
from infra.store.commit import done_parts
from infra.store.plan import Plan
from tasks.context import StepContext
from tasks.pool import Committer
from tests.tasks.mix.reading import Contexts, build


class Killed(Exception):
    """Stands for ``kill -9``: nothing after it is done."""


class Scattered:
    """A pool of so many workers that take items in any order, of which the whole is killed after some commits."""

    def __init__(self, workers: int, seed: int = 0, lives: int | None = None) -> None:
        self.workers, self.rng, self.lives = workers, np.random.default_rng(seed), lives

    def __call__(self, context: StepContext, items: Any, worker: Any, **_: Any) -> list[str]:
        pool = [Committer(context, worker) for _ in range(self.workers)]
        done = done_parts(context.store())
        todo = [item for item in items if item.part not in done]
        for number in self.rng.permutation(len(todo)).tolist():
            if self.lives == 0:
                raise Killed
            if self.lives is not None:
                self.lives -= 1
            pool[int(self.rng.integers(self.workers))].process(todo[number])
        return [item.part for item in items]


@pytest.fixture
def elsewhere(built: tuple[StepContext, Plan], context_of: Contexts, tmp_path: Path) -> tuple[StepContext, Storage]:
    """The same step as ``built``, writing into an empty folder."""
    context, folder = context_of(6), Storage(tmp_path / "again")
    context.fingerprints["mix"] = "mix-base-0123"
    own = built[0].store
    context.store = lambda step=None: folder if step in (None, "mix") else own(step)  # type: ignore[method-assign]
    return context, folder


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_equal_bytes_for_any_number_of_workers(
    built: tuple[StepContext, Plan],
    elsewhere: tuple[StepContext, Storage],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    context, folder = elsewhere
    monkeypatch.setattr("tasks.mix.run.run_items", Scattered(workers, seed=workers))
    build(context, workers=0)
    assert bytes_of(folder.path()) == bytes_of(built[0].store().path())


def test_equal_bytes_however_often_it_was_killed(
    built: tuple[StepContext, Plan], elsewhere: tuple[StepContext, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, folder = elsewhere
    kills = 0
    for attempt in range(100):
        pool = Scattered(2, seed=attempt, lives=3)
        monkeypatch.setattr("tasks.mix.run.run_items", pool)
        try:
            build(context, workers=0)
            break
        except Killed:
            kills += 1
            folder.put("parts/stages/stage-1/seq-000000.u16", b"half") if attempt == 0 else None
            aside = folder.path("parts/stages/stage-1/.aside-dead")
            aside.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(b"left by a killed writer")
    assert kills > 5
    assert bytes_of(folder.path()) == bytes_of(built[0].store().path())


def test_a_lost_part_is_made_again_alike(
    built: tuple[StepContext, Plan], elsewhere: tuple[StepContext, Storage]
) -> None:
    context, folder = elsewhere
    build(context, workers=0)
    for name in (
        *("manifest.json", "plan.json", "parts/stages-stage-1-000000.json", "parts/held-out-emoji-000000.json"),
        *("parts/index-emoji-000000.json", "parts/layout-stages-stage-1-000002.json", "parts/account-chat-000000.json"),
    ):
        folder.delete(name)
    build(context, workers=0)
    assert bytes_of(folder.path()) == bytes_of(built[0].store().path())
