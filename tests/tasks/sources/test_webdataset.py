from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from infra.errors import SourceError, StoreError
from infra.storage import Storage
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Source
from tasks.sources.config import SourceConfig
from tasks.sources.root import Root
from tests.tasks.sources.makers import FORMATS
from tests.tasks.sources.reading import PACKED, FailingDisk, errors, rows, samples


def webdataset(folder: Path, path: str = ".", kind: str = "webdataset", **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=kind, kind="pairs", path=path, options=options), folder)


def tar(path: Path, files: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as out:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sink.getvalue())
    return sink.getvalue()


def test_members_of_one_key_are_a_pair(tmp_path: Path) -> None:
    about = {"caption": "from json", "licence": "CC0", "url": "https://a.example/1.jpg"}
    tar(
        tmp_path / "0.tar",
        [
            ("train/001.jpg", b"one"),
            ("train/001.txt", b"a text\n"),
            ("train/001.json", json.dumps(about).encode()),
            ("train/002.seg.png", b"mask"),
            ("train/002.JPG", b"two"),
            ("train/002.json", b'{"caption": ["x", "y", "x"]}'),
            ("__meta__", b"not a sample"),
            ("train/._003.jpg", b"left by an archiver"),
            ("b.c/003.jpg", b"three"),
            ("b.c/003.txt", b"dots in folders are no extensions"),
        ],
    )
    found = rows(webdataset(tmp_path))
    one, two, meta, three = found
    assert isinstance(one, RawSample)
    assert isinstance(two, RawSample)
    assert isinstance(three, RawSample)
    assert (one.key, one.file, one.row, one.captions) == ("0.tar/train/001", "0.tar", 1, ("a text", "from json"))
    assert (one.licence, one.images[0].url, one.images[0].name) == ("CC0", "https://a.example/1.jpg", "train/001.jpg")
    assert (two.images[0].data, two.captions, two.row) == (b"two", ("x", "y"), 2)
    assert meta == BadRow("0.tar", 3, "no-picture", "__meta__: no picture among ")
    assert (three.key, three.row) == ("0.tar/b.c/003", 4)


def test_options_choose_pictures_and_captions(tmp_path: Path) -> None:
    tar(
        tmp_path / "0.tar",
        [
            ("1.left.png", b"L"),
            ("1.right.png", b"R"),
            ("1.json", b'{"a": {"b": "deep"}, "from": "x"}'),
            ("1.cap", b"cap"),
        ],
    )
    options = {"images": ["right.png", "left.png"], "captions": ["json.a.b", "cap"], "url": "from"}
    (found,) = samples(webdataset(tmp_path, **options))
    assert (found.images[0].data, found.captions, found.images[0].url) == (b"R", ("deep", "cap"), "x")
    with pytest.raises(SourceError, match="did you mean 'captions'"):
        rows(webdataset(tmp_path, caption=["txt"]))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([("1.jpg", b"a"), ("1.JPG", b"b"), ("1.txt", b"c")], "duplicate-member"),
        ([("1.jpg", b"a"), ("1.json", b'{"caption": 7}')], "bad-field"),
        ([("1.jpg", b"a"), ("1.json", b"[]"), ("1.txt", b"c")], "bad-json"),
        ([("1.jpg", b"a"), ("1.json", b"[" * 100_000), ("1.txt", b"c")], "bad-json"),
        ([("1.jpg", b"a"), ("1.json", b'{"caption": null}')], "missing-caption"),
        ([("1.txt", b"c")], "no-picture"),
    ],
)
def test_bad_samples(tmp_path: Path, files: list[tuple[str, bytes]], error: str) -> None:
    tar(tmp_path / "0.tar", [("0.jpg", b"a"), ("0.txt", b"b"), *files, ("2.jpg", b"a"), ("2.txt", b"b")])
    found = rows(webdataset(tmp_path))
    assert [r.row for r in found] == [1, 2, 3]
    assert [r.error for r in found if isinstance(r, BadRow)] == [error]


