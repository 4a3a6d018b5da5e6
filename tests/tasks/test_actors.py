"""The pool on a real Ray: what happens to items when the actors that work on them die."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.errors import CalummaError, StepFailed
from infra.storage import Storage
from infra.store.commit import done_parts, load_part
from infra.store.manifest import Rows
from tasks import actors
from tasks.context import StepContext
from tasks.pool import Committer, PartOutput, run_items
from tasks.progress import read_progress
from tasks.recipe import load_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class WrongOptionError(CalummaError):
    """What a worker finds out and the user can mend."""


@dataclass(frozen=True)
class Item:
    part: str
    locator: dict[str, Any]


class Player:
    """Does what its item says; notes each try as a file."""

    def __init__(self, context: StepContext) -> None:
        self.folder = Path(context.root)

    def process(self, item: Item) -> PartOutput:
        tries = len(list(self.folder.glob(f"{item.part}-try-*")))
        (self.folder / f"{item.part}-try-{tries}").write_text(str(os.getpid()))
        if tries < item.locator.get("kills", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if item.locator.get("fails"):
            raise WrongOptionError("option x is wrong")
        time.sleep(item.locator.get("takes", 0))
        return PartOutput(item.part, "s", {f"{item.part}.bin": item.part.encode()}, Rows(entered=1, out=1))


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    import ray

    # This file is not importable on the workers, so its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def context(folder: Path, *settings: str) -> StepContext:
    return StepContext(load_recipe("emoji", [f"resources.{s}" for s in settings]), str(folder), "scan")


def items(count: int, **special: dict[str, Any]) -> list[Item]:
    return [Item(f"p{n}", {"file": f"f{n}", **special.get(f"p{n}", {})}) for n in range(count)]


def test_an_item_whose_worker_was_killed_is_done_again_and_the_rest_goes_on(tmp_path: Path) -> None:
    asked = context(tmp_path)
    todo = items(8, p1={"kills": 1}, p4={"kills": 2})
    assert run_items(asked, todo, Player, workers=2) == [f"p{n}" for n in range(8)]
    assert done_parts(asked.store()) == {f"p{n}" for n in range(8)}
    assert len(list(tmp_path.glob("p4-try-*"))) == 3
    assert len(list(tmp_path.glob("p6-try-*"))) == 1
    assert all(load_part(asked.store(), f"p{n}").rows.out == 1 for n in range(8))


def test_an_item_that_kills_every_worker_ends_the_step_by_its_name_and_keeps_the_others(tmp_path: Path) -> None:
    asked = context(tmp_path)
    with pytest.raises(StepFailed, match=r"work item p2 \(\{'file': 'f2', 'kills': 99\}\) killed its worker 3 times"):
        run_items(asked, items(6, p2={"kills": 99}), Player, workers=1)
    assert {"p0", "p1"} <= done_parts(asked.store())
    assert "p2" not in done_parts(asked.store())


def test_deaths_over_different_items_do_not_add_up(tmp_path: Path) -> None:
    asked = context(tmp_path)
    run_items(asked, items(6, **{f"p{n}": {"kills": 1} for n in range(6)}), Player, workers=1)
    assert len(done_parts(asked.store())) == 6


def test_what_a_worker_says_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(WrongOptionError, match=r"^option x is wrong$"):
        run_items(context(tmp_path), items(3, p1={"fails": True}), Player, workers=2)


def test_a_stall_is_told(tmp_path: Path) -> None:
    run_items(context(tmp_path, "stall_s=0.2"), items(1, p0={"takes": 1.0}), Player, workers=1)
    seen = []

    class Watcher(Player):
        def process(self, item: Item) -> PartOutput:
            time.sleep(1)
            seen.append(read_progress(Storage(self.folder), "local"))
            (self.folder / "seen").write_text(str(seen[-1]))
            return super().process(item)

    run_items(context(tmp_path, "stall_s=0.2"), [Item("q", {})], Watcher, workers=1)
    assert "nothing finished for" in (tmp_path / "seen").read_text()
    assert "being worked on: q" in (tmp_path / "seen").read_text()


def test_two_items_are_never_on_one_actor_while_another_is_idle(tmp_path: Path) -> None:
    run_items(context(tmp_path), items(2, p0={"takes": 4}, p1={"takes": 4}), Player, workers=2)
    assert len({(tmp_path / f"p{n}-try-0").read_text() for n in range(2)}) == 2


def replacements(monkeypatch: pytest.MonkeyPatch, first: int, **options: Any) -> list[Any]:
    """Lets every actor after the first ones have other options; all members are noted."""
    made: list[Any] = []
    member = actors._Pool._member

    def other(pool: Any, *args: Any) -> Any:
        if len(made) == first:
            pool._class = pool._class.options(**options)
        made.append(member(pool, *args))
        return made[-1]

    monkeypatch.setattr(actors._Pool, "_member", other)
    return made


@pytest.mark.timeout(60)
def test_a_replacement_that_never_finds_room_holds_no_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = replacements(monkeypatch, 2, num_cpus=99)
    asked = context(tmp_path)
    run_items(asked, items(8, p1={"kills": 1}), Player, workers=2)
    assert len(made) == 3, "one died, and its replacement waits"
    assert done_parts(asked.store()) == {f"p{n}" for n in range(8)}


@pytest.mark.timeout(60)
def test_a_step_does_not_wait_for_workers_that_it_has_no_items_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacements(monkeypatch, 1, num_cpus=99)
    assert run_items(context(tmp_path), items(3), Player, workers=2) == ["p0", "p1", "p2"]


@pytest.mark.timeout(60)
def test_workers_that_wait_for_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replacements(monkeypatch, 0, num_cpus=99)
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        raise StepFailed("enough")

    with pytest.raises(StepFailed, match="enough"):
        actors.run_on_actors(context(tmp_path, "stall_s=0.5"), Committer, Player, items(4), 2, 0, lambda _: None, note)
    assert told[0].endswith("being worked on: none; 2 of 2 workers wait for room in the cluster")


class Stillborn(Committer):
    """A worker that cannot even start."""

    def __init__(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_workers_that_die_before_they_begin_end_the_step(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="a worker died 3 times before it began"):
        actors.run_on_actors(context(tmp_path), Stillborn, Player, items(4), 1, 0, lambda _: None, lambda _: None)


def test_an_accelerator_is_only_asked_for_with_gpus(tmp_path: Path) -> None:
    assert run_items(context(tmp_path, "data_accelerator=A100"), items(2), Player, workers=1) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("settings", "gpus", "match"),
    [
        (["data_cpus=1.5"], 0, r"2 workers of 1.5 CPUs need 3 CPUs and the cluster has 2\..*data_workers"),
        ([], 1.5, r"2 workers of 1.5 GPUs need 3 GPUs and the cluster has 1\..*data_gpus"),
        (["data_accelerator=A100"], 0.5, "resources.data_accelerator is A100, and no node"),
    ],
)
def test_a_cluster_that_is_too_small_is_said_so_at_once(
    tmp_path: Path, settings: list[str], gpus: float, match: str
) -> None:
    with pytest.raises(StepFailed, match=match):
        run_items(context(tmp_path, *settings), items(4), Player, workers=2, gpus=gpus)
