from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ResourceError, StoreError
from infra.storage import Storage
from tasks.sources import parquet
from tasks.sources.base import BadRow
from tests.tasks.sources.reading import FailingDisk, _Failing


def write(folder: Path, name: str, count: int, group: int, text: str = "text ") -> None:
    pq.write_table(pa.table({"text": [f"{text}{n}" for n in range(count)]}), folder / name, row_group_size=group)


def read(storage: Storage, target: int, *columns: str) -> list[Any]:
    locators = [json.loads(json.dumps(found)) for found in parquet.slices(storage, storage.find(), target)]
    return [row for locator in locators for row in parquet.rows(storage, locator, columns or ("text",))]


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_slices_cover_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: int, of: int, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    write(folder, "f.parquet", count, group)
    parquet.BATCH_ROWS, before = batch, parquet.BATCH_ROWS
    try:
        parts = [
            list(parquet.rows(Storage(folder), {"file": "f.parquet", "slice": k, "of": of}, ["text", "absent"]))
            for k in range(of)
        ]
    finally:
        parquet.BATCH_ROWS = before
    assert list(itertools.chain(*parts)) == [(n + 1, {"text": f"text {n}"}) for n in range(count)]
    assert all(len(part) in (count // of, -(-count // of)) for part in parts)


def test_slices_follow_from_sizes_and_the_first_footer(tmp_path: Path) -> None:
    for name, count in (("a", 1000), ("b", 3000), ("c", 10)):
        write(tmp_path, f"{name}.parquet", count, 250)
    opened = []

    class Watched(Storage):
        def open(self, name: str) -> Any:
            opened.append(name)
            return super().open(name)

    storage = Watched(tmp_path)
    found = list(parquet.slices(storage, storage.find(), 200))
    of = {f["file"]: f["of"] for f in found}
    assert of["a.parquet"] == 5
    assert 13 <= of["b.parquet"] <= 20
    assert of["c.parquet"] == 1
    assert opened == ["a.parquet"]
    assert [f["slice"] for f in found] == [k for count in of.values() for k in range(count)]


def test_a_row_group_is_shared_by_few_slices(tmp_path: Path) -> None:
    write(tmp_path, "f.parquet", 4000, 2000)
    found = list(parquet.slices(Storage(tmp_path), Storage(tmp_path).find(), 10))
    assert len(found) == 2 * parquet.CUTS


def test_a_file_without_a_footer_is_one_bad_row_a_slice(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "b.parquet").write_bytes(b"")
    write(tmp_path, "c.parquet", 10, 10)
    cut = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(cut[:-20])
    found = read(Storage(tmp_path), 4)
    bad = [(r.file, r.row, r.error) for r in found if isinstance(r, BadRow)]
    assert {file for file, _, _ in bad} == {"a.parquet", "b.parquet", "d.parquet"}
    assert {error for _, _, error in bad} == {"damaged-file"}
    assert len(set(bad)) == len(bad)
    assert len([r for r in found if not isinstance(r, BadRow)]) == 10


def test_a_damaged_row_group_costs_what_lies_behind_the_damage(tmp_path: Path) -> None:
    write(tmp_path, "f.parquet", 30, 10, text="a text that is long enough ")
    content = bytearray((tmp_path / "f.parquet").read_bytes())
    info = pq.read_metadata(tmp_path / "f.parquet").row_group(1).column(0)
    start = info.dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    (tmp_path / "f.parquet").write_bytes(content)
    found = list(parquet.rows(Storage(tmp_path), {"file": "f.parquet", "slice": 0, "of": 1}, ["text"]))
    assert [r[0] for r in found if not isinstance(r, BadRow)] == [*range(1, 11), *range(21, 31)]
    (bad,) = (r for r in found if isinstance(r, BadRow))
    assert (bad.row, bad.error) == (11, "damaged-file")


def test_a_value_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    offsets, data = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(3, offsets, data)}), tmp_path / "f.parquet")
    first, bad, last = read(Storage(tmp_path), 100)
    assert (first, last) == ((1, {"text": "a"}), (3, {"text": "b"}))
    assert (bad.file, bad.row, bad.error) == ("f.parquet", 2, "not-utf-8")


def test_columns_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "f.parquet", 3, 2)
    assert read(Storage(tmp_path), 2, "no") == [(1, {}), (2, {}), (3, {})]


def test_batches_have_a_bound_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"data": [bytes([n]) * 1000 for n in range(64)]}), tmp_path / "f.parquet", compression=None)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 4000)
    sizes: list[int] = []
    contents = parquet._contents

    def watched(batch: pa.RecordBatch) -> Any:
        sizes.append(batch.num_rows)
        return contents(batch)

    monkeypatch.setattr(parquet, "_contents", watched)
    assert len(read(Storage(tmp_path), 100, "data")) == 64
    assert max(sizes) <= 4


def test_a_file_that_is_gone_stops_the_step(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        list(parquet.rows(Storage(tmp_path), {"file": "f.parquet", "slice": 0, "of": 1}, ["text"]))


def test_a_disk_that_fails_stops_the_step(tmp_path: Path) -> None:
    write(tmp_path, "f.parquet", 3000, 1000, "a text that is long enough ")
    size = (tmp_path / "f.parquet").stat().st_size
    storage = FailingDisk(tmp_path, size - 1)
    for use in (lambda: list(parquet.slices(storage, storage.find(), 10)), lambda: read_one(storage)):
        with pytest.raises(StoreError, match=rf"{tmp_path}/f\.parquet: .*Input/output error"):
            use()


def test_a_storage_that_fails_in_the_middle_stops_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "f.parquet", 3000, 1000, "a text that is long enough ")
    storage = FailingDisk(tmp_path, 1 << 40)
    found = parquet.rows(storage, {"file": "f.parquet", "slice": 0, "of": 1}, ["text"])
    assert next(found) == (1, {"text": "a text that is long enough 0"})
    for error, told in (
        (OSError(errno.ESTALE, "Stale file handle"), StoreError),
        (ResourceError("503"), ResourceError),
    ):

        def fail(*_: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(_Failing, "readinto", fail)
        with pytest.raises(told, match="Stale|503"):
            list(found)
        monkeypatch.undo()
        found = parquet.rows(storage, {"file": "f.parquet", "slice": 0, "of": 1}, ["text"])
        next(found)


def read_one(storage: Storage) -> list[Any]:
    return list(parquet.rows(storage, {"file": "f.parquet", "slice": 0, "of": 1}, ["text"]))
