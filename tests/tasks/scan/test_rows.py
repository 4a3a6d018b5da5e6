from __future__ import annotations

from pathlib import Path

from infra.storage import Storage
from tasks.scan.rows import ROWS, dump_rows, first_rows, load_rows, with_first_row
from tasks.sources.base import WorkItem


def item(index: int, file: str | None, start: int = 1, source: str = "s") -> WorkItem:
    return WorkItem(source, index, {} if file is None else {"file": file, "start": start})


def test_ranges_of_a_file_follow_each_other() -> None:
    items = [item(0, "a", 0), item(1, "a", 90), item(2, "a", 180), item(3, "b", 0), item(4, "b", 70), item(5, None)]
    lines = {"s-000000": 10, "s-000001": 0, "s-000002": 5, "s-000003": 7, "s-000004": 3}
    assert first_rows(items, lines) == {"s-000001": 11, "s-000002": 11, "s-000004": 8}


def test_two_sources_of_one_file_name_and_parts_without_lines_do_not_mix() -> None:
    items = [item(0, "a", 0), item(0, "a", 50, "t"), item(1, "a", 60, "t")]
    assert first_rows(items, {"s-000000": 10, "t-000000": 4, "t-000001": 4}) == {"t-000001": 5}
    assert first_rows([item(0, "a", 0), item(1, "a", 9)], {"s-000000": 10}) == {}, "its reader counts by itself"


def test_rows_reach_the_locator_of_the_item_and_of_its_retries(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    assert load_rows(store) == {}
    store.put(ROWS, dump_rows({"s-000001": 11}))
    rows = load_rows(store)
    assert with_first_row(item(1, "a"), rows).locator == {"file": "a", "start": 1, "row": 11, "before": 10}
    retried = WorkItem("s", 1, {"file": "a", "keys": ["a#3"]}, retry=2)
    assert with_first_row(retried, rows).locator["row"] == 11
    assert with_first_row(item(0, "a"), rows) == item(0, "a")
