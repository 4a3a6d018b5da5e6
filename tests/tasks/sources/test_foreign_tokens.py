"""Types ``mds`` and ``megatron``: whatever lies in such files, a damaged one costs its rows and no more."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.storage import Storage
from tasks.exchange.mds import MdsWriter
from tasks.exchange.megatron import MAGIC, MegatronWriter
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Source
from tasks.sources.config import SourceConfig
from tasks.sources.tokens import documents_in
from tests.tasks.sources.reading import items_of, rows, samples

IDS = st.lists(st.integers(3, 0xFFFF), min_size=1, max_size=300)


def source(folder: Path, form: str, **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=form, kind="tokens", path=".", options=options), folder)


def ids(found: list[RawSample]) -> list[list[int]]:
    return [np.frombuffer(s.tokens, "<u2").tolist() for s in found]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents=st.lists(IDS, min_size=1, max_size=12), target=st.integers(1, 9), size=st.integers(1, 3000))
@pytest.mark.parametrize("form", ["mds", "megatron"])
def test_documents_come_back_whatever_the_files_and_work_items(
    tmp_path_factory: pytest.TempPathFactory, form: str, documents: list[list[int]], target: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp(form)
    writer: Any = (
        MdsWriter(Storage(folder), {"tokens": "ndarray:uint16", "name": "str"}, size)
        if form == "mds"
        else MegatronWriter(Storage(folder), "int32", size)
    )
    for number, document in enumerate(documents):
        tokens = np.array([0, *document, 2], np.uint16)
        writer.write({"tokens": tokens, "name": f"é{number}"} if form == "mds" else tokens)
    writer.finish()
    found = samples(source(folder, form), target)
    assert ids(found) == documents
    assert len({s.key for s in found}) == len(documents)


@given(st.lists(st.integers(0, 9), max_size=40))
def test_a_row_is_cut_at_its_marks(row: list[int]) -> None:
    found = list(documents_in(np.array(row, np.uint16), "f", 3))
    assert [i for s in found for i in np.frombuffer(s.tokens, "<u2").tolist()] == [i for i in row if i > 2]
    assert all(i > 2 for s in found for i in np.frombuffer(s.tokens, "<u2"))
    assert [s.key for s in found] == ["f#3", *(f"f#3.{n}" for n in range(1, len(found)))]
    assert all(s.tokens for s in found) or len(found) == 1


@given(st.lists(st.sampled_from([0, 1, 2, 7, 8]), max_size=40), st.integers(1, 9))
def test_documents_do_not_depend_on_how_a_row_is_gone_through(row: list[int], block: int) -> None:
    # Cut by the words of documents_in: before every <s>, behind every </s>, padding left out.
    pieces: list[list[int]] = [[]]
    for i in row:
        if i == 0:
            pieces.append([])
        if i > 2:
            pieces[-1].append(i)
        if i == 2:
            pieces.append([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.sources.tokens._BLOCK", block)
        assert ids(list(documents_in(np.array(row, np.uint16), "f", 1))) == ([p for p in pieces if p] or [[]])


def test_a_row_of_nothing_but_marks_costs_its_own_size() -> None:
    tracemalloc.start()
    try:
        assert [s.tokens for s in documents_in(np.full(1 << 20, 2, np.uint16), "f", 1)] == [b""]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def shard(columns: dict[str, tuple[str, int | None]], rows_: list[bytes]) -> bytes:
    names = sorted(columns)
    head = json.dumps(
        {
            "column_names": names,
            "column_encodings": [columns[n][0] for n in names],
            "column_sizes": [columns[n][1] for n in names],
        }
    ).encode()
    offsets = np.cumsum([8 + 4 * len(rows_) + len(head), *map(len, rows_)]).astype("<u4")
    return np.uint32(len(rows_)).tobytes() + offsets.tobytes() + head + b"".join(rows_)


@pytest.mark.parametrize(
    ("encoding", "size", "data", "expected"),
    [
        ("bytes", None, np.array([5, 6], "<i8").tobytes(), [5, 6]),
        ("ndarray:int32:2", 8, np.array([5, 6], "<i4").tobytes(), [5, 6]),
        ("ndarray:int64", None, b"\x04\x02" + np.array([5, 6], "<i8").tobytes(), [5, 6]),
        ("ndarray", None, b"\x21\x05\x02\x00" + np.array([5, 6], "<i4").tobytes(), [5, 6]),
        ("ndarray:int32:1", 4, np.array([-1], "<i4").tobytes(), "ids from -1 to -1"),
        ("ndarray:int32:1", 4, np.array([70000], "<i4").tobytes(), "ids from 70000 to 70000"),
        ("ndarray:float32:1", 4, bytes(4), "numbers float32"),
        ("ndarray", None, b"\x22\x04\x01" + bytes(4), "numbers of floats"),
        ("ndarray:int32", None, b"\x08\x01\x01" + bytes(4), "an array of 2 dimensions"),
        ("ndarray:int32", None, b"", "an array of 0 dimensions"),
        ("bytes", None, b"123", "3 bytes are no whole number of int64"),
        ("pkl", None, b"x", "a column of type pkl"),
    ],
)
def test_columns_of_other_writers(tmp_path: Path, encoding: str, size: int | None, data: bytes, expected: Any) -> None:
    head = b"" if size else struct.pack("<I", len(data))
    (tmp_path / "shard.00000.mds").write_bytes(shard({"ids": (encoding, size)}, [head + data]))
    (found,) = rows(source(tmp_path, "mds", tokens="ids", dtype="int64"))
    if isinstance(expected, list):
        assert isinstance(found, RawSample)
        assert ids([found]) == [expected]
    else:
        assert isinstance(found, BadRow)
        assert found.error == "bad-tokens"
        assert expected in found.message


def write(folder: Path, form: str) -> Path:
    """A data set of three documents; its file of heads."""
    store = Storage(folder)
    writer: Any = MdsWriter(store, {"tokens": "ndarray:uint16"}) if form == "mds" else MegatronWriter(store)
    for n in range(3):
        tokens = np.arange(10 * n + 3, 10 * n + 9).astype(np.uint16)
        writer.write({"tokens": tokens} if form == "mds" else tokens)
    writer.finish()
    return next(f for f in folder.iterdir() if f.suffix in (".mds", ".idx"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans())
@pytest.mark.parametrize("form", ["mds", "megatron"])
def test_damage_costs_rows_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, form: str, at: int, byte: int, cut: bool
) -> None:
    path = write(tmp_path_factory.mktemp(form), form)
    data = bytearray(path.read_bytes())
    at %= len(data)
    path.write_bytes(data[:at] if cut else data[:at] + bytes([byte]) + data[at + 1 :])
    for row in rows(source(path.parent, form), 1 << 20):
        assert isinstance(row, RawSample) or row.error in ("damaged-file", "bad-tokens")


def test_what_a_damaged_file_is_told_as(tmp_path: Path) -> None:
    path = write(tmp_path, "megatron")
    good = path.read_bytes()
    for data, said in [
        (b"nothing", "does not begin like an index"),
        (MAGIC + struct.pack("<QBQQ", 2, 8, 1, 2), "version 2; expected 1"),
        (MAGIC + struct.pack("<QBQQ", 1, 7, 1, 2), "type code 7; expected one of 1, 2, 3, 4, 5, 8"),
        (good[:-8], "ends before its numbers do"),
    ]:
        path.write_bytes(data)
        (found,) = [r for r in rows(source(tmp_path, "megatron")) if isinstance(r, BadRow)]
        assert found.error == "damaged-file"
        assert said in found.message
    path.write_bytes(good)
    tokens = path.with_suffix(".bin")
    tokens.write_bytes(tokens.read_bytes()[:-1])
    assert [type(r).__name__ for r in rows(source(tmp_path, "megatron"))] == ["RawSample", "RawSample", "BadRow"]
    tokens.unlink()
    (gone,) = rows(source(tmp_path, "megatron"))
    assert isinstance(gone, BadRow)
    assert "there is no tokens-00000.bin" in gone.message


HEAD = json.dumps({"column_names": ["tokens"], "column_encodings": ["ndarray:uint16"], "column_sizes": [None]}).encode()


@pytest.mark.parametrize(
    ("head", "sample", "error", "said"),
    [
        (HEAD, b"abc", "bad-tokens", "a sample of 3 bytes is shorter than the sizes of its columns"),
        (HEAD, b"", "bad-tokens", "a sample of 0 bytes is shorter"),
        (HEAD, b"\xff\xff\xff\xff", "bad-tokens", "a sample is shorter than its columns"),
        (HEAD, bytes(201), "too-large", "201 bytes; at most 200 are read"),
        (b"[" * 200_000, b"", "damaged-file", "does not say what its columns are"),
        (b" " * (1 << 21), b"", "damaged-file", "describes its columns in 2,097,152 bytes"),
    ],
)
def test_hostile_shards_cost_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, sample: bytes, error: str, said: str
) -> None:
    monkeypatch.setattr("tasks.sources.mds.MAX_FILE_BYTES", 200)
    good = struct.pack("<I", 4) + b"\x04\x01" + np.array([9], "<u2").tobytes()
    offsets = np.cumsum([16 + 4 + len(head), len(sample), len(good)]).astype("<u4") - 4
    data = np.uint32(2).tobytes() + offsets.tobytes() + head + sample + good
    (tmp_path / "shard.00000.mds").write_bytes(data)
    bad, *rest = rows(source(tmp_path, "mds"))
    assert isinstance(bad, BadRow)
    assert (bad.error, bad.row) == (error, 1)
    assert said in bad.message
    assert ids([r for r in rest if isinstance(r, RawSample)]) == ([[9]] if head == HEAD else [])


@pytest.mark.parametrize("offset", [(1 << 63) - 2, 1 << 62, -1])
def test_offsets_beyond_any_file_cost_rows(tmp_path: Path, offset: int) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(range(20)))
    numbers = np.array([5, 5], "<i4").tobytes() + np.array([offset, 10], "<i8").tobytes()
    head = struct.pack("<9sQBQQ", MAGIC, 1, 8, 2, 3)
    (tmp_path / "x.idx").write_bytes(head + numbers + np.arange(3, dtype="<i8").tobytes())
    bad = next(r for r in rows(source(tmp_path, "megatron")) if isinstance(r, BadRow))
    assert bad.error == "damaged-file"


def test_work_items_follow_from_the_first_shard(tmp_path: Path) -> None:
    writer = MdsWriter(Storage(tmp_path), {"tokens": "ndarray:uint16:50"}, 2000)
    for n in range(100):
        writer.write({"tokens": np.full(50, n + 3, np.uint16)})
    writer.finish()
    found = source(tmp_path, "mds")
    assert len(items_of(found, 5)) > len(items_of(found, 1000)) == len(list(tmp_path.glob("*.mds")))
    assert ids(samples(found, 5)) == [[n + 3] * 50 for n in range(100)]
