from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sources.base import BadRow
from tasks.sources.files import (
    LineRange,
    UnusableRow,
    field,
    folder_slices,
    inside,
    json_rows,
    line_ranges,
    list_files,
    load_image,
    read_lines,
    read_plain,
    slice_files,
)

LINES = st.lists(st.sampled_from([b"", b"a", b"a 1", b"bb", b"\xff", b"long " * 50]), max_size=30)


def all_lines(path: Path, target: int, **options: object) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    for lines in line_ranges(path, target, **options):  # type: ignore[arg-type]
        for line in read_lines(path, LineRange.of(json.loads(json.dumps(lines.locator("x"))))):
            assert not isinstance(line, BadRow)
            found.append(line)
    return found


@given(LINES, st.integers(1, 7), st.booleans())
@settings(max_examples=200, deadline=None)
def test_ranges_cover_every_line_once_with_its_true_number(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], target: int, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "f.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends and lines else b""))
    want = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    assert [(n, line.rstrip(b"\n")) for n, line in all_lines(path, target)] == want
    ranges = list(line_ranges(path, target))
    assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
    assert (ranges[-1].stop if ranges else 0) == path.stat().st_size


@given(LINES, st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_lines_that_belong_together_are_never_parted(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], target: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "f.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    belong = lambda a, b: a[:1] == b[:1] != b"\n"  # noqa: E731
    for lines_range in line_ranges(path, target, belong):
        if lines_range.row > 1:
            assert not belong(lines[lines_range.row - 2] + b"\n", lines[lines_range.row - 1] + b"\n")
    assert len(all_lines(path, target, belong=belong)) == sum(1 for line in lines if line.strip())


def test_a_header_is_passed_over_and_numbers_stay_true(tmp_path: Path) -> None:
    path = tmp_path / "f.tsv"
    path.write_bytes(b"head\n1\n2\n3\n")
    assert all_lines(path, 2, first_row=2) == [(2, b"1\n"), (3, b"2\n"), (4, b"3\n")]
    zipped = tmp_path / "f.tsv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert all_lines(zipped, 2, first_row=2) == [(2, b"1\n"), (3, b"2\n"), (4, b"3\n")]


def test_a_cut_archive_gives_what_was_readable_and_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    import random

    noise = random.Random(0)
    whole = b"".join(b'{"n": "%s"}\n' % noise.randbytes(20).hex().encode() for _ in range(20_000))
    path.write_bytes(gzip.compress(whole)[:200_000])
    rows = list(json_rows(path, LineRange(0, None, 1)))
    assert len(rows) > 100
    assert not any(isinstance(r, BadRow) for r in rows[:-1])
    assert isinstance(rows[-1], BadRow)
    assert rows[-1].error == "damaged-file"


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
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("latin-1") + b'\n{"a": 2}\n')
    first, bad, last = json_rows(path, LineRange(0, None, 1))
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 2}))
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.error) == (2, error)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "linked/secret.png", "..", "a\0b"]
)
def test_names_do_not_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(UnusableRow) as e:
        load_image(folder, name)
    assert e.value.error in ("path-escape", "bad-name")


def test_names_within_the_folder_are_read_and_missing_ones_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"data")
    assert load_image(tmp_path, "a/x.png").data == b"data"
    assert load_image(tmp_path, "a/../a/x.png").data == b"data"
    assert load_image(tmp_path, "b.png").data is None
    assert load_image(tmp_path, "a").data is None, "a folder is no picture"
    assert inside(tmp_path, "a") == (tmp_path / "a").resolve()


def test_folders_are_listed_sorted_in_slices_that_cover_them(tmp_path: Path) -> None:
    names = [f"{f}/{n}.png" for f in ("a", "b/c") for n in ("x", "y", "z")] + ["top.png"]
    for name in [*names, "a/x.txt", ".hidden.png", ".git/x.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def wanted(name: str) -> bool:
        return name.endswith(".png")

    assert list_files(tmp_path, wanted) == sorted(names)
    for target in (1, 2, 100):
        slices = [json.loads(json.dumps(s)) for s in folder_slices(tmp_path, wanted, target)]
        found = [n for s in slices for n in slice_files(tmp_path, s, wanted)]
        assert sorted(found) == sorted(names)
        assert all(len(slice_files(tmp_path, s, wanted)) <= target for s in slices)


def test_fields_are_found_by_path() -> None:
    row = {"a": [{"b": "x"}], "n": None}
    assert field(row, "a.0.b") == "x"
    for name in ("a.1.b", "b", "n", "a.x"):
        with pytest.raises(UnusableRow, match="there are a, n"):
            field(row, name)


def test_plain_text_loses_its_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfh\xc3\xa9\r\n")
    assert read_plain(path) == "h\u00e9\r\n"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableRow, match="utf-8"):
        read_plain(path)
