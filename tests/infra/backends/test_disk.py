from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.backends import aside
from infra.backends.aside import aside_name, maker_lives
from infra.errors import ResourceError, StoreError
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


KILLED = """
import os, signal, sys
from infra.storage import Storage
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
Storage(sys.argv[1]).put("part", b"half")
"""


def test_a_killed_writers_file_goes_at_once_and_a_living_ones_stays(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    mine = tmp_path / aside_name()
    mine.write_bytes(b"being written")
    assert len(list(tmp_path.iterdir())) == 2
    assert Storage(tmp_path).sweep() == 1
    assert list(tmp_path.iterdir()) == [mine]
    os.utime(mine, (time.time() - 3700,) * 2)
    assert Storage(tmp_path).sweep() == 1, "its process number was given to another"


def test_a_file_of_a_writer_elsewhere_goes_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(aside, "_host", lambda: "0123456789ab")
        theirs = tmp_path / aside_name()
    assert maker_lives(theirs.name) is None
    theirs.write_bytes(b"being written")
    os.utime(theirs, (time.time() - 3500,) * 2)
    assert Storage(tmp_path).sweep() == 0
    os.utime(theirs, (time.time() - 3700,) * 2)
    assert Storage(tmp_path).sweep() == 1


def test_a_process_that_ended_and_was_not_waited_for_is_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    name = aside_name().replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    deadline = time.monotonic() + 30
    while maker_lives(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert maker_lives(name) is False
    ended.wait()


def test_a_file_swept_from_under_its_writer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweeping(descriptor: int) -> None:
        for f in tmp_path.glob(".aside-*"):
            f.unlink()

    monkeypatch.setattr(os, "fsync", sweeping)
    with pytest.raises(StoreError, match="x: what was written for it was removed"):
        Storage(tmp_path).put("x", b"1")
    with pytest.raises(StoreError, match="x: what was written for it was removed"):
        Storage(tmp_path).put_new("x", b"1")


def refusing(number: int) -> object:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_one_writer_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    store = Storage(tmp_path)
    assert [store.put_new("x", data) for data in (b"1", b"2")] == [True, False]
    assert store.get("x") == b"1"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_a_link_that_finds_the_disk_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(ResourceError, match="x: could not write 1 bytes"):
        Storage(tmp_path).put_new("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_move_that_fails_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(Path, "replace", refusing(errno.EIO))
    with pytest.raises(StoreError, match="x: cannot be put in place"):
        Storage(tmp_path).put_new("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(StoreError, match="x: cannot be put in place"):
        Storage(tmp_path).put("x", b"1")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]
