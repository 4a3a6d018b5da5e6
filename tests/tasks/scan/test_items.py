from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import SourceError, StoreError
from infra.storage import Storage
from tasks.scan.items import (
    ITEMS,
    all_items,
    dump_items,
    list_items,
    listed_items,
    load_items,
    read_item,
    read_range,
    retry_listing,
)
from tasks.sources import open_source
from tasks.sources.base import BadRow, BaseSource, EndOfRange, RawSample, WorkItem
from tasks.sources.config import SourceConfig


class Ranges(BaseSource):
    """Ten rows as byte ranges would give them: rows counted from the range's start, and lines told at its end."""

    def digest(self) -> str:
        return "ten"

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index, start in enumerate(range(0, 10, target)):
            yield WorkItem(self.config.name, index, {"file": "f", "start": start, "stop": min(start + target, 10)})

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        start, stop, first = item.locator["start"], item.locator["stop"], item.locator.get("row", 1)
        for number in range(start, stop):
            row = first + number - start
            yield BadRow("f", row, "bad-json") if number % 4 == 3 else RawSample(f"f@{number}", "f", row)
        yield EndOfRange(stop - start)


def ten(limit: int | None = None) -> SourceConfig:
    return SourceConfig(name="t", type=f"{__name__}:Ranges", kind="text", limit=limit)


def numbers(rows: Iterator[RawSample | BadRow]) -> list[str]:
    return [r.key if isinstance(r, RawSample) else f"bad {r.row}" for r in rows]


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (1, 1), (4, 4), (5, 5), (9, 9), (10, 10), (99, 10)])
@pytest.mark.parametrize("target", [1, 3, 4, 100])
def test_a_limit_takes_the_first_samples_in_source_order(limit: int | None, expected: int, target: int) -> None:
    config = ten(limit)
    items = load_items(dump_items(list_items([config], ".", target)))
    reader = open_source(config)
    rows = [r for item in items for r in read_item(reader, item)]
    assert [r.key for r in rows if isinstance(r, RawSample)] == [f"f@{n}" for n in range(expected) if n % 4 != 3]
    assert sum(isinstance(r, BadRow) for r in rows) == sum(n % 4 == 3 for n in range(expected))
    assert [i.index for i in items] == list(range(len(items)))


def test_a_range_tells_its_lines_only_to_who_asks() -> None:
    (item,) = list_items([ten()], ".", 100)
    source = open_source(ten())
    assert list(read_range(source, item))[-1] == EndOfRange(10)
    assert not any(isinstance(row, EndOfRange) for row in read_item(source, item))


def test_of_a_retry_only_its_keys_are_read() -> None:
    """The keys are scan's: a bad row's is counted from its range's start, also when true rows are asked for."""
    source = open_source(ten())
    item = next(i for i in list_items([ten()], ".", 5) if i.index == 1)
    again = WorkItem("t", 1, {**item.locator, "keys": ["f@5", "f@5#3"]}, retry=1)
    assert again.part == "t-000001.r1"
    assert numbers(read_item(source, again)) == ["f@5", "bad 3"]
    numbered = WorkItem("t", 1, {**again.locator, "row": 6, "before": 5}, retry=1)
    assert numbers(read_item(source, numbered)) == ["f@5", "bad 8"]
    cut = WorkItem("t", 1, {**again.locator, "take": 2}, retry=1)
    assert numbers(read_item(source, cut)) == ["f@5"], "the limit counts before the keys"


def test_listing_round_trips_as_the_same_bytes() -> None:
    items = list(list_items([ten()], ".", 2))
    items.append(WorkItem("t", 0, {"keys": ["é\n"]}, retry=2))
    data = dump_items(items)
    assert load_items(data) == items
    assert dump_items(load_items(data)) == data
    assert data.count(b"\n") == len(items)


def test_generations_come_in_order(tmp_path: Path) -> None:
    store, items = Storage(str(tmp_path)), list(list_items([ten()], ".", 5))
    with pytest.raises(StoreError, match="Run step scan first"):
        all_items(store)
    store.put(ITEMS, dump_items(items))
    for retry in (10, 2):
        store.put(retry_listing(retry), dump_items([WorkItem("t", 1, {}, retry)]))
    assert [i.part for i in all_items(store)] == ["t-000000", "t-000001", "t-000001.r2", "t-000001.r10"]
    assert [i.part for i in listed_items(store, 2)] == ["t-000001.r2"]


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    class Nothing(Ranges):
        def work_items(self, target: int) -> Iterator[WorkItem]:
            return iter(())

    globals()["Nothing"] = Nothing
    with pytest.raises(SourceError, match=r"source t: nothing to read in t\.jsonl"):
        list(list_items([SourceConfig(name="t", type=f"{__name__}:Nothing", kind="text", path="t.jsonl")], tmp_path, 2))


def test_a_hundred_thousand_items_are_written_and_read_in_seconds() -> None:
    items = (WorkItem("s", n, {"file": f"shard-{n:06d}.jsonl", "start": n, "stop": n + 9}) for n in range(100_000))
    started = time.perf_counter()
    data = dump_items(items)
    assert len(load_items(data)) == 100_000
    assert time.perf_counter() - started < 15, "about a second on an idle core"
    assert len(data) < 12_000_000
