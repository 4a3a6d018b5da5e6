from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import SourceError
from tasks.encode.decode import ImageError, open_image
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Source
from tasks.sources.config import SourceConfig
from tests.tasks.sources.makers import FORMATS
from tests.tasks.sources.reading import rows, samples


def pairs(folder: Path, path: str = "p.parquet", **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type="pairs-parquet", kind="pairs", path=path, options=options), folder)


def table(folder: Path, columns: dict[str, Any], name: str = "p.parquet") -> None:
    pq.write_table(pa.table(columns), folder / name, row_group_size=2)


def test_bytes_structs_and_names(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    (tmp_path / "pictures" / "sub" / "a.png").write_bytes(b"on disk")
    struct = [
        {"bytes": b"inside", "path": "a.png"},
        {"bytes": None, "path": "sub/a.png"},
        {"bytes": b"both", "path": "sub/a.png"},
        {"bytes": None, "path": None},
        None,
    ]
    table(
        tmp_path,
        {"image": struct, "text": ["one", "two", "three", "four", "five"], "url": ["u1", None, None, "u4", ""]},
    )
    found = samples(pairs(tmp_path, images="pictures"), target=2)
    assert [s.images[0].data for s in found] == [b"inside", b"on disk", b"both", None, None]
    assert [s.images[0].name for s in found] == ["a.png", "sub/a.png", "sub/a.png", "p.parquet#4", "p.parquet#5"]
    assert [s.images[0].url for s in found] == ["u1", "", "", "u4", ""]
    assert [(s.key, s.row) for s in found] == [(f"p.parquet#{n}", n) for n in range(1, 6)]


def test_captions_of_several_columns(tmp_path: Path) -> None:
    columns = {
        "jpg": [b"a", b"b", b"c"],
        "alt": ["x", None, "y"],
        "captions": [["one", "two"], ["three"], None],
        "terms": ["CC0", None, "CC BY 4.0"],
    }
    table(tmp_path, columns)
    found = samples(pairs(tmp_path, image="jpg", captions=["captions", "alt"], licence="terms"))
    assert [s.captions for s in found] == [("one", "two", "x"), ("three",), ("y",)]
    assert [s.licence for s in found] == ["CC0", "", "CC BY 4.0"]


def test_bad_rows(tmp_path: Path) -> None:
    table(tmp_path, {"image": ["../../secret", "x" * 300, "a.png"], "caption": ["a", "b", None]})
    found = rows(pairs(tmp_path))
    assert [(r.row, r.error) for r in found if isinstance(r, BadRow)] == [
        (1, "path-escape"),
        (2, "bad-name"),
        (3, "missing-caption"),
    ]
    table(tmp_path, {"image": [1, 2], "caption": ["a", "b"]})
    assert [r.error for r in rows(pairs(tmp_path)) if isinstance(r, BadRow)] == ["bad-field"] * 2
    table(tmp_path, {"picture": [b"a"], "caption": [[1]]})
    assert [r.error for r in rows(pairs(tmp_path)) if isinstance(r, BadRow)] == ["missing-field"]
    assert [r.error for r in rows(pairs(tmp_path, image="picture")) if isinstance(r, BadRow)] == ["bad-field"]


def test_a_picture_without_bytes_is_one_that_is_empty(tmp_path: Path) -> None:
    table(tmp_path, {"image": [b"", None], "caption": ["a", "b"]})
    assert [s.images[0].data for s in samples(pairs(tmp_path))] == [b"", None]
    table(tmp_path, {"image": [{"bytes": b"", "path": "a.png"}, {"bytes": None, "path": None}], "caption": ["a", "b"]})
    empty, none = (s.images[0] for s in samples(pairs(tmp_path)))
    assert (empty.name, empty.data) == ("a.png", b"")
    assert (none.data, none.error) == (None, "no-picture")
    with pytest.raises(ImageError) as e:
        open_image(b"", 1000)
    assert e.value.error_class == "empty"


def test_a_caption_that_is_null_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    table(tmp_path, {"image": [b"a"], "caption": pa.array([None], pa.string())})
    (null,) = rows(pairs(tmp_path))
    (absent,) = rows(pairs(tmp_path, captions=["alt", "title"]))
    assert isinstance(null, BadRow)
    assert isinstance(absent, BadRow)
    assert (null.error, null.message) == ("missing-caption", "null in caption")
    assert (absent.error, absent.message) == ("missing-caption", "none of alt, title is there")


def test_damage_costs_what_it_touches(tmp_path: Path) -> None:
    config, _ = FORMATS["pairs-parquet-bytes"].make(tmp_path, 300)
    path = tmp_path / "pairs.parquet"
    whole = path.read_bytes()
    noise = random.Random(0)
    for _ in range(10):
        data = bytearray(whole)
        data[noise.randrange(4, len(data) // 2)] ^= 0xFF
        path.write_bytes(bytes(data))
        assert len(rows(open_source(config))) >= 128, "whatever the damage, the other row groups are read"
    path.write_bytes(whole[:-1000])
    found = rows(open_source(config))
    assert {r.error for r in found if isinstance(r, BadRow)} == {"damaged-file"}
    assert not [r for r in found if isinstance(r, RawSample)]


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file of .* ends in \.parquet"):
        list(pairs(tmp_path, ".").work_items(10))
    table(tmp_path, {"image": ["a"], "caption": ["b"]})
    with pytest.raises(SourceError, match="is not a folder; correct option `images`"):
        rows(pairs(tmp_path, images="none"))
