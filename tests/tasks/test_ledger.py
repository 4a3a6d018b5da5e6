from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.commit import commit_part, commit_step, part_manifest_name
from infra.store.manifest import PartManifest, Rows, StepManifest
from tasks import ledger_view
from tasks import quarantine as lost
from tasks.addresses import Addresses, addresses_of, parse_part
from tasks.fingerprint import folder_of
from tasks.ledger import check_ledger
from tasks.ledger_parts import Ledger
from tasks.recipe import Recipe, parse_recipe
from tasks.scan.items import dump_items, retry_listing
from tasks.sources.base import WorkItem
from tasks.steps import STORES
from tests.tasks import data_run, toy_run
from tests.tasks.data_run import DataRun

Toy = tuple[Path, Recipe]
PRINTS = {step: f"{number:032x}" for number, step in enumerate(STORES, 1)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run of which one quarantined row was rescued by a retry."""
    run = data_run.make(tmp_path_factory.mktemp("ledger"), "tokenize")
    run.retry()
    return run


def shown(ledger: Ledger) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in ledger_view.render(ledger):
        console.print(piece)
    return console.export_text()


class Stores:
    """Stores made of manifests alone, for two parts of source ``shapes``."""

    def __init__(self, folder: Path, items: int = 2) -> None:
        self.root = folder
        recipe = parse_recipe({**toy_run.RECIPE, "folder": str(folder)})
        self.addresses = Addresses(str(folder), recipe, PRINTS)
        self.items = [WorkItem("shapes", n, {"n": n}) for n in range(items)]
        self.store("scan").put("items.jsonl", dump_items(self.items))

    def store(self, step: str) -> Storage:
        return Storage(self.root / folder_of(step, PRINTS[step]))

    def part(self, step: str, part: str, rows: Rows) -> None:
        manifest = PartManifest(step=step, fingerprint=PRINTS[step], part=part, source="shapes", rows=rows)
        if rows.balance:  # what commit_part would refuse
            self.store(step).put(part_manifest_name(part), manifest.dump())
        else:
            commit_part(self.store(step), manifest, {})

    def finish(self, step: str, parts: list[str], **more: Any) -> None:
        commit_step(self.store(step), StepManifest(step=step, fingerprint=PRINTS[step], **more), parts)

    def check(self, **more: Any) -> Ledger:
        fresh = Addresses(str(self.root), self.addresses.recipe, PRINTS)
        return check_ledger(fresh, **more)


def faults(ledger: Ledger) -> list[str]:
    return [str(f) for f in ledger.faults]


def test_a_whole_run_closes(toy: Toy) -> None:
    lines: list[str] = []
    ledger = check_ledger(addresses_of(toy[0]), on_part=lambda p, r: lines.append(ledger_view.part_line(p, r)))
    assert faults(ledger) == []
    assert [s.step for s in ledger.steps] == [*STORES, "mix"]
    assert len(lines) == 8
    first = next(line for line in lines if line.startswith("shapes-000000"))
    assert "scan 14 → 12 · 1 quarantined (bad-json)" in first
    assert first.endswith("tokenize 12 → 12")
    text = shown(ledger)
    assert "parts in 5 steps, each part and from step to step" in text
    whole = json.loads(json.dumps(ledger_view.as_json(ledger)))
    assert whole["closed"] is True
    assert whole["steps"][0]["sources"]["shapes"]["net"]["quarantined"] == {"bad-json": 1, "not-an-image": 1}


def test_one_step_or_source_alone(toy: Toy) -> None:
    ledger = check_ledger(addresses_of(toy[0]), step="encode", source="words")
    assert [(s.step, list(s.sources)) for s in ledger.steps] == [("encode", ["words"])]
    assert ledger.steps[0].expected == 2
    with pytest.raises(RecipeError, match="no such step here"):
        check_ledger(addresses_of(toy[0]), step="encoed")
    with pytest.raises(RecipeError, match="the recipe's are shapes, words"):
        check_ledger(addresses_of(toy[0]), source="shape")


def test_a_rescued_row_has_two_lines_and_counts_once(data: DataRun) -> None:
    ledger = check_ledger(addresses_of(data.workdir))
    assert faults(ledger) == []
    line = ledger.steps[0].sources["photos"]
    assert line.rows.quarantined == {"bad-json": 1, "missing-image": 1, "not-an-image": 1}
    assert line.retries == {1: Rows(entered=1, out=1)}
    assert line.retried == {1: {"missing-image": 1}}
    assert line.net.quarantined == {"bad-json": 1, "not-an-image": 1}
    assert line.net.entered == line.rows.entered
    assert line.net.out == line.rows.out + 1
    text = shown(ledger)
    assert "retry 1: 1 retried" in text
    assert "net" in text


def test_what_left_one_step_must_enter_the_next(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    stores.part("scan", "shapes-000000", Rows(entered=5, out=4, filtered={"empty": 1}))
    stores.part("select", "shapes-000000", Rows(entered=3, out=3))
    assert faults(stores.check()) == [
        "select shapes shapes-000000: 4 rows left the step before and 3 entered",
    ]


def test_an_open_part_is_named(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    stores.part("scan", "shapes-000001", Rows(entered=5, out=4))
    (fault,) = faults(stores.check())
    assert fault == "scan shapes shapes-000001: the ledger is open by +1: 1 rows were lost (in 5, out 4)"


def test_parts_that_are_still_missing_are_no_fault(tmp_path: Path) -> None:
    stores = Stores(tmp_path, items=3)
    for n in range(3):
        stores.part("scan", f"shapes-{n:06d}", Rows(entered=2, out=2))
    stores.finish("scan", [f"shapes-{n:06d}" for n in range(3)])
    stores.part("select", "shapes-000001", Rows(entered=2, out=2))
    ledger = stores.check()
    assert faults(ledger) == []
    assert [s.state for s in ledger.steps] == ["done", "under way", "to do", "to do"]
    assert ledger.steps[1].first_missing == ["shapes-000000", "shapes-000002"]
    assert "select: 1 of 3 parts; missing shapes-000000, shapes-000002" in shown(ledger)


def test_a_finished_step_without_one_of_its_parts(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    for n in range(2):
        stores.part("scan", f"shapes-{n:06d}", Rows(entered=2, out=2))
    stores.finish("scan", ["shapes-000000", "shapes-000001"])
    stores.store("scan").delete(part_manifest_name("shapes-000001"))
    found = faults(stores.check())
    assert any("shapes-000001: the step is finished and this part has no manifest" in f for f in found)
    assert any("manifest says in 4, out 4 and its parts sum to in 2, out 2" in f for f in found)


def test_parts_that_do_not_belong_are_named(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    for n in range(2):
        stores.part("scan", f"shapes-{n:06d}", Rows())
    stores.finish("scan", ["shapes-000000", "shapes-000001"])
    stores.part("scan", "shapes-000007", Rows())
    text = "\n".join(faults(stores.check()))
    assert "shapes-000007: scan lists no work item of this name" in text
    assert "shapes-000007: the step's manifest does not name this part" in text
    other = PartManifest(step="scan", fingerprint="f" * 32, part="shapes-000000", source="shapes").dump()
    stores.store("scan").put(part_manifest_name("shapes-000001"), other)
    text = "\n".join(faults(stores.check()))
    assert "its manifest is that of scan shapes-000000" in text
    assert "has fingerprint ffffffffffff" in text


def test_a_retry_that_claims_too_much(tmp_path: Path) -> None:
    stores = Stores(tmp_path, items=1)
    gone = {"missing-image": 1}
    stores.part("scan", "shapes-000000", Rows(entered=3, out=2, quarantined=gone))
    stores.finish("scan", ["shapes-000000"])
    again = [WorkItem("shapes", 0, {"keys": ["a", "b"], "again": []}, 1)]
    stores.store("scan").put(retry_listing(1), dump_items(again))
    stores.part("scan", "shapes-000000.r1", Rows(entered=2, out=2))
    stores.finish("scan", ["shapes-000000.r1"], retry=1, retried={"shapes": {"missing-image": 2}})
    assert faults(stores.check()) == [
        "scan shapes: 1 more rows of class missing-image were tried again than were quarantined"
    ]


def test_a_retry_lets_no_more_through_than_it_tried(tmp_path: Path) -> None:
    stores = Stores(tmp_path, items=1)
    stores.part("scan", "shapes-000000", Rows(entered=3, out=2, quarantined={"missing-image": 1}))
    stores.finish("scan", ["shapes-000000"])
    stores.part("scan", "shapes-000000.r1", Rows(entered=2, out=2))
    stores.finish("scan", ["shapes-000000.r1"], retry=1, retried={"shapes": {"missing-image": 1}})
    assert any("it tried 1 quarantined rows again; 2 more entered" in f for f in faults(stores.check()))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=1, max_size=4),
    where=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    what=st.sampled_from(["entered", "out"]),
    by=st.sampled_from([-1, 1]),
)
def test_any_change_of_one_number_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    kept: list[tuple[int, ...]],
    where: tuple[int, int],
    what: str,
    by: int,
) -> None:
    def build(change: Callable[[int, str, Rows], Rows]) -> list[str]:
        stores = Stores(tmp_path_factory.mktemp("any"), items=len(kept))
        for n, gone in enumerate(kept):
            left = 20
            for step, count in zip(STORES, gone, strict=True):
                rows = Rows(entered=left, out=left - count, filtered={"short": count} if count else {})
                left -= count
                stores.part(step, f"shapes-{n:06d}", change(n, step, rows))
        return faults(stores.check())

    assert build(lambda n, step, rows: rows) == []
    place = (where[0] % len(kept), STORES[where[1]])
    found = build(lambda n, s, r: r.model_copy(update={what: getattr(r, what) + by}) if (n, s) == place else r)
    assert any(f"{place[1]} shapes shapes-{place[0]:06d}" in f for f in found)


def test_the_quarantine_is_grouped_and_says_what_retry_would_do(data: DataRun) -> None:
    rows = list(lost.quarantined(addresses_of(data.workdir)))
    assert sorted((r.error, r.file, r.row) for r in rows) == [
        ("bad-json", "list.jsonl", 25),
        ("not-an-image", "list.jsonl", 6),
    ]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in lost.render_quarantine(rows, 5):
        console.print(piece)
    text = console.export_text()
    assert "bad-json: 1 row" in text
    assert "What calumma retry would do" in text
    assert list(lost.quarantined(addresses_of(data.workdir), source="texts")) == []
    found = lost.as_json(rows * 3, 1)
    assert found["bad-json"]["count"] == 3
    assert len(found["bad-json"]["rows"]) == 1


def test_a_row_that_a_later_moment_may_mend_is_marked(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "select")
    rows = list(lost.quarantined(addresses_of(run.workdir)))
    found = lost.as_json(rows, 5)
    assert found["missing-image"]["transient"] is True
    assert found["not-an-image"]["transient"] is False


def test_names_of_parts() -> None:
    name = parse_part("a-b-000012.r3")
    assert name is not None
    assert (name.source, name.index, name.retry, name.base) == ("a-b", 12, 3, "a-b-000012")
    assert parse_part("losses-pretrain") is None
    assert parse_part("a-000012.r0") is None


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run was made in this folder"):
        addresses_of(tmp_path)
