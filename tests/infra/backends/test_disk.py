from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage

part = st.text("aB0.-_ é%+#\U0001f98e", min_size=1, max_size=3).filter(lambda s: not s.startswith("."))
names = st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), max_size=12, unique=True)


@settings(deadline=None)
@given(names)
def test_find_gives_all_files_in_order_of_whole_names(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, kept = Storage(folder), set[str]()
        for name in wanted:
            if not any(k.startswith(name + "/") or name.startswith(k + "/") for k in kept):  # a file or a folder
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(name.encode())
                kept.add(name)
        assert [f.name for f in store.find()] == sorted(kept)
        assert list(store.get_many(f.name for f in store.find())) == [k.encode() for k in sorted(kept)]
        for f in store.find():
            assert store.info(f.name) == f


def test_find_follows_links_to_files_only(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"1")
    (tmp_path / "alone").write_bytes(b"22")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "x").write_bytes(b"333")
    (root / "to-folder").symlink_to(tmp_path / "outside")
    (root / "to-above").symlink_to(root)
    (root / "to-file").symlink_to(tmp_path / "alone")
    (root / "to-nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(root / "pipe")
    store = Storage(root)
    assert [(f.name, f.size) for f in store.find()] == [("sub/x", 3), ("to-file", 2)]
    assert store.list() == ["to-file"]
    assert store.info("to-nowhere") is None
    assert store.info("to-folder") is None
    assert [f.name for f in Storage(root / "to-folder").find()] == ["secret"]  # the root itself may be a link


def test_files_being_written_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / ".aside-dead").write_bytes(b"half")
    assert Storage(tmp_path).list() == []
    assert list(Storage(tmp_path).find()) == []


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(StoreError, match=rf"{tmp_path}: cannot be read \(Permission denied\)"):
        list(Storage(tmp_path).find())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("d/x", b"1")
    assert store.get_or_none("d") is None
    with pytest.raises(StoreError, match="d: no such file"):
        store.get("d")


def test_many_files_are_read_in_order_and_lazily(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    for i in range(200):
        store.put(f"{i}", b"%d" % i)
    assert list(store.get_many(str(i) for i in range(200))) == [b"%d" % i for i in range(200)]
    asked: list[int] = []

    def endless():  # type: ignore[no-untyped-def]
        for i in range(10**9):
            asked.append(i)
            yield str(i % 200)

    reading = store.get_many(endless())
    assert [next(reading) for _ in range(3)] == [b"0", b"1", b"2"]
    reading.close()
    assert len(asked) < 500


def test_a_root_may_be_a_file_or_a_url(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"{}")
    alone = Storage(tmp_path / "x.jsonl")
    assert alone.get("") == b"{}"
    assert (found := alone.info()) is not None
    assert found.size == 2
    assert list(alone.find()) == []
    assert Storage(f"file://{tmp_path}").get("x.jsonl") == b"{}"
    assert Storage("/").sub("tmp").root == "/tmp"
    assert Storage("/").url("tmp") == "/tmp"
