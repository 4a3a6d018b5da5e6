from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import AccessError, SourceError, StoreError
from infra.storage import FileInfo, Storage
from tasks.sources import files
from tasks.sources.base import RawImage
from tasks.sources.files import (
    UnusableRow,
    ahead,
    field,
    folder_slices,
    images_storage,
    inside,
    listing_digest,
    load_image,
    read_plain,
    slice_files,
)
from tasks.sources.pages import _page
from tests.tasks.sources.reading import FailingDisk

# -- names


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
        load_image(Storage(folder), name)
    assert e.value.error in ("path-escape", "bad-name")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..", "a/../..", "//x"])
def test_names_do_not_lead_out_of_a_prefix(tmp_path: Path, name: str) -> None:
    top = Storage(f"memory://{tmp_path.name}")
    top.put("secret.png", b"secret")
    with pytest.raises(UnusableRow) as e:
        load_image(top.sub("pictures"), name)
    assert e.value.error == "path-escape"


@pytest.mark.parametrize("root", ["disk", "memory"])
@pytest.mark.parametrize("name", ["a\0b", "x" * 2000, "\ud800.png", "long/" * 300 + "y" * 300])
def test_names_that_no_file_can_have_cost_their_row(tmp_path: Path, root: str, name: str) -> None:
    storage = Storage(tmp_path if root == "disk" else f"memory://{tmp_path.name}")
    with pytest.raises(UnusableRow) as e:
        load_image(storage, name)
    assert e.value.error == "bad-name"


def test_a_name_that_is_not_utf_8_on_the_disk_is_read(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"data")
    assert load_image(Storage(tmp_path), name).data == b"data"


@pytest.mark.parametrize("root", ["disk", "memory"])
def test_names_within_the_folder_are_read_and_missing_ones_are_empty(tmp_path: Path, root: str) -> None:
    storage = Storage(tmp_path if root == "disk" else f"memory://{tmp_path.name}")
    storage.put("a/x.png", b"data")
    assert load_image(storage, "a/x.png", "https://x.org/x.png").data == b"data"
    assert load_image(storage, "a/x.png", "https://x.org/x.png").url == "https://x.org/x.png"
    assert load_image(storage, "a/../a/./x.png").data == b"data"
    for name in ("b.png", "a", "a/x.png/y"):
        found = load_image(storage, name)
        assert (found.data, found.error, found.name) == (None, "missing-image", name)
    for name in ("", ".", "a/.."):
        assert load_image(storage, name) == RawImage(name, None, error="no-picture")
    assert inside(storage, "a/./x/..") == "a"


@pytest.mark.parametrize("name", ["https://a.example/x.png", "HTTP://a.example/" + "x" * 3000])
def test_an_address_is_not_looked_for(name: str) -> None:
    nowhere = cast("Storage", None)
    assert load_image(nowhere, name) == RawImage(name, None, name, "not-downloaded")
    assert load_image(nowhere, name, "https://b.example") == RawImage(name, None, "https://b.example", "not-downloaded")


def test_what_every_picture_would_meet_is_no_fault_of_one(tmp_path: Path) -> None:
    class Closed(Storage):
        def info(self, name: str = "") -> FileInfo | None:
            raise AccessError("the credentials have expired")

        def open(self, name: str) -> Any:
            raise AccessError("the credentials have expired")

    for read in (load_image, read_plain, lambda storage, name: _page(storage, name, 9)):
        with pytest.raises(AccessError):
            read(Closed(tmp_path), "x")


def test_a_picture_that_is_too_large_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"12345")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 4)
    with pytest.raises(UnusableRow, match="5 bytes") as e:
        load_image(Storage(tmp_path), "x.png")
    assert e.value.error == "too-large"

    class Broken(Storage):
        def get_or_none(self, name: str) -> bytes | None:
            raise StoreError("timed out")

    (tmp_path / "x.png").write_bytes(b"123")
    found = load_image(Broken(tmp_path), "x.png")
    assert (found.data, found.error) == (None, "read-error")


def test_where_pictures_are(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    base = Storage(tmp_path)
    assert images_storage("s", base, None) is base
    assert images_storage("s", base, "pictures").path() == tmp_path / "pictures"
    assert images_storage("s", base.sub("pictures"), "../pictures").path().resolve() == tmp_path / "pictures"
    assert images_storage("s", base, "memory://else").root == "memory://else"
    assert images_storage("s", Storage("memory://a/b"), "../c").root == "memory://a/c"
    with pytest.raises(SourceError, match="source s: .*nowhere is not a folder"):
        images_storage("s", base, "nowhere")


# -- slices of folders


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "a-b", "a b"]), min_size=1, max_size=3).map("/".join).map(lambda n: n + ".png"),
    unique=True,
    max_size=25,
)


