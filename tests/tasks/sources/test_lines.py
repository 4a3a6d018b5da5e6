from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from tasks.sources import lines as lines_module
from tasks.sources.base import BadRow, EndOfRange
from tasks.sources.lines import JsonRow, Line, json_rows, line_before, line_items, read_lines
from tests.tasks.sources.reading import PACKED, FailingDisk

CONTENT = st.lists(st.sampled_from([b"", b"\r", b"a", b"a 1\r", b"bb", b" ", b"\xff", b"long " * 50]), max_size=30)


def locators(storage: Storage, target: int) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(found)) for found in line_items(storage, storage.find(), target)]


def all_lines(storage: Storage, target: int) -> list[Line | BadRow]:
    """All lines, numbered by the ends of the ranges before theirs."""
    found: list[Line | BadRow] = []
    row = 1
    for locator in locators(storage, target):
        *some, end = read_lines(storage, locator | {"row": row})
        assert isinstance(end, EndOfRange)
        assert not any(isinstance(line, EndOfRange) for line in some)
        found += some  # type: ignore[arg-type]
        row += end.lines
    return found


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that short files have several."""
    monkeypatch.setattr(lines_module, "BLOCK", 16)
    monkeypatch.setattr(lines_module, "AHEAD", 4)
    monkeypatch.setattr(lines_module, "SAMPLE", 64)


@given(CONTENT, st.integers(1, 7), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_ranges_cover_every_line_once_with_its_true_number(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], target: int, ends: bool, marked: bool
) -> None:
    storage = Storage(tmp_path_factory.mktemp("lines"))
    data = (b"\xef\xbb\xbf" if marked else b"") + b"\n".join(content) + (b"\n" if ends and content else b"")
    storage.put("f.jsonl", data)
    want, offset = [], 0
    for row, line in enumerate(split(data), 1):
        if line.removeprefix(b"\xef\xbb\xbf").strip():
            want.append(Line(row, offset, line))
        offset += len(line)
    assert all_lines(storage, target) == want
    ranges = locators(storage, target)
    assert all(a["stop"] == b["start"] for a, b in itertools.pairwise(ranges))
    assert [r.get("row") for r in ranges] == [1] + [None] * (len(ranges) - 1) if ranges else not data


def split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


@given(st.binary(max_size=60).map(lambda b: bytes(c % 4 + 9 for c in b)), st.integers(0, 60), st.integers(1, 8))
@settings(max_examples=300, deadline=None)
def test_the_line_before_is_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: int, ahead: int
) -> None:
    """``data`` is of tabs, line ends and two more; the range may begin in or at a line, also behind the last one."""
    if start >= len(data):
        return
    lines_module.AHEAD = ahead
    storage = Storage(tmp_path_factory.mktemp("lines"))
    storage.put("f", data)
    locator = {"file": "f", "start": start, "stop": len(data), "size": len(data)}
    offsets = [0, *itertools.accumulate(map(len, split(data)))]
    begins = [(at, line) for at, line in zip(offsets, split(data), strict=False) if at < start]
    assert line_before(storage, locator) == (Line(0, *begins[-1]) if begins else None)
    first = next((found for found in read_lines(storage, locator, blank=True) if isinstance(found, Line)), None)
    assert first is None or first.offset == min(at for at in offsets if at >= start)


def test_ranges_begin_exactly_at_lines(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.put("f.jsonl", b"123\n" * 8)
    for k in range(0, 32, 4):
        locator = {"file": "f.jsonl", "start": k, "stop": k + 4, "size": 32}
        assert list(read_lines(storage, locator)) == [Line(1, k, b"123\n"), EndOfRange(1)]
        inside = {"file": "f.jsonl", "start": k + 1, "stop": k + 4, "size": 32}
        assert list(read_lines(storage, inside)) == [EndOfRange(0)]


def test_the_number_of_ranges_follows_from_the_target(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.put("a.jsonl", b"")
    storage.put("b.jsonl", b"1234567\n" * 1000)
    storage.put("c.jsonl", b"1234567\n" * 100)
    found = locators(storage, 100)
    assert [f["file"] for f in found] == ["b.jsonl"] * 10 + ["c.jsonl"]
    counts = [sum(isinstance(line, Line) for line in read_lines(storage, f)) for f in found]
    assert counts == [100] * 11


@pytest.mark.parametrize(
    ("before", "long", "after", "most"),
    [(10, 34_000, 10, 8), (0, 34_000, 10, 4), (0, 34_000, 0, 4), (63, 34_000, 10, 8)],
)
def test_a_long_line_at_the_start_does_not_cut_the_file_into_crumbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, long: int, after: int, most: int
) -> None:
    monkeypatch.setattr(lines_module, "SAMPLE", 1000)
    storage = Storage(tmp_path)
    some = [b"x" * (n - 1) + b"\n" for n in (before, long, after) if n]
    storage.put("f.jsonl", b"".join(some))
    assert len(locators(storage, 10)) <= most
    found = [x for x in all_lines(storage, 10) if isinstance(x, Line)]
    assert [x.data for x in found] == some


def test_a_line_that_the_sample_cuts_does_not_change_what_equal_lines_say(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.put("f.jsonl", (b"x" * 9 + b"\n") * 1000)  # the sample ends within the seventh line
    assert len(locators(storage, 100)) == 10


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 5), st.integers(1, 2000), st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_ranges_of_large_files_are_not_short(
    tmp_path_factory: pytest.TempPathFactory, size: int, line: int, target: int, large: int, shortest: int
) -> None:
    shortest = min(shortest, large)
    storage = Storage(tmp_path_factory.mktemp("lines"))
    storage.put("f.jsonl", ((b"x" * (line - 1) + b"\n") * (size // line + 1))[:size])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(lines_module, "LARGE", large)
        monkeypatch.setattr(lines_module, "SHORTEST", shortest)
        ranges = locators(storage, target)
    assert (ranges[0]["start"], ranges[-1]["stop"]) == (0, size)
    assert all(a["stop"] == b["start"] for a, b in itertools.pairwise(ranges))
    if size > large:
        assert min(r["stop"] - r["start"] for r in ranges) >= shortest
    else:
        assert len(ranges) >= size // (line * target), "a small file is still cut"


def test_a_range_asks_for_its_own_bytes_and_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BLOCK", 1 << 22)
    monkeypatch.setattr(lines_module, "AHEAD", 1 << 16)
    asked = []

    class Watched(Storage):
        def range(self, name: str, start: int, stop: int) -> bytes:
            asked.append((start, stop))
            return super().range(name, start, stop)

    storage = Watched(tmp_path)
    storage.put("f.jsonl", b"x" * 99 + b"\n" + (b"y" * 9_999 + b"\n") * 1000)
    list(read_lines(storage, {"file": "f.jsonl", "start": 2_000_000, "stop": 3_000_000, "size": 10_000_100}))
    assert asked == [(1_999_999, 3_000_000), (3_000_000, 3_065_536)]


@pytest.mark.parametrize("packed", PACKED)
def test_a_line_that_is_too_long_costs_itself(tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 20)
    storage = Storage(tmp_path)
    data = b'{"a": 1}\n' + b" " * 19 + b"\n" + b"{" * 20 + b"\n" + b"{" * 500 + b"\n" + b'{"a": 2}'
    storage.put("f.jsonl" + packed, PACKED[packed](data))
    for target in (1, 2, 100):
        rows, first = [], 1
        for locator in locators(storage, target):
            for found in json_rows(storage, locator | {"row": first}):
                if isinstance(found, EndOfRange):
                    first += found.lines
                else:
                    rows.append((found.row, found.content if isinstance(found, JsonRow) else found.error))
        assert rows == [(1, {"a": 1}), (3, "too-large"), (4, "too-large"), (5, {"a": 2})]
    if not packed:
        before = [line_before(storage, {"file": "f.jsonl", "start": n, "size": len(data)}) for n in (9, 29, 50, 551)]
        assert [line and line.data for line in before] == [b'{"a": 1}\n', b" " * 19 + b"\n", None, None]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_cut_archive_gives_what_was_readable_and_one_bad_row(tmp_path: Path, packed: str) -> None:
    noise = random.Random(0)
    whole = b"".join(b'{"n": "%s"}\n' % noise.randbytes(20).hex().encode() for _ in range(20_000))
    storage = Storage(tmp_path)
    storage.put("f.jsonl" + packed, PACKED[packed](whole)[:200_000])
    rows = list(json_rows(storage, {"file": "f.jsonl" + packed}))
    assert len(rows) > 100
    assert not any(isinstance(r, BadRow) for r in rows[:-1])
    assert isinstance(rows[-1], BadRow)
    assert (rows[-1].error, rows[-1].row) == ("damaged-file", len(rows))
    third = rows[2]
    assert isinstance(third, JsonRow)
    assert third.key == f"f.jsonl{packed}@{2 * 50}", "the offset is that of the unpacked file"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "bad-json"),
        ("[1]", "bad-json"),
        ("[" * 100_000, "bad-json"),
        ('{"n": %s}' % ("9" * 5000), "bad-json"),
        ('{"t": "\xff"}', "not-utf-8"),
    ],
)
def test_a_damaged_line_costs_itself(tmp_path: Path, line: str, error: str) -> None:
    storage = Storage(tmp_path)
    storage.put("f.jsonl", b'{"a": 1}\n' + line.encode("latin-1") + b'\n{"a": 2}\n')
    size = storage.size("f.jsonl")
    first, bad, last, end = json_rows(storage, {"file": "f.jsonl", "start": 0, "stop": size, "size": size, "row": 1})
    assert first == (1, "f.jsonl@0", {"a": 1})
    assert last == (3, f"f.jsonl@{size - 9}", {"a": 2})
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.error) == (2, error)
    assert end == EndOfRange(3)


def test_a_file_that_is_gone_stops_the_step(tmp_path: Path) -> None:
    for locator in ({"file": "f.gz"}, {"file": "f", "start": 0, "stop": 5, "size": 5}):
        with pytest.raises(StoreError, match="no such file"):
            list(read_lines(Storage(tmp_path), locator))


@pytest.mark.parametrize("suffix", PACKED)
def test_a_disk_that_fails_stops_the_step(tmp_path: Path, suffix: str) -> None:
    data = PACKED[suffix](b"".join(b'{"n": %d}\n' % n for n in range(1000)))
    (tmp_path / f"f.jsonl{suffix}").write_bytes(data)
    storage = FailingDisk(tmp_path, len(data) // 2)
    for locator in line_items(Storage(tmp_path), storage.find(), 10):
        if locator.get("start", len(data)) <= len(data) // 2:
            continue
        with pytest.raises(StoreError, match="Input/output error"):
            list(read_lines(storage, locator))
        if "stop" in locator:
            with pytest.raises(StoreError, match="Input/output error"):
                line_before(storage, locator)
