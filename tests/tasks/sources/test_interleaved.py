from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SourceError
from tasks.sources import files
from tests.tasks.sources.reading import PACKED, errors, items_of, json_lines, jsonl, rows, samples, source, upload


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_segments_are_paragraphs(pictures: Path) -> None:
    segments = [
        {"type": "heading", "text": "Head"},
        {"type": "text", "text": "Body"},
        {"type": "image", "image": "a.png", "alt": "alternative", "caption": "below", "url": "https://x.org/a"},
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
    assert [(i.data, i.url) for i in found.images] == [(b"a.png", "https://x.org/a"), (b"b.png", "")]
    assert found.licence == "CC0"
    (plain,) = samples(source(pictures, "interleaved", "pictures/docs.jsonl", caption="none", title=None))
    assert plain.segments[0].text == "## Head\n\nBody\n\n"
    assert plain.segments[2].text == "\n\n"


def test_a_picture_that_cannot_be_had_stays_in_its_place(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "pictures" / "large.png").write_bytes(bytes(100))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 50)
    names = ["no.png", "a.png", "../x", "a\0.png", "large.png", None]
    segments = [piece for n in names for piece in ("text", {"type": "image", "image": n, "url": f"https://x.org/{n}"})]
    jsonl(pictures / "pictures" / "docs.jsonl", [{"segments": segments}])
    (found,) = samples(source(pictures, "interleaved", "pictures/docs.jsonl"))
    assert [s.image for s in found.segments if s.image is not None] == list(range(6))
    assert [(i.name, i.data, i.error) for i in found.images] == [
        ("no.png", None, "missing-image"),
        ("a.png", b"a.png", "missing-image"),
        ("../x", None, "path-escape"),
        ("a\0.png", None, "bad-name"),
        ("large.png", None, "too-large"),
        ("", None, "not-downloaded"),
    ]
    assert [i.url for i in found.images] == [f"https://x.org/{n}" for n in names]


def test_bad_segments_cost_their_document(pictures: Path) -> None:
    bad = [
        {"segments": "text"},
        {"segments": [7]},
        {"segments": [{"type": "video", "text": "x"}]},
        {"segments": [{"type": "image", "image": 7}]},
        {"no": 1},
    ]
    jsonl(pictures / "docs.jsonl", [*bad, {"segments": ["fine"]}])
    found = source(pictures, "interleaved", "docs.jsonl")
    assert errors(found) == ["bad-field", "bad-field", "bad-field", "bad-field", "missing-field"]


def test_folders_of_documents_share_their_pictures(pictures: Path) -> None:
    content = [{"segments": [f"text {n}", {"image": "a.png"}]} for n in range(20)]
    jsonl(pictures / "docs" / "1.jsonl", content)
    for packed in (".gz", ".zst"):
        (pictures / "docs" / f"2.jsonl{packed}").write_bytes(PACKED[packed](json_lines(content)))
    found = source(pictures, "interleaved", "docs", images="../pictures")
    assert len(items_of(found, 3)) > 6
    assert {i.locator["file"] for i in items_of(found, 3)} == {"1.jsonl", "2.jsonl.gz", "2.jsonl.zst"}
    documents = samples(found, 3)
    assert len(documents) == len({d.key for d in documents}) == 60
    assert {d.images[0].data for d in documents} == {b"a.png"}
    with pytest.raises(SourceError, match="no file of .* ends in .jsonl"):
        source(pictures, "interleaved", "pictures").digest()


def test_documents_on_s3(pictures: Path, s3_bucket: str) -> None:
    content = [{"segments": [f"text {n}", {"image": name}]} for n in range(20) for name in ("a.png", "no.png")]
    jsonl(pictures / "pictures" / "docs.jsonl", content)
    upload(s3_bucket, pictures)
    here = rows(source(pictures, "interleaved", "pictures/docs.jsonl"), 7)
    assert rows(source(pictures, "interleaved", f"{s3_bucket}/pictures/docs.jsonl"), 7) == here
    assert len(here) == 40


def test_real_documents_are_read_without_a_bad_row(shared_data: Path) -> None:
    assert len(samples(source(shared_data, "interleaved", "interleaved/docs.jsonl"))) == 90
