from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

from infra.errors import ResourceError, StoreError
from infra.storage import Storage


def test_put_and_get(tmp_path: Path) -> None:
    store = Storage(tmp_path / "a")
    store.put("x/y.bin", b"1")
    store.put("x/y.bin", b"22")
    assert store.get("x/y.bin") == b"22"
    assert store.size("x/y.bin") == 2
    assert store.list("x") == ["y.bin"]
    assert store.sub("x").list() == ["y.bin"]


def test_missing_files(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    assert store.get_or_none("no") is None
    assert store.list("no") == []
    with pytest.raises(StoreError, match="no such file"):
        store.get("no")


def test_put_new_has_one_winner(tmp_path: Path) -> None:
    store, wins, start = Storage(tmp_path), [], threading.Barrier(8)

    def race(i: int) -> None:
        start.wait()
        if store.put_new("m.json", str(i).encode()):
            wins.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wins) == 1
    assert store.get("m.json") == str(wins[0]).encode()
    assert os.listdir(tmp_path) == ["m.json"]  # noqa: PTH208 - everything, hidden files too


def test_sweep_removes_only_what_killed_writers_left(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("good", b"1")
    (tmp_path / ".aside-dead").write_bytes(b"half")
    assert store.list() == ["good"]
    assert store.sweep() == 1
    assert store.get("good") == b"1"


def test_need_names_the_lack(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"the moon needs .* are free"):
        Storage(tmp_path).need(10**18, "the moon")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        store.put("x", b"12345")
    assert list(tmp_path.iterdir()) == []


def test_memory_filesystem_behaves_alike() -> None:
    store = Storage("memory://calumma-test")
    assert store.put_new("m", b"1")
    assert not store.put_new("m", b"2")
    store.put("a/b", b"2")
    store.put("a/.c", b"3")
    assert store.get("a/b") == b"2"
    assert store.range("a/b", 0, 9) == b"2"
    assert store.size("a/b") == 1
    assert store.list("a", "b") == ["b"]
    assert [f.name for f in store.find()] == ["a/b", "m"]
    assert [f.name for f in store.find("a")] == ["a/b"]
    assert list(store.get_many(["m", "a/b"])) == [b"1", b"2"]
    assert store.get_or_none("no") is store.info("no") is store.info("a") is None
    with pytest.raises(StoreError, match="no such file"):
        store.get("no")
    with pytest.raises(StoreError, match="not on a local disk"):
        store.path("m")


def test_a_pickled_storage_is_its_root(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).get("x") == b"1"
    assert repr(store) == f"Storage({str(tmp_path)!r})"


def test_a_missing_file_is_told_by_every_way_of_reading(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("x", b"12345")
    assert store.range("x", 1, 3) == b"23"
    assert store.range("x", 4, 99) == b"5"
    assert store.range("x", 9, 99) == b""
    for read in (store.size, lambda n: store.range(n, 0, 1), lambda n: list(store.get_many(["x", n]))):
        with pytest.raises(StoreError, match=f"{tmp_path}/no: no such file"):
            read("no")
    with pytest.raises(StoreError, match="no such file"), store.open("no"):
        pass
    with pytest.raises(FileNotFoundError, match="mine"), store.open("x"):
        raise FileNotFoundError("mine")  # an error of the block is its own


def half_written(store: Storage, name: str, error: Exception) -> None:
    with store.writing(name) as path:
        path.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("on_disk", [True, False])
def test_libraries_write_and_read_local_files(tmp_path: Path, on_disk: bool) -> None:
    store = Storage(tmp_path / "store" if on_disk else f"memory://{tmp_path.name}")
    with store.writing("deep/x.bin") as path:
        path.write_bytes(b"12345")
        assert list(store.find()) == []
        assert path.parent == tmp_path / "store" / "deep" or not on_disk, "it is moved, not copied"
    assert store.get("deep/x.bin") == b"12345"
    with pytest.raises(ZeroDivisionError):
        half_written(store, "deep/x.bin", ZeroDivisionError())
    assert store.get("deep/x.bin") == b"12345"
    assert [f.name for f in store.find()] == ["deep/x.bin"]

    (tmp_path / "log").write_bytes(b"line\n")
    store.put_file("log", tmp_path / "log")
    assert store.get("log") == (tmp_path / "log").read_bytes() == b"line\n"

    with store.on_disk(["deep/x.bin", "log"]) as folder:
        assert (folder / "deep" / "x.bin").read_bytes() == b"12345"
        assert (folder == tmp_path / "store") == on_disk
    assert folder.exists() == on_disk
    with pytest.raises(StoreError, match="no: no such file"), store.on_disk(["log", "no"]):
        pass
    store.fetch(["deep/x.bin"], tmp_path / "copies")
    assert (tmp_path / "copies" / "deep" / "x.bin").read_bytes() == b"12345"


def test_a_disk_that_fills_up_under_a_library_is_told(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with pytest.raises(ResourceError, match=rf"{tmp_path}/x: could not write it \(No space left"):
        half_written(store, "x", OSError(28, "No space left on device"))
    with pytest.raises(PermissionError, match="elsewhere"):  # nothing of this file
        half_written(store, "x", PermissionError(13, "elsewhere"))
    assert list(tmp_path.iterdir()) == []
