from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.sources import open_source
from tasks.sources.base import BadRow, RawImage, Segment, Source
from tasks.sources.config import SourceConfig
from tests.tasks.sources.reading import rows, samples

URL = "https://a.example/1.jpg"


def obelics(place: Path, **options: Any) -> Source:
    config = SourceConfig(name="s", type="obelics", kind="interleaved", path="d.parquet", options=options)
    return open_source(config, place)


def table(folder: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), folder / "d.parquet")


def test_texts_and_pictures_in_order(tmp_path: Path) -> None:
    table(
        tmp_path, {"texts": [["a", None, "b", "c", None], ["only"]], "images": [[None, URL, None, None, URL], [None]]}
    )
    one, two = samples(obelics(tmp_path))
    assert one.segments == (
        Segment("a\n\n"),
        Segment(image=0),
        Segment("\n\nb\n\nc\n\n"),
        Segment(image=1),
    )
    assert one.images == (RawImage(URL, None, URL, "not-downloaded"),) * 2
    assert (two.segments, two.images, two.key) == ((Segment("only"),), (), "d.parquet#2")


def test_bytes_beside_addresses_names_and_structs(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"on disk")
    texts = [["t", None, None]]
    table(tmp_path, {"texts": texts, "images": [[None, URL, URL]], "data": [[None, b"fetched", None]]})
    (found,) = samples(obelics(tmp_path, image_bytes="data"))
    assert found.images == (RawImage(URL, b"fetched", URL), RawImage(URL, None, URL, "not-downloaded"))
    embedded = "data:image/png;base64," + base64.b64encode(b"embedded").decode()
    table(tmp_path, {"texts": [["t", None, None, None]], "images": [[None, "a.png", "../b.png", embedded]]})
    (found,) = samples(obelics(tmp_path, folder="pictures"))
    assert [i.data for i in found.images] == [b"on disk", None, b"embedded"]
    assert found.images[1].error == "path-escape"
    structs = [[None, {"bytes": b"struct", "path": None}, {"bytes": None, "path": "a.png"}]]
    table(tmp_path, {"texts": texts, "images": structs})
    (found,) = samples(obelics(tmp_path, folder="pictures"))
    assert [i.data for i in found.images] == [b"struct", b"on disk"]
    assert found.images[0].name == "d.parquet#1/1"


def test_metadata_give_alternative_texts_and_addresses(tmp_path: Path) -> None:
    about = [None, {"alt_text": " an apple ", "unformatted_src": URL}, {"src": "b"}, None]
    table(
        tmp_path,
        {
            "texts": [["t", None, None, "u"]] * 3,
            "images": [[None, b"1", b"2", None]] * 3,
            "metadata": [json.dumps(about), "[broken", json.dumps(about[:2])],
        },
    )
    one, two, three = samples(obelics(tmp_path, caption="alt"))
    assert one.segments[2] == Segment("\n\nan apple\n\n")
    assert [i.url for i in one.images] == [URL, "b"]
    for plain in (two, three):
        assert [s.text for s in plain.segments] == ["t\n\n", None, "\n\n", None, "\n\nu"]
    assert [s.text for s in samples(obelics(tmp_path))[0].segments] == ["t\n\n", None, "\n\n", None, "\n\nu"]


@pytest.mark.parametrize(
    ("texts", "images", "error"),
    [
        (["a", "b"], [None, URL], "bad-structure"),
        (["a", None], [None, None], "bad-structure"),
        (["a"], [None, URL], "bad-structure"),
        (None, [URL], "missing-field"),
        (["a"], None, "missing-field"),
    ],
)
def test_bad_rows(tmp_path: Path, texts: Any, images: Any, error: str) -> None:
    strings = pa.list_(pa.string())
    table(tmp_path, {"texts": pa.array([texts, ["x"]], strings), "images": pa.array([images, [None]], strings)})
    bad, good = rows(obelics(tmp_path))
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.row, bad.error) == ("d.parquet", 1, error)
    assert not isinstance(good, BadRow)


def test_columns_of_other_kinds(tmp_path: Path) -> None:
    table(tmp_path, {"texts": ["no list"], "images": [[URL]]})
    assert [r.error for r in rows(obelics(tmp_path)) if isinstance(r, BadRow)] == ["bad-field"]
    table(tmp_path, {"texts": [[1, None]], "images": [[None, URL]]})
    assert [r.error for r in rows(obelics(tmp_path)) if isinstance(r, BadRow)] == ["bad-field"]
    table(tmp_path, {"texts": [[None]], "images": [[7]]})
    assert [r.error for r in rows(obelics(tmp_path)) if isinstance(r, BadRow)] == ["bad-field"]
