"""The readers of files: pairs, text, interleaved, messages."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import SourceError
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Source, WorkItem
from tasks.sources.config import SourceConfig


def source(folder: Path, kind: str, path: str, **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=kind, kind=kind, path=path, options=options), folder)  # type: ignore[arg-type]


def rows(found: Source, target: int = 100) -> list[RawSample | BadRow]:
    """Everything, its work items taken through JSON as ``scan`` does."""
    items = [
        WorkItem(**json.loads(json.dumps({"source": i.source, "index": i.index, "locator": i.locator})))
        for i in found.work_items(target)
    ]
    return [r for item in items for r in found.read(item)]


def samples(found: Source, target: int = 100) -> list[RawSample]:
    result = rows(found, target)
    assert not [r for r in result if isinstance(r, BadRow)]
    return [r for r in result if isinstance(r, RawSample)]


def errors(found: Source) -> list[str]:
    return [r.error for r in rows(found) if isinstance(r, BadRow)]


def jsonl(path: Path, content: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(c) + "\n" for c in content), encoding="utf-8")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


# -- pairs


def test_pairs_of_jsonl(pictures: Path) -> None:
    jsonl(
        pictures / "pictures" / "list.jsonl",
        [
            {"file": "a.png", "captions": ["one", "two"], "licence": "CC0"},
            {"file": "b.png", "caption": "three"},
            {"file": "missing.png", "caption": "four"},
            {"file": "b.png"},
        ],
    )
    found = samples(source(pictures, "pairs", "pictures/list.jsonl"), target=2)
    assert [(s.key, s.row, s.captions, s.licence) for s in found] == [
        ("list.jsonl#1", 1, ("one", "two"), "CC0"),
        ("list.jsonl#2", 2, ("three",), ""),
        ("list.jsonl#3", 3, ("four",), ""),
        ("list.jsonl#4", 4, (), ""),
    ]
    assert [s.images[0].data for s in found] == [b"a.png", b"b.png", None, b"b.png"]


@pytest.mark.parametrize("target", [1, 2, 3, 100])
@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".csv", ".csv.gz", ".jsonl"])
def test_rows_of_one_picture_are_one_pair_wherever_items_are_cut(pictures: Path, suffix: str, target: int) -> None:
    content = [("a.png", "one"), ("a.png", "two"), ("a.png", "three"), ("b.png", "four"), ("a.png", "five")]
    path = pictures / "pictures" / f"list{suffix}"
    if "jsonl" in suffix:
        jsonl(path, [{"file": f, "caption": c} for f, c in content])
    else:
        separator = "\t" if "tsv" in suffix else ","
        data = "".join(f"{f}{separator}{c}\r\n" for f, c in [("file", "caption"), *content]).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    found = samples(source(pictures, "pairs", f"pictures/list{suffix}"), target)
    assert [s.captions for s in found] == [("one", "two", "three"), ("four",), ("five",)]
    first = 1 if "jsonl" in suffix else 2
    assert [s.row for s in found] == [first, first + 3, first + 4]
    assert len({s.key for s in found}) == 3


def test_csv_captions_may_hold_commas_quotes_and_lines(pictures: Path) -> None:
    with open(pictures / "pictures" / "list.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["caption", "file"], ['a "b",\nc', "a.png"], ["d", "b.png"]])
    found = samples(source(pictures, "pairs", "pictures", list="list.csv"))
    assert [s.captions for s in found] == [('a "b",\nc',), ("d",)]


def test_pairs_of_a_folder(pictures: Path) -> None:
    folder = pictures / "pictures"
    (folder / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    (folder / "sub" / "c.txt").write_text("three", encoding="utf-8")
    found = rows(source(pictures, "pairs", "pictures"), target=1)
    assert [r.key for r in found if isinstance(r, RawSample)] == ["a.png", "sub/c.jpg"]
    assert [r.captions for r in found if isinstance(r, RawSample)] == [("one", "two"), ("three",)]
    assert [(r.file, r.error) for r in found if isinstance(r, BadRow)] == [("b.png", "missing-caption")]
    before = source(pictures, "pairs", "pictures").digest()
    (folder / "b.txt").write_text("four", encoding="utf-8")
    assert source(pictures, "pairs", "pictures").digest() != before


def test_bad_rows_of_lists(pictures: Path) -> None:
    folder = pictures / "pictures"
    jsonl(
        folder / "list.jsonl",
        [
            {"caption": "no file"},
            {"file": 7, "caption": "a number"},
            {"file": "../../secret", "caption": "escape"},
            {"file": "a.png", "caption": [1]},
            {"file": "a.png", "caption": "fine"},
        ],
    )
    found = source(pictures, "pairs", "pictures/list.jsonl")
    assert errors(found) == ["missing-field", "bad-field", "bad-field", "path-escape"]
    (folder / "list.tsv").write_bytes(b"file\tcaption\na.png\tb\tc\na.png\t\xff\na.png\tfine\n")
    assert errors(source(pictures, "pairs", "pictures/list.tsv")) == ["bad-columns", "not-utf-8"]
    (folder / "list.csv").write_text("file,caption\na.png\na.png,b,c\na.png,fine\n", encoding="utf-8")
    assert errors(source(pictures, "pairs", "pictures/list.csv")) == ["bad-columns", "bad-columns"]


@pytest.mark.parametrize("name", ["list.tsv", "list.csv"])
def test_a_list_without_the_columns_names_them(pictures: Path, name: str) -> None:
    (pictures / "pictures" / name).write_text("image\ttext\n" if "tsv" in name else "image,text\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"has columns \['image', 'text'\]; expected 'file'"):
        list(source(pictures, "pairs", f"pictures/{name}").work_items(1))
    with pytest.raises(SourceError, match="not a list of pairs"):
        source(pictures, "pairs", "pictures/a.png").digest()


# -- text


def test_texts_of_every_form(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    jsonl(folder / "a.jsonl", [{"text": "one", "licence": "CC0"}, {"text": "two"}, {"other": 1}])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (folder / "c.txt").write_text("four\n", encoding="utf-8")
    (folder / "d.md.gz").write_bytes(gzip.compress(b"five"))
    (folder / "e.bin").write_bytes(b"no text")
    pq.write_table(pa.table({"text": ["six", None, "seven"], "n": [1, 2, 3]}), folder / "f.parquet", row_group_size=1)
    for target in (1, 2, 100):
        found = rows(source(tmp_path, "text", "texts"), target)
        texts = {r.key: r.segments[0].text for r in found if isinstance(r, RawSample)}
        assert texts == {
            "c.txt": "four\n",
            "d.md.gz": "five",
            "a.jsonl#1": "one",
            "a.jsonl#2": "two",
            "b.jsonl.gz#1": "three",
            "f.parquet#1": "six",
            "f.parquet#3": "seven",
        }
        bad = [(r.file, r.row, r.error) for r in found if isinstance(r, BadRow)]
        assert bad == [("a.jsonl", 3, "missing-field"), ("f.parquet", 2, "missing-field")]
    only = samples(source(tmp_path, "text", "texts", pattern="*.txt"))
    assert [s.key for s in only] == ["c.txt"]
    assert [s.key for s in samples(source(tmp_path, "text", "texts/c.txt"))] == ["c.txt"]


def test_parquet_row_groups_become_items_of_about_the_target(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(n) for n in range(10)]}), tmp_path / "f.parquet", row_group_size=2)
    found = source(tmp_path, "text", "f.parquet")
    assert [i.locator["groups"] for i in found.work_items(4)] == [[0, 2], [2, 4], [4, 5]]
    assert [s.segments[0].text for s in samples(found, 4)] == [str(n) for n in range(10)]


def test_a_damaged_parquet_file_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    jsonl(tmp_path / "g.jsonl", [{"text": "fine"}])
    found = rows(source(tmp_path, "text", "."))
    assert [type(r) for r in found] == [RawSample, BadRow]


def test_no_file_that_matches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"matches '\*.jsonl'"):
        list(source(tmp_path, "text", ".", pattern="*.jsonl").work_items(1))


# -- interleaved


def test_interleaved_segments_are_paragraphs(pictures: Path) -> None:
    segments = [
        {"type": "heading", "text": "Head"},
        {"type": "text", "text": "Body"},
        {"type": "image", "image": "a.png", "alt": "alternative", "caption": "below"},
        {"type": "image", "image": "b.png", "caption": ""},
        "end",
    ]
    jsonl(pictures / "pictures" / "docs.jsonl", [{"title": "Title", "segments": segments, "licence": "CC0"}])
    (found,) = samples(source(pictures, "interleaved", "pictures/docs.jsonl"))
    assert [(s.text, s.image) for s in found.segments] == [
        ("# Title\n\n## Head\n\nBody\n\n", None),
        (None, 0),
        ("\n\nbelow\n\n", None),
        (None, 1),
        ("\n\nend", None),
    ]
    assert [i.data for i in found.images] == [b"a.png", b"b.png"]
    (plain,) = samples(source(pictures, "interleaved", "pictures/docs.jsonl", caption="none", title=None))
    assert plain.segments[0].text == "## Head\n\nBody\n\n"
    assert plain.segments[2].text == "\n\n"


def test_bad_segments_cost_their_document(pictures: Path) -> None:
    bad = [
        {"segments": "text"},
        {"segments": [7]},
        {"segments": [{"type": "video", "text": "x"}]},
        {"segments": [{"type": "image", "image": "../x"}]},
        {"no": 1},
    ]
    jsonl(pictures / "docs.jsonl", [*bad, {"segments": ["fine"]}])
    found = source(pictures, "interleaved", "docs.jsonl")
    assert errors(found) == ["bad-field", "bad-field", "bad-field", "path-escape", "missing-field"]
    with pytest.raises(SourceError, match="not a JSONL file"):
        source(pictures, "interleaved", "pictures").digest()


# -- messages


def spoken(sample: RawSample) -> list[tuple[str, str | int | None]]:
    return [(s.role, s.text if s.image is None else s.image) for s in sample.segments]


def test_prompt_and_response_fields(pictures: Path) -> None:
    jsonl(
        pictures / "m.jsonl",
        [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Say", "input": "", "output": "hi"}],
    )
    found = samples(
        source(pictures, "messages", "m.jsonl", prompt=["instruction", "input"], response="output", category="code")
    )
    assert [spoken(s) for s in found] == [
        [("user", "Add\n1 2"), ("assistant", "3")],
        [("user", "Say"), ("assistant", "hi")],
    ]
    assert {s.category for s in found} == {"code"}


def test_pictures_in_prompts_and_answers(pictures: Path) -> None:
    jsonl(
        pictures / "pictures" / "m.jsonl", [{"file": "a.png", "captions": ["a cat"], "rows": ["x", {"image": "b.png"}]}]
    )
    path = "pictures/m.jsonl"
    draw = source(
        pictures,
        "messages",
        path,
        prompt=["captions.0"],
        prompt_template="Draw: {}",
        response=None,
        answer_image="file",
    )
    assert spoken(samples(draw)[0]) == [("user", "Draw: a cat"), ("assistant", 0)]
    ask = source(pictures, "messages", path, prompt=[], prompt_template="What?", image="file", response="captions.0")
    assert spoken(samples(ask)[0]) == [("user", 0), ("user", "What?"), ("assistant", "a cat")]
    both = source(pictures, "messages", path, prompt=["captions.0"], image="file", response="rows")
    found = samples(both)[0]
    assert spoken(found) == [("user", 0), ("user", "a cat"), ("assistant", "x\n\n"), ("assistant", 1)]
    assert [i.data for i in found.images] == [b"a.png", b"b.png"]


def test_turns_and_placeholders(pictures: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>what?"},
        {"role": "assistant", "content": "that"},
        {"from": "human", "value": "and <image>? <image>"},
        {"from": "gpt", "value": "this"},
    ]
    jsonl(pictures / "pictures" / "m.jsonl", [{"messages": turns, "images": ["a.png", "b.png"]}])
    (found,) = samples(source(pictures, "messages", "pictures/m.jsonl", turns="messages", image="images"))
    assert spoken(found) == [
        ("user", "Be brief.\n\n"),
        ("user", 0),
        ("user", "what?"),
        ("assistant", "that"),
        ("user", "and "),
        ("user", 1),
        ("user", "? <image>"),
        ("assistant", "this"),
    ]


def test_pictures_without_a_place_come_first(pictures: Path) -> None:
    turns = [{"role": "user", "content": "x <image> y"}, {"role": "assistant", "content": "z"}]
    jsonl(pictures / "pictures" / "m.jsonl", [{"messages": turns, "images": ["a.png", "b.png"]}])
    (found,) = samples(source(pictures, "messages", "pictures/m.jsonl", turns="messages", image="images"))
    assert spoken(found) == [("user", 0), ("user", "x "), ("user", 1), ("user", " y"), ("assistant", "z")]
    assert [i.name for i in found.images] == ["b.png", "a.png"]


def test_bad_conversations(pictures: Path) -> None:
    jsonl(
        pictures / "m.jsonl",
        [
            {"response": "no prompt"},
            {"prompt": "no response"},
            {"prompt": 3, "response": "x"},
            {"prompt": "p", "response": {"a": 1}},
            {"prompt": "p", "response": "fine"},
        ],
    )
    assert errors(source(pictures, "messages", "m.jsonl")) == [
        "missing-field",
        "missing-field",
        "bad-field",
        "bad-field",
    ]
    jsonl(pictures / "t.jsonl", [{"messages": [{"role": "tool", "content": "x"}]}, {"messages": "x"}, {"messages": []}])
    assert errors(source(pictures, "messages", "t.jsonl", turns="messages")) == ["bad-field", "bad-field"]


def test_real_files_are_read_without_a_bad_row(shared_data: Path) -> None:
    pairs = samples(source(shared_data, "pairs", "pairs/pairs.jsonl"))
    by_list = samples(source(shared_data, "pairs", "pairs/captions.tsv"))
    assert len(pairs) == len(by_list) == 773
    assert sum(len(s.captions) for s in by_list) == sum(len(s.captions) for s in pairs) == 1853
    assert all(s.images[0].data for s in pairs)
    docs = samples(source(shared_data, "interleaved", "interleaved/docs.jsonl"))
    assert len(docs) == 90
    assert len(samples(source(shared_data, "text", "text", pattern="*.jsonl"))) == 925
    chat = samples(source(shared_data, "messages", "sft/visualchat_daquar.jsonl", turns="messages", image="images"))
    assert all(s.images and s.segments[0].image == 0 for s in chat)
