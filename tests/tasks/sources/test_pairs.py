from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.errors import SourceError
from infra.storage import Storage
from tasks.sources import lines, pair_lists
from tasks.sources.base import BadRow, EndOfRange, RawSample, WorkItem
from tests.tasks.sources.reading import (
    PACKED,
    errors,
    items_of,
    json_lines,
    jsonl,
    numbered,
    rows,
    samples,
    source,
    upload,
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def as_list(kind: str, content: list[tuple[str, str]], end: str = "\r\n") -> bytes:
    """A list of pictures and captions as a file's bytes."""
    if kind == ".jsonl":
        return "".join(json.dumps({"file": f, "caption": c}) + end for f, c in content).encode()
    separator = {".tsv": "\t", ".csv": ","}[kind]
    return "".join(f"{f}{separator}{c}{end}" for f, c in [("file", "caption"), *content]).encode()


# -- lists


def test_pairs_of_jsonl(pictures: Path) -> None:
    jsonl(
        pictures / "pictures" / "list.jsonl",
        [
            {"file": "a.png", "captions": ["one", "two"], "licence": "CC0", "url": "https://x.org/a.png"},
            {"file": "b.png", "caption": "three"},
            {"file": "missing.png", "caption": "four"},
            {"file": "b.png"},
        ],
    )
    found = samples(source(pictures, "pairs", "pictures/list.jsonl"), target=2)
    assert [(s.captions, s.licence, s.images[0].url) for s in found] == [
        (("one", "two"), "CC0", "https://x.org/a.png"),
        (("three",), "", ""),
        (("four",), "", ""),
        ((), "", ""),
    ]
    assert [s.images[0].data for s in found] == [b"a.png", b"b.png", None, b"b.png"]
    assert found[2].images[0].error == "missing-image"
    assert [s.key for s in found][:2] == ["list.jsonl@0", "list.jsonl@94"]
    other = samples(source(pictures, "pairs", "pictures/list.jsonl", url=None, licence=None))
    assert (other[0].licence, other[0].images[0].url) == ("", "")


@pytest.mark.parametrize("target", [1, 2, 3, 100])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", [".jsonl", ".tsv", ".csv"])
def test_rows_of_one_picture_are_one_pair_wherever_items_are_cut(
    pictures: Path, kind: str, packed: str, target: int
) -> None:
    content = [("a.png", "one"), ("a.png", "two"), ("a.png", "three"), ("b.png", "four"), ("a.png", "five")]
    name = f"list{kind}{packed}"
    (pictures / "pictures" / name).write_bytes(PACKED[packed](as_list(kind, content)))
    found = [s for s in numbered(source(pictures, "pairs", f"pictures/{name}"), target) if isinstance(s, RawSample)]
    assert [s.captions for s in found] == [("one", "two", "three"), ("four",), ("five",)]
    first = 1 if kind == ".jsonl" else 2
    assert [s.row for s in found] == [first, first + 3, first + 4]
    starts = [as_list(kind, content).index(caption) for caption in (b"a.png", b"b.png")]
    assert [s.key for s in found[:2]] == [
        f"{name}@{as_list(kind, content)[:at].rfind(chr(10).encode()) + 1}" for at in starts
    ]


@pytest.mark.parametrize("target", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", [".jsonl", ".tsv", ".csv"])
def test_a_licence_or_address_covers_its_own_rows_only(pictures: Path, kind: str, target: int) -> None:
    content = [
        ("one", "CC0", "u1"),
        ("two", "CC0", "u1"),
        ("three", "CC BY-NC 4.0", "u1"),
        ("four", "CC BY-NC 4.0", "u2"),
        ("five", "", "u2"),
        ("six", "", "u2"),
        ("seven", "CC0", "u1"),
    ]
    names, separator = ("file", "caption", "licence", "url"), "," if kind == ".csv" else "\t"
    cells = [("a.png", *row) for row in content]
    if kind == ".jsonl":
        lines_ = [json.dumps(dict(zip(names, row, strict=True))) for row in cells]
    else:
        lines_ = [separator.join(row) for row in (names, *cells)]
    data = "".join(f"{line}\n" for line in lines_)
    (pictures / "pictures" / f"list{kind}").write_text(data, encoding="utf-8")
    found = samples(source(pictures, "pairs", f"pictures/list{kind}"), target)
    assert [(s.captions, s.licence, s.images[0].url) for s in found] == [
        (("one", "two"), "CC0", "u1"),
        (("three",), "CC BY-NC 4.0", "u1"),
        (("four",), "CC BY-NC 4.0", "u2"),
        (("five", "six"), "", "u2"),
        (("seven",), "CC0", "u1"),
    ]
    begin = {
        caption: data[: data.index(caption)].rfind("\n") + 1 for caption in ("one", "three", "four", "five", "seven")
    }
    assert [s.key for s in found] == [f"list{kind}@{begin[s.captions[0]]}" for s in found]


def test_a_bad_caption_does_not_part_its_picture(pictures: Path) -> None:
    row = {"file": "a.png", "licence": "CC0", "url": "u"}
    jsonl(pictures / "pictures" / "list.jsonl", [row | {"caption": c} for c in ("one", 2, "three")])
    found = rows(source(pictures, "pairs", "pictures/list.jsonl"))
    assert [r.captions for r in found if isinstance(r, RawSample)] == [("one", "three")]
    assert [(r.row, r.error) for r in found if isinstance(r, BadRow)] == [(2, "bad-field")]


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes blocks and bounds so small that short files meet them."""
    monkeypatch.setattr(lines, "BLOCK", 64)
    monkeypatch.setattr(lines, "AHEAD", 8)
    monkeypatch.setattr(lines, "SAMPLE", 50)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64)


LINE = st.one_of(
    st.tuples(st.sampled_from(["a.png", "a.png", "b.png", "../x"]), st.sampled_from(["", "one", "two" * 9])),
    st.sampled_from(
        ["", " ", "{", "wrong\tnumber\tof columns", '{"file": "a.png", "caption": 3}', '{"file": 7}', "y" * 70]
    ),
)


PARTED = [
    *(("a.png", "one"), ("a.png", "two"), "", ("a.png", "three"), " ", ("b.png", "four"), "{", ("b.png", "five")),
    *("y" * 70, ("b.png", "six"), ("b.png", "")),
]


@example(".jsonl", PARTED, "\n", True, False, 1)
@example(".tsv", PARTED, "\r\n", False, False, 2)
@given(
    st.sampled_from([".jsonl", ".tsv"]),
    st.lists(LINE, max_size=7),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_pairs_do_not_depend_on_where_items_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    content: list[Any],
    end: str,
    ends: bool,
    marked: bool,
    target: int,
) -> None:
    """Samples, keys and rows are those of one item: none lost, none doubled, whatever stands between them."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = [x if isinstance(x, str) else as_list(kind, [x], "").split(b"\n")[-1].decode() for x in content]
    if kind == ".tsv":
        cells = (t if isinstance(x, str) else "\t".join(x) for t, x in zip(texts, content, strict=True))
        texts = ["file\tcaption", *cells]
    data = (b"\xef\xbb\xbf" if marked else b"") + (end.join(texts) + (end if ends else "")).encode()
    (folder / f"list{kind}").write_bytes(data)
    found = source(folder, "pairs", f"list{kind}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_steps(monkeypatch)
        want = numbered(found, 10_000)
        assert len(items_of(found, 10_000)) <= 1
        assert numbered(found, target) == want
        monkeypatch.setattr(lines, "BLOCK", 4096)
        monkeypatch.setattr(lines, "AHEAD", 4096)
        for cut in range(1, len(data)):
            ends_at = {"file": f"list{kind}", "start": 0, "stop": cut, "size": len(data), "row": 1}
            *first, lines_before = found.read(WorkItem("s", 0, ends_at))
            assert isinstance(lines_before, EndOfRange)
            begins_at = ends_at | {"start": cut, "stop": len(data), "row": 1 + lines_before.lines}
            *second, rest = found.read(WorkItem("s", 1, begins_at))
            assert first + second == want, cut
            assert isinstance(rest, EndOfRange)
            assert lines_before.lines + rest.lines == len(data.splitlines())
    captions = [c for r in want if isinstance(r, RawSample) for c in r.captions]
    assert len([c for c in captions if c]) == len(
        [1 for x in content if not isinstance(x, str) and x[0][0] != "." and x[1]]
    )


def test_a_long_run_of_one_picture_is_one_pair_of_the_first_item(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)
    content = [("b.png", "first"), *(("a.png", f"caption {n}") for n in range(400)), ("b.png", "last")]
    data = as_list(".tsv", content, "\n")
    (pictures / "pictures" / "list.tsv").write_bytes(data)
    found = source(pictures, "pairs", "pictures/list.tsv")
    asked, range_of = 0, Storage.range

    def watched(storage: Storage, name: str, start: int, stop: int) -> bytes:
        nonlocal asked
        asked += min(stop, len(data)) - start
        return range_of(storage, name, start, stop)

    monkeypatch.setattr(Storage, "range", watched)
    assert len(items_of(found, 3)) > 100
    assert [len(s.captions) for s in samples(found, 3)] == [1, 400, 1]
    assert asked < 12 * len(data), "only the first item reads on to the run's end"


def test_csv_captions_may_hold_commas_quotes_and_lines(pictures: Path) -> None:
    sink = io.StringIO()
    csv.writer(sink).writerows(
        [["caption", "file"], ['a "b",\nc', "a.png"], ["d", "b.png"], [], ["e\n\nf\n", "sub/c.jpg"], ["g", "a.png"]]
    )
    data = sink.getvalue().encode()
    (pictures / "pictures" / "list.csv").write_bytes(b"\xef\xbb\xbf" + data)
    found = samples(source(pictures, "pairs", "pictures", list="list.csv"))
    assert [(s.row, s.captions[0]) for s in found] == [(2, 'a "b",\nc'), (4, "d"), (6, "e\n\nf\n"), (10, "g")]
    starts = [data.index(start) + 3 for start in (b'"a ', b"d,", b'"e\n', b"g,")]
    assert [s.key for s in found] == [f"list.csv@{at}" for at in starts]


def test_folders_of_lists(pictures: Path) -> None:
    shards = pictures / "shards"
    jsonl(shards / "1.jsonl", [{"file": "a.png", "caption": "one"}, {"file": "b.png", "caption": "two"}])
    jsonl(shards / "sub" / "2.jsonl", [{"file": "b.png", "caption": "three"}])
    (shards / "3.jsonl.gz").write_bytes(PACKED[".gz"](json_lines([{"file": "a.png", "caption": "four"}])))
    found = samples(source(pictures, "pairs", "shards", images="../pictures"))
    assert [(s.file, s.captions[0]) for s in found] == [
        ("1.jsonl", "one"),
        ("1.jsonl", "two"),
        ("3.jsonl.gz", "four"),
        ("sub/2.jsonl", "three"),
    ]
    assert all(s.images[0].data for s in found)
    some = samples(source(pictures, "pairs", "shards", images="../pictures", list="*.gz"))
    assert [s.captions[0] for s in some] == ["four"]
    one = samples(source(pictures, "pairs", "shards", images="../../pictures", list="sub/2.jsonl"))
    assert [(s.file, s.captions[0]) for s in one] == [("2.jsonl", "three")]
    with pytest.raises(SourceError, match="not a list of pairs"):
        source(pictures, "pairs", "shards", list="*.tsv").digest()


def test_several_csv_files_are_an_item_each(pictures: Path) -> None:
    for name in ("1.csv", "2.csv"):
        (pictures / "pictures" / name).write_bytes(as_list(".csv", [("a.png", "x")] * 100))
    found = source(pictures, "pairs", "pictures", list="*.csv")
    assert [i.locator for i in items_of(found, 10)] == [{"file": "1.csv"}, {"file": "2.csv"}]
    assert [len(s.captions) for s in samples(found)] == [100, 100]


def test_a_folder_that_may_mean_two_things_is_refused(pictures: Path) -> None:
    jsonl(pictures / "pictures" / "list.jsonl", [{"file": "a.png", "caption": "one"}])
    with pytest.raises(SourceError, match="option `list`"):
        source(pictures, "pairs", "pictures").digest()
    (pictures / "two").mkdir()
    for name in ("x.jsonl", "x.tsv"):
        (pictures / "two" / name).write_bytes(b"")
    with pytest.raises(SourceError, match="option `list`"):
        source(pictures, "pairs", "two").digest()


def test_pairs_of_a_folder(pictures: Path) -> None:
    folder = pictures / "pictures"
    (folder / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    (folder / "sub" / "c.txt.zst").write_bytes(PACKED[".zst"](b"three"))
    found = rows(source(pictures, "pairs", "pictures"), target=1)
    assert [r.key for r in found if isinstance(r, RawSample)] == ["a.png", "sub/c.jpg"]
    assert [r.captions for r in found if isinstance(r, RawSample)] == [("one", "two"), ("three",)]
    assert [(r.file, r.error) for r in found if isinstance(r, BadRow)] == [("b.png", "missing-caption")]
    before = source(pictures, "pairs", "pictures").digest()
    (folder / "b.txt").write_text("four", encoding="utf-8")
    assert source(pictures, "pairs", "pictures").digest() != before


@pytest.mark.parametrize("target", [1, 2, 100])
def test_links_of_a_folder_that_lead_nowhere_are_told_of(pictures: Path, target: int) -> None:
    folder = pictures / "pictures"
    for name in ("a", "b", "dead", "linked"):
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    (folder / "linked.png").symlink_to("a.png")
    whole = source(pictures, "pairs", "pictures")
    before = whole.digest()
    (folder / "dead.jpg").symlink_to("/nowhere/at/all.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "sub" / "gone.jpg").symlink_to("nothing.jpg")
    (folder / "folder.jpg").symlink_to("sub")
    (folder / ".hidden.jpg").symlink_to("nothing.jpg")
    (folder / "other.doc").symlink_to("nothing.doc")
    assert whole.digest() != before
    found = sorted(rows(source(pictures, "pairs", "pictures"), target), key=lambda r: r.file)
    assert [(r.file, r.row) for r in found] == [
        *[("a.png", 1), ("b.png", 2), ("dead.jpg", 3), ("linked.png", 4), ("loop.jpg", 5)],
        *[("sub/c.jpg", 1), ("sub/gone.jpg", 2)],
    ]
    assert [(r.file, r.error) for r in found if isinstance(r, BadRow)] == [
        ("dead.jpg", "missing-image"),
        ("loop.jpg", "missing-image"),
        ("sub/c.jpg", "missing-caption"),
        ("sub/gone.jpg", "missing-image"),
    ]
    assert [r.key for r in found if isinstance(r, RawSample)] == ["a.png", "b.png", "linked.png"]


def test_bad_rows_of_lists(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures / "pictures"
    jsonl(
        folder / "list.jsonl",
        [
            {"caption": "no file"},
            {"file": 7, "caption": "a number"},
            {"file": "../../secret", "caption": "escape"},
            {"file": "a.png", "caption": [1]},
            {"file": "a\0.png", "caption": "x"},
            {"file": "a.png", "caption": "fine"},
        ],
    )
    found = source(pictures, "pairs", "pictures/list.jsonl")
    assert errors(found) == ["missing-field", "bad-field", "path-escape", "bad-field", "bad-name"]
    assert [r.row for r in rows(found)] == [1, 2, 3, 4, 5, 6]
    (folder / "list.tsv").write_bytes(b"file\tcaption\na.png\tb\tc\na.png\t\xff\na.png\tfine\n")
    assert errors(source(pictures, "pairs", "pictures/list.tsv")) == ["bad-columns", "not-utf-8"]
    monkeypatch.setattr(pair_lists, "MAX_FIELD", 50)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    (folder / "list.csv").write_bytes(
        b"file,caption\na.png\na.png,b,c\na.png,\xff\na.png," + b"x" * 60 + b"\na.png," + b"x" * 200 + b"\na.png,fine\n"
    )
    found = source(pictures, "pairs", "pictures/list.csv")
    assert [(r.row, r.error) for r in rows(found) if isinstance(r, BadRow)] == [
        (2, "bad-columns"),
        (3, "bad-columns"),
        (4, "not-utf-8"),
        (5, "bad-csv"),
        (6, "too-large"),
    ]
    assert [(r.row, r.captions) for r in rows(found) if isinstance(r, RawSample)] == [(7, ("fine",))]


@pytest.mark.parametrize("kind", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_cut_list_gives_what_was_readable_and_one_bad_row(pictures: Path, kind: str, packed: str) -> None:
    content = [(f"{n * 7919 % 10007}.png", f"caption {n * 104729 % 1000003}") for n in range(20_000)]
    data = PACKED[packed](as_list(kind, content))
    (pictures / "pictures" / f"list{kind}{packed}").write_bytes(data[: len(data) // 2])
    *good, bad = rows(source(pictures, "pairs", f"pictures/list{kind}{packed}"))
    assert isinstance(bad, BadRow)
    assert bad.error == "damaged-file"
    assert len(good) > 5000
    assert all(isinstance(r, RawSample) for r in good)
    assert bad.row == good[-1].row + 1


@pytest.mark.parametrize("name", ["list.tsv", "list.csv", "list.tsv.gz"])
def test_a_list_without_the_columns_names_them(pictures: Path, name: str) -> None:
    header = b"image\ttext\n" if "tsv" in name else b"image,text\n"
    (pictures / "pictures" / name).write_bytes(PACKED[".gz"](header) if name.endswith("gz") else header)
    with pytest.raises(SourceError, match=r"has columns \['image', 'text'\]; expected 'file'"):
        list(source(pictures, "pairs", f"pictures/{name}").work_items(1))
    with pytest.raises(SourceError, match="not a list of pairs"):
        source(pictures, "pairs", "pictures/a.png").digest()


# -- S3


def test_pairs_on_s3(pictures: Path, s3_bucket: str) -> None:
    content = [
        ("a.png", "one"),
        ("a.png", "two"),
        ("../pictures/../../secret", "out"),
        ("no.png", "three"),
        ("b.png", "four"),
    ]
    (pictures / "pictures" / "list.tsv").write_bytes(as_list(".tsv", content * 50))
    (pictures / "folder").mkdir()
    (pictures / "folder" / "x.png").write_bytes(b"x")
    (pictures / "folder" / "x.txt").write_bytes(b"caption of x")
    here = source(pictures, "pairs", "pictures/list.tsv")
    upload(s3_bucket, pictures)
    there = source(pictures, "pairs", f"{s3_bucket}/pictures/list.tsv")
    assert len(items_of(there, 9)) > 20
    assert rows(there, 9) == rows(here, 9)
    assert numbered(there, 9) == numbered(here, 10_000)
    (alone,) = samples(source(pictures, "pairs", f"{s3_bucket}/folder"))
    assert (alone.key, alone.captions, alone.images[0].data) == ("x.png", ("caption of x",), b"x")


def test_real_lists_are_read_without_a_bad_row(shared_data: Path) -> None:
    pairs = samples(source(shared_data, "pairs", "pairs/pairs.jsonl"))
    by_list = samples(source(shared_data, "pairs", "pairs/captions.tsv"))
    assert len(pairs) == len(by_list) == 773
    assert sum(len(s.captions) for s in by_list) == sum(len(s.captions) for s in pairs) == 1853
    assert all(s.images[0].data for s in pairs)
