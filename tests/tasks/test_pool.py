from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed
from infra.storage import Storage
from infra.store.commit import done_parts
from infra.store.manifest import Rows
from tasks import pool
from tasks.context import StepContext
from tasks.pool import PartOutput, run_items
from tasks.progress import read_progress
from tasks.recipe import load_recipe


@dataclass(frozen=True)
class Item:
    part: str


class Doubler:
    made: list[str] = []

    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: Item) -> PartOutput:
        if item.part == "bad":
            raise ValueError("this item cannot be made")
        self.made.append(item.part)
        return PartOutput(item.part, "s", {f"{item.part}.bin": item.part.encode() * 2}, Rows(entered=1, out=1))


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    Doubler.made = []
    return StepContext(load_recipe("emoji"), str(tmp_path), "scan")


def test_only_missing_parts_are_made(context: StepContext) -> None:
    items = [Item(f"p{i}") for i in range(4)]
    assert run_items(context, items[:2], Doubler, workers=0) == ["p0", "p1"]
    assert run_items(context, items, Doubler, workers=0) == ["p0", "p1", "p2", "p3"]
    assert Doubler.made == ["p0", "p1", "p2", "p3"]
    assert context.store().get("parts/p3.bin") == b"p3p3"


def test_a_failure_keeps_what_was_committed(context: StepContext) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        run_items(context, [Item("p0"), Item("bad"), Item("p1")], Doubler, workers=0)
    assert done_parts(context.store()) == {"p0"}


def test_doubled_names_are_refused(context: StepContext) -> None:
    with pytest.raises(StepFailed, match="same part name"):
        run_items(context, [Item("p0"), Item("p0")], Doubler, workers=0)


def test_going_on_counts_what_is_done(context: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"p{i}") for i in range(10)]
    asked: dict[str, Any] = {"workers": 0, "unit": "rows", "weight": lambda m: m.rows.out, "total": 10}
    run_items(context, items[:8], Doubler, **asked)
    for limit in (8, 7):  # counted by their manifests, and as a share of the parts
        monkeypatch.setattr(pool, "READ_BACK", limit)
        fresh = StepContext(context.recipe, context.root, "scan", f"job-{limit}")
        run_items(fresh, items[:8], Doubler, **asked)
        state = read_progress(fresh.workdir, f"job-{limit}")
        assert state is not None
        assert (state["done"], state["total"], state["rate"]) == (10 if limit == 7 else 8, 10, 0.0)


def test_of_many_finished_parts_no_manifest_is_read(context: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"p{i}") for i in range(5)]
    run_items(context, items, Doubler, workers=0)
    monkeypatch.setattr(pool, "READ_BACK", 4)
    monkeypatch.setattr(pool, "load_parts", lambda *_: pytest.fail("a manifest was read"))
    assert run_items(context, items, Doubler, workers=0) == [f"p{i}" for i in range(5)]


def test_progress_is_reported(context: StepContext, tmp_path: Path) -> None:
    run_items(context, [Item("p0"), Item("p1")], Doubler, workers=0, unit="rows", weight=lambda m: m.rows.out, total=2)
    state = read_progress(Storage(tmp_path), "local")
    assert state is not None
    assert (state["done"], state["total"], state["unit"]) == (2, 2, "rows")


class Lossy(Doubler):
    """Of every part's 60 rows 20 are lost."""

    def process(self, item: Item) -> PartOutput:
        rows = Rows(entered=60, out=40, quarantined={"read-error": 15, "truncated": 5})
        return PartOutput(item.part, "s", {f"{item.part}.bin": b""}, rows)


@pytest.mark.parametrize(("limit", "stops"), [("1", False), ("0.34", False), ("0.3", True)])
def test_a_source_that_loses_too_much_stops_the_step(tmp_path: Path, limit: str, stops: bool) -> None:
    context = StepContext(load_recipe("emoji", [f"resources.max_quarantined={limit}"]), str(tmp_path), "scan")
    items = [Item(f"p{i}") for i in range(3)]
    if not stops:
        assert len(run_items(context, items, Lossy, workers=0)) == 3
        return
    with pytest.raises(StepFailed, match=r"40 of the first 120 rows of source s .*30 read-error, 10 truncated.*0\.3"):
        run_items(context, items, Lossy, workers=0)
    assert done_parts(context.store()) == {"p0", "p1"}, "60 rows alone say too little; what is committed stays"
