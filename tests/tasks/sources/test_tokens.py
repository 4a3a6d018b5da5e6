from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sources import open_source
from tasks.sources.base import BadRow, Source
from tasks.sources.config import SourceConfig
from tasks.sources.files import UnusableRow
from tasks.sources.tokens import ids_of
from tests.tasks.sources.reading import jsonl, rows

IDS = st.lists(st.integers(0, 0xFFFF), max_size=50)


def tokens(folder: Path, path: str = ".", **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type="tokens", kind="tokens", path=path, options=options), folder)


@given(IDS)
def test_lists_and_bytes_are_the_same(ids: list[int]) -> None:
    data = np.array(ids, "<u2").tobytes()
    assert ids_of(ids) == ids_of(data)
    inner = ids[1:] if ids[:1] == [0] else ids
    inner = inner[:-1] if inner[-1:] == [2] else inner
    assert np.frombuffer(ids_of(ids), "<u2").tolist() == inner


@given(IDS.filter(lambda ids: ids[:1] != [0] and ids[-1:] != [2]))
def test_marks_around_a_document_are_taken_off_once(ids: list[int]) -> None:
    assert ids_of([0, *ids, 2]) == ids_of(ids)
    assert ids_of([0, 0, *ids, 2, 2]) == ids_of(np.array([9, 0, *ids, 2, 9], "<u2").tobytes())[2:-2]


@pytest.mark.parametrize("value", [[65536], [-1], [1.5], [True], [None], ["a"], [[1]], "text", 7, b"odd", {}, [10**30]])
def test_what_is_no_id(value: Any) -> None:
    with pytest.raises(UnusableRow, match="bad-tokens"):
        ids_of(value)


def test_parquet_and_jsonl_of_a_folder(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"ids": [[0, 100, 2], None, [101]], "licence": ["CC0", None, None]}), tmp_path / "a.parquet"
    )
    packed = [np.array([102, 103], "<u2").tobytes(), b"123"]
    pq.write_table(pa.table({"ids": packed}), tmp_path / "b.parquet")
    jsonl(tmp_path / "c.jsonl", [{"ids": [0, 104]}, {"ids": "no"}, {"tokens": [1]}])
    source = tokens(tmp_path, tokens="ids")
    found = {(r.file, r.row): r for r in rows(source)}
    good = {k: np.frombuffer(r.tokens, "<u2").tolist() for k, r in found.items() if not isinstance(r, BadRow)}
    assert good == {
        ("a.parquet", 1): [100],
        ("a.parquet", 3): [101],
        ("b.parquet", 1): [102, 103],
        ("c.jsonl", 1): [104],
    }
    bad = sorted((r.file, r.error) for r in rows(source) if isinstance(r, BadRow))
    assert bad == [
        ("a.parquet", "missing-field"),
        ("b.parquet", "bad-tokens"),
        ("c.jsonl", "bad-tokens"),
        ("c.jsonl", "missing-field"),
    ]