@given(NAMES, st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_slices_cover_every_file_once(tmp_path_factory: pytest.TempPathFactory, names: list[str], target: int) -> None:
    folder = tmp_path_factory.mktemp("slices")
    storage = Storage(folder)
    for name in [*names, "a.txt", ".hidden.png"]:
        storage.put(name, b"")

    def wanted(name: str) -> bool:
        return name.endswith(".png")

    slices = [
        json.loads(json.dumps(s)) for s in folder_slices(filter(lambda f: wanted(f.name), storage.find()), target)
    ]
    parts = [slice_files(storage, s, wanted) for s in slices]
    assert sorted(n for part in parts for n in part) == sorted(names)
    assert all(0 < len(part) <= target for part in parts)
    of_folder: dict[str, int] = {}
    for name in names:
        of_folder[name.rpartition("/")[0]] = of_folder.get(name.rpartition("/")[0], 0) + 1
    assert len(slices) == sum(-(-count // target) for count in of_folder.values()), (
        "no slice is smaller than it must be"
    )
    rows = {(s["folder"], s["row"] + n) for s, part in zip(slices, parts, strict=True) for n in range(len(part))}
    assert len(rows) == len(names)


def test_only_the_slice_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        (tmp_path / f"{n:02}.png").write_bytes(b"")
    (tmp_path / "21.png").unlink()
    (tmp_path / "21.png").symlink_to("21.png")
    (tmp_path / "22.png").unlink()
    (tmp_path / "22.png").symlink_to("49.png")
    (tmp_path / "23.png").unlink()
    (tmp_path / "23.png").mkdir()
    looked, scan = [], os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self._entry, self.name = entry, entry.name

        def __getattr__(self, name: str) -> Any:
            looked.append(self.name)
            return getattr(self._entry, name)

    class Entries(list[Entry]):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda path: Entries(Entry(e) for e in scan(path)))
    locator = {"folder": "", "first": "20.png", "last": "24.png", "row": 21}
    assert slice_files(Storage(tmp_path), locator, lambda n: n != "24.png") == ["20.png", "22.png"]
    assert sorted(looked) == ["20.png", "21.png", "22.png", "23.png"]


def test_a_folder_that_is_gone_stops_the_step(tmp_path: Path) -> None:
    locator = {"folder": "no", "first": "a", "last": "b", "row": 1}
    with pytest.raises(StoreError, match=f"{tmp_path}/no: .*No such file"):
        slice_files(Storage(tmp_path), locator, lambda _: True)


def test_the_digest_says_whether_a_listing_changed() -> None:
    one = [FileInfo("a", 1, "x"), FileInfo("b", 2, "y")]
    assert listing_digest("k 1", one) == listing_digest("k 1", iter(one))
    others = [one[:1], [*one[:1], FileInfo("b", 3, "y")], [*one[:1], FileInfo("b", 2, "z")], one[::-1]]
    assert len({listing_digest("k 1", o) for o in [one, *others]} | {listing_digest("k 2", one)}) == 6


def test_plain_text_loses_its_byte_order_mark_and_must_be_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    storage.put("a.txt", b"\xef\xbb\xbfh\xc3\xa9\r\n")
    storage.put("a.txt.zst", zstandard.compress(b"h\xc3\xa9"))
    assert read_plain(storage, "a.txt") == "h\u00e9\r\n"
    assert read_plain(storage, "a.txt.zst") == "h\u00e9"
    storage.put("b.txt", b"\xff\xfe")
    storage.put("c.txt.gz", gzip.compress(b"text")[:-9])
    storage.put("d.txt.gz", gzip.compress(b"text" * 100))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    found = {}
    for name in ("b.txt", "c.txt.gz", "d.txt.gz", "no.txt"):
        with pytest.raises(UnusableRow) as e:
            read_plain(storage, name)
        found[name] = e.value.error
    assert found == {"b.txt": "not-utf-8", "c.txt.gz": "damaged-file", "d.txt.gz": "too-large", "no.txt": "read-error"}


def test_a_disk_that_fails_is_no_damage_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(range(256)) * 99))
    with pytest.raises(UnusableRow, match="Input/output error") as e:
        read_plain(FailingDisk(tmp_path, 20), "a.txt.gz")
    assert e.value.error == "read-error"


# -- others


@pytest.mark.parametrize("root", ["/tmp", "memory://x"])
def test_what_is_read_ahead_comes_in_order_and_is_bounded(root: str) -> None:
    taken = 0

    def numbers() -> object:
        nonlocal taken
        for n in range(1000):
            taken = n + 1
            yield n

    found = ahead(Storage(root), lambda n: n * n, numbers())  # type: ignore[arg-type]
    assert [next(found) for _ in range(10)] == [n * n for n in range(10)]
    assert taken <= 10 + 2 * files.AT_ONCE
    found.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        list(ahead(Storage(root), lambda n: 1 // n, [1, 0]))


def test_fields_are_found_by_path() -> None:
    row = {"a": [{"b": "x"}], "n": None}
    assert field(row, "a.0.b") == "x"
    for name in ("a.1.b", "b", "a.x"):
        with pytest.raises(UnusableRow, match="there are a, n"):
            field(row, name)
    for name in ("n", "n.b"):
        with pytest.raises(UnusableRow) as e:
            field(row, name)
        assert (e.value.error, e.value.message) == ("missing-field", "field 'n' is null")
    with pytest.raises(UnusableRow, match=r"field 'a\.0' is null"):
        field({"a": [None]}, "a.0")