def test_keys_that_are_numbers_are_not_taken_for_rows(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [("9.txt", b"no picture"), ("1.jpg", b"a"), ("1.txt", b"b")])
    bad, good = rows(webdataset(tmp_path))
    assert isinstance(bad, BadRow)
    assert isinstance(good, RawSample)
    assert good.key != f"{bad.file}#{bad.row}", "this is the key that a bad row has in scan's tables"


def test_a_key_that_comes_back_is_reported_and_the_first_kept(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [("1.jpg", b"a"), ("1.txt", b"b"), ("2.jpg", b"c"), ("2.txt", b"d"), ("1.jpg", b"e")])
    one, two, again = rows(webdataset(tmp_path))
    assert isinstance(one, RawSample)
    assert isinstance(two, RawSample)
    assert isinstance(again, BadRow)
    assert (again.row, again.error) == (3, "duplicate-member")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("where", ["picture", "caption", "header", "end"])
def test_a_cut_tar_yields_what_lies_before(tmp_path: Path, suffix: str, where: str) -> None:
    """Each sample takes 512 + 1024 bytes for its picture and 512 + 512 for its caption."""
    files = [f for n in range(5) for f in [(f"{n}.jpg", bytes([n]) * 1000), (f"{n}.txt", b"caption")]]
    whole = tar(tmp_path / "0.tar", files)
    cut = 3 * 2560 + {"picture": 700, "caption": 1536 + 512 + 3, "header": 100, "end": 2 * 2560}[where]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / "0.tar").unlink()
    (tmp_path / f"0.tar{suffix}").write_bytes(pack(whole[:cut]))
    found = rows(webdataset(tmp_path))
    good = [r.row for r in found if isinstance(r, RawSample)]
    assert good == [1, 2, 3, 4, 5][: 5 if where == "end" else 3]
    last = found[-1]
    assert isinstance(last, BadRow)
    assert (last.file, last.row, last.error) == (f"0.tar{suffix}", len(good) + 1, "damaged-file")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_disk_that_fails_stops_the_step(tmp_path: Path, suffix: str) -> None:
    whole = tar(tmp_path / "0.tar", [f for n in range(50) for f in [(f"{n}.jpg", bytes([n]) * 9), (f"{n}.txt", b"c")]])
    packed = PACKED[suffix](whole)
    (tmp_path / "0.tar").unlink()
    (tmp_path / f"0.tar{suffix}").write_bytes(packed)
    found = webdataset(tmp_path)
    (item,) = found.work_items(100)
    vars(found)["_root"] = Root(FailingDisk(tmp_path, len(packed) // 2))
    with pytest.raises(StoreError, match="Input/output error"):
        list(found.read(item))


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"nonsense" * 1000)
    (tmp_path / "1.tar").write_bytes(b"")
    (tmp_path / "2.tar.gz").write_bytes(b"no gzip")
    tar(tmp_path / "3.tar", [("1.jpg", b"a"), ("1.txt", b"b")])
    found = rows(webdataset(tmp_path))
    assert [(r.file, r.row) for r in found] == [("0.tar", 1), ("1.tar", 1), ("2.tar.gz", 1), ("3.tar", 1)]
    assert [r.error for r in found if isinstance(r, BadRow)] == ["damaged-file"] * 3


def test_one_item_a_tar_and_only_tars(tmp_path: Path) -> None:
    for name in ("b.tar", "a/1.tar.zst", "a/0.tar.gz", "notes.txt", ".hidden.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items = list(webdataset(tmp_path).work_items(10))
    assert [i.locator["file"] for i in items] == ["a/0.tar.gz", "a/1.tar.zst", "b.tar"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"no file of .*none ends in \.tar"):
        list(webdataset(tmp_path, "none").work_items(10))


_MEASURE = """
import resource, sys
from pathlib import Path
from tasks.sources import open_source
from tasks.sources.config import SourceConfig
from tasks.sources.root import Root
import pyarrow, zstandard
source = open_source(SourceConfig(name="s", type="webdataset", kind="pairs", path=sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, count, size = None, 0, 0
for item in source.work_items(1000):
    for row in source.read(item):
        count, size = count + 1, size + len(row.images[0].data)
        before = before or peak()
print(count, size, peak() - before)
"""


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    picture = bytes(1 << 20)
    with tarfile.open(tmp_path / "large.tar", "w") as out:
        for n in range(300):
            for name, data in ((f"{n:04}.jpg", picture), (f"{n:04}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "large.tar")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    count, size, grown = done.stdout.split()
    assert (int(count), int(size)) == (300, 300 << 20)
    assert float(grown) < 50


# -- img2dataset


@pytest.mark.parametrize("kind", ["webdataset", "files", "parquet"])
def test_img2dataset_output_is_recognised(tmp_path: Path, kind: str) -> None:
    config, _ = FORMATS[f"img2dataset-{kind}"].make(tmp_path, 10, ["failed-to-download", "gone"])
    said = [r for r in rows(open_source(config)) if isinstance(r, BadRow)]
    assert any(
        "failed_to_download HTTP Error 404: Not Found https://pictures.example/-1.png" in r.message for r in said
    )
    good = [r for r in rows(open_source(config), 4) if isinstance(r, RawSample) and r.images[0].data is not None]
    assert [s.images[0].url for s in good] == [f"https://pictures.example/{n}.png" for n in range(10)]
    assert all(len(s.captions) == 1 for s in good), "the same caption in the table and beside the picture is one"


def test_a_shard_of_files_without_its_table_is_read_by_its_names(tmp_path: Path) -> None:
    config, _ = FORMATS["img2dataset-files"].make(tmp_path, 10)
    (tmp_path / "out" / "00000.parquet").unlink()
    found = samples(open_source(config), 4)
    assert [s.key for s in found] == [f"00000/{n:09d}.png" for n in range(10)]
    assert [s.row for s in found] == list(range(1, 11))
    assert found[3].images[0].url == "https://pictures.example/3.png"


def test_what_lies_beside_a_picture_may_be_absent_but_not_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = FORMATS["img2dataset-files"].make(tmp_path, 8)
    folder = tmp_path / "out" / "00000"
    (tmp_path / "out" / "00000.parquet").unlink()
    (folder / "000000001.txt").unlink()
    (folder / "000000002.json").unlink()
    (folder / "000000003.txt").unlink()
    (folder / "000000003.txt").symlink_to("/etc/passwd")
    get = Storage.get_or_none

    def fails(storage: Storage, name: str) -> bytes | None:
        if name.endswith(("4.txt", "5.json", "6.png")):
            raise StoreError("timed out")
        return None if name.endswith("7.png") else get(storage, name)

    monkeypatch.setattr(Storage, "get_or_none", fails)
    found = rows(open_source(config))
    assert [r.row for r in found if isinstance(r, RawSample)] == [1, 2, 3]
    bad = [(r.file, r.row, r.error) for r in found if isinstance(r, BadRow)]
    errors = ["path-escape", "read-error", "read-error", "read-error", "missing-image"]
    assert bad == [(f"00000/{n - 1:09d}.png", n, error) for n, error in enumerate(errors, 4)]


def test_a_tar_that_is_gone_or_cut_is_covered_by_its_table(tmp_path: Path) -> None:
    config, _ = FORMATS["img2dataset-webdataset"].make(tmp_path, 10)
    path = tmp_path / "out" / "00000.tar"
    path.write_bytes(path.read_bytes()[:6000])
    found = rows(open_source(config))
    good = {r.key for r in found if isinstance(r, RawSample)}
    lost = [r for r in found if isinstance(r, BadRow) and r.error == "no-picture"]
    assert 0 < len(good) < 10
    assert len(good) + len(lost) == 10
    assert [r.error for r in found if isinstance(r, BadRow)].count("damaged-file") == 1
    path.unlink()
    gone = webdataset(tmp_path, "out", "img2dataset", format="webdataset")
    assert errors(gone) == ["no-picture"] * 10


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "00000.tfrecord").write_bytes(b"")
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "00000.parquet")
    with pytest.raises(SourceError, match="does not look like what img2dataset writes"):
        list(webdataset(tmp_path, kind="img2dataset").work_items(10))
