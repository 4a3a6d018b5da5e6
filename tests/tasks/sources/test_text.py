from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from infra.errors import SourceError
from tasks.sources.base import BadRow, RawSample
from tests.tasks.sources.reading import items_of, jsonl, numbered, rows, samples, source, upload


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    jsonl(folder / "a.jsonl", [{"text": "one", "licence": "CC0"}, {"text": "two"}, {"other": 1}])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (folder / "c.txt").write_text("four\n", encoding="utf-8")
    (folder / "d.md.gz").write_bytes(gzip.compress(b"five"))
    (folder / "e.bin").write_bytes(b"no text")
    pq.write_table(pa.table({"text": ["six", None, "seven"], "n": [1, 2, 3]}), folder / "f.parquet", row_group_size=1)
    (folder / "g.jsonl.zst").write_bytes(zstandard.compress(b'\n{"text": "eight"}'))
    (folder / "h.TXT.zst").write_bytes(zstandard.compress(b"nine"))
    return tmp_path


WANT = {
    "c.txt": "four\n",
    "d.md.gz": "five",
    "h.TXT.zst": "nine",
    "a.jsonl@0": "one",
    "a.jsonl@34": "two",
    "b.jsonl.gz@0": "three",
    "g.jsonl.zst@1": "eight",
    "f.parquet#1": "six",
    "f.parquet#3": "seven",
}


def check_all(folder: Path, path: str) -> None:
    for target in (1, 2, 100):
        found = rows(source(folder, "text", path), target)
        assert {r.key: r.segments[0].text for r in found if isinstance(r, RawSample)} == WANT
        bad = [(r.file, r.error) for r in found if isinstance(r, BadRow)]
        assert bad == [("a.jsonl", "missing-field"), ("f.parquet", "missing-field")]
    licences = {r.key: r.licence for r in rows(source(folder, "text", path)) if isinstance(r, RawSample)}
    assert {key: licence for key, licence in licences.items() if licence} == {"a.jsonl@0": "CC0"}


def test_texts_of_every_form(texts: Path) -> None:
    check_all(texts, "texts")
    only = samples(source(texts, "text", "texts", pattern="*.txt"))
    assert [s.key for s in only] == ["c.txt"]
    assert [s.key for s in samples(source(texts, "text", "texts/c.txt"))] == ["c.txt"]


def test_texts_of_every_form_on_s3(texts: Path, s3_bucket: str) -> None:
    upload(f"{s3_bucket}/texts", texts / "texts")
    check_all(texts, f"{s3_bucket}/texts")
    (alone,) = samples(source(texts, "text", f"{s3_bucket}/texts/b.jsonl.gz"))
    assert (alone.key, alone.segments[0].text) == ("b.jsonl.gz@0", "three")
    first = source(texts, "text", f"{s3_bucket}/texts").digest()
    assert source(texts, "text", f"{s3_bucket}/texts").digest() == first
    upload(f"{s3_bucket}/texts", texts / "texts")
    (texts / "texts" / "c.txt").write_text("FOUR\n", encoding="utf-8")
    upload(f"{s3_bucket}/texts", texts / "texts")
    assert source(texts, "text", f"{s3_bucket}/texts").digest() != first
    with pytest.raises(SourceError, match="there is nothing at s3://"):
        source(texts, "text", f"{s3_bucket}/nothing").digest()


@pytest.mark.parametrize("target", [1, 2, 3, 7, 100])
def test_rows_keys_and_texts_do_not_depend_on_where_items_are_cut(tmp_path: Path, target: int) -> None:
    parts = [b"\n" if n % 5 == 0 else json.dumps({"text": "x" * (n % 11 * 7)}).encode() + b"\r\n" for n in range(60)]
    for name in ("a.jsonl", "sub/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b"".join(parts) + b'{"text": "last"}')
    found = source(tmp_path, "text", ".")
    want = numbered(found, 10_000)
    assert len(items_of(found, 10_000)) == 2
    assert [r.row for r in want] == 2 * [n for n in range(1, 62) if n == 61 or (n - 1) % 5]
    assert numbered(found, target) == want
    assert {r.key for r in rows(found, target) if isinstance(r, RawSample)} == {
        r.key for r in want if isinstance(r, RawSample)
    }


def test_a_damaged_file_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "h.txt").write_bytes(b"\xff\xfe")
    jsonl(tmp_path / "g.jsonl", [{"text": "fine"}])
    found = rows(source(tmp_path, "text", "."))
    assert [(type(r), r.file) for r in found] == [(BadRow, "h.txt"), (RawSample, "g.jsonl"), (BadRow, "f.parquet")]


def test_no_file_that_matches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"matches '\*.jsonl'"):
        list(source(tmp_path, "text", ".", pattern="*.jsonl").work_items(1))


def test_real_texts_are_read_without_a_bad_row(shared_data: Path) -> None:
    assert len(samples(source(shared_data, "text", "text", pattern="*.jsonl"))) == 925
