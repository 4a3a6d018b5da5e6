from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SourceError
from tasks.scan.items import dump_items, list_items, load_items, read_item
from tasks.sources import open_source
from tasks.sources.config import SourceConfig


def text_source(folder: Path, count: int, limit: int | None = None) -> SourceConfig:
    (folder / "t.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(count)), encoding="utf-8")
    return SourceConfig(name="t", type="text", kind="text", path="t.jsonl", limit=limit)


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (1, 1), (4, 4), (5, 5), (9, 9), (10, 10), (99, 10)])
@pytest.mark.parametrize("target", [1, 3, 4, 100])
def test_a_limit_takes_the_first_samples_in_source_order(
    tmp_path: Path, limit: int | None, expected: int, target: int
) -> None:
    config = text_source(tmp_path, 10, limit)
    items = load_items(dump_items(list_items([config], tmp_path, target)))
    reader = open_source(config, tmp_path)
    keys = [r.key for item in items for r in read_item(reader, item)]  # type: ignore[union-attr]
    assert keys == [f"t.jsonl#{n}" for n in range(1, expected + 1)]
    assert [i.index for i in items] == list(range(len(items)))


def test_listing_round_trips_as_the_same_bytes(tmp_path: Path) -> None:
    items = list_items([text_source(tmp_path, 5)], tmp_path, 2)
    assert load_items(dump_items(items)) == items
    assert dump_items(load_items(dump_items(items))) == dump_items(items)


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source t: nothing to read in t\.jsonl"):
        list_items([text_source(tmp_path, 0)], tmp_path, 2)
