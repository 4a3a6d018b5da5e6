"""Storage on a real S3 server, without faults."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.backends import s3, s3_client, s3_read
from infra.errors import AccessError, ResourceError, StoreError
from infra.storage import Storage
from tests.s3 import server
from tests.s3.proxy import Proxy

NAMES = ["a-b/x", "a.txt", "a/sub.z", "a/x", "a/x2/y", "a0", "B/y", "p+q #1%25 é/ü 100%.txt", "z"]


def big(size: int) -> bytes:
    return hashlib.shake_128(b"calumma").digest(size)


@pytest.mark.parametrize("size", [0, 1, 20 << 20, (16 << 20), (16 << 20) + 1])
def test_round_trip(s3_bucket: str, size: int) -> None:
    store, data = Storage(s3_bucket), big(size)
    store.put("x/y.bin", data)
    assert store.get("x/y.bin") == data
    assert store.size("x/y.bin") == size
    assert store.range("x/y.bin", 1, 9) == data[1:9]
    with store.open("x/y.bin") as f:
        assert f.read() == data
    assert store.sub("x").list() == ["y.bin"]
    assert store.url("x/y.bin") == f"{s3_bucket}/x/y.bin"


def test_equal_bytes_make_equal_uploads(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    store, data = Storage(s3_bucket), big(11 << 20)
    for name in ("a", "b"):
        assert store.put_new(name, data)
    infos = list(store.find())
    assert infos[0].stamp == infos[1].stamp
    assert infos[0].stamp.endswith("-3")
    assert not store.put_new("a", data[:-1])
    assert store.get("a") == data
    assert unfinished(store) == 0


@pytest.mark.parametrize("size", [0, 1, 5 << 20, (5 << 20) + 1, 11 << 20])
def test_local_files_are_sent_in_the_same_pieces(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    store, data = Storage(s3_bucket), big(size)
    (tmp_path / "x").write_bytes(data)
    store.put("put", data)
    store.put_file("sent", tmp_path / "x")
    with store.writing("written") as path:
        path.write_bytes(data)
    assert not path.parent.exists()
    assert len({f.stamp for f in store.find()}) == 1
    with store.on_disk(["sent", "written"]) as folder:
        assert (folder / "sent").read_bytes() == (folder / "written").read_bytes() == data
    assert not folder.exists()


def unfinished(store: Storage) -> int:
    """Uploads below the storage's root that were neither finished nor aborted."""
    backend = store._backend
    assert isinstance(backend, s3.S3)

    async def count() -> int:
        client = await backend._s3._fs.set_session()
        page = await client.list_multipart_uploads(Bucket=backend.bucket, Prefix=backend.prefix)
        return len(page.get("Uploads", []))

    return backend._s3.run(count())


def test_a_killed_upload_leaves_nothing_and_is_swept(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_UPLOAD, s3_bucket], capture_output=True, text=True, timeout=60, check=False
    )
    assert killed.returncode == -9, killed.stderr
    store = Storage(s3_bucket)
    assert list(store.find()) == []
    assert unfinished(store) == 1
    assert store.sweep("other") == 0
    assert store.sweep("parts") == 0  # it may belong to a living process
    monkeypatch.setattr(s3, "STALE_S", 0.0)
    assert store.sweep("parts") == 1
    assert unfinished(store) == 0


_KILLED_UPLOAD = """
import os, sys
from infra.backends import s3
from infra.storage import Storage
s3.UPLOADS = 1
sent = []
call = s3.S3._call
async def kill_at_the_second_chunk(self, operation, *args, **kwargs):
    sent.append(operation)
    if sent.count("UploadPart") == 2:
        os.kill(os.getpid(), 9)
    return await call(self, operation, *args, **kwargs)
s3.S3._call = kill_at_the_second_chunk
Storage(sys.argv[1]).put("parts/big", bytes(40 << 20))
"""


def test_missing_files_and_ranges_are_as_on_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    check_missing_files_and_ranges(Storage(s3_bucket))
    check_missing_files_and_ranges(Storage(tmp_path))


def check_missing_files_and_ranges(store: Storage) -> None:
    store.put("x", b"12345")
    store.put("d/y", b"")
    assert store.range("x", 3, 99) == b"45"
    assert store.range("x", 5, 9) == store.range("x", 9, 12) == store.range("x", 2, 2) == b""
    assert store.range("d/y", 0, 5) == b""
    with pytest.raises(ValueError, match="from the end"):
        store.range("x", -1, 2)
    assert store.get_or_none("no") is store.get_or_none("x/under") is store.get_or_none("d") is None
    assert store.info("d") is store.info("no") is store.info("x/under") is None
    assert store.exists("x")
    assert not store.exists("d")
    assert store.list("no") == store.list("x") == list(store.find("no")) == list(store.find("x")) == []
    reads: list[Callable[[str], object]] = [
        store.get,
        store.size,
        lambda n: store.range(n, 0, 1),
        lambda n: store.range(n, 1, 1),
        lambda n: store.open(n).__enter__(),
        lambda n: list(store.get_many(["x", n, "x"])),
    ]
    for read in reads:
        with pytest.raises(StoreError, match=f"{store.url('no')}: no such file"):
            read("no")
    store.delete("x")
    store.delete("x")
    assert store.info("x") is None


def test_find_and_list_are_as_on_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    found = []
    for store in (Storage(s3_bucket), Storage(tmp_path)):
        for name in (*NAMES, ".hidden/x", "a/.hidden", ".top"):
            store.put(name, name.encode())
        found.append([(f.name, f.size) for f in store.find()])
        assert found[-1] == sorted((n, len(n.encode())) for n in NAMES)
        assert [f.name for f in store.find("a")] == ["a/sub.z", "a/x", "a/x2/y"]
        assert store.list() == [".top", "a.txt", "a0", "z"]
        assert store.list("a", suffix=".z") == ["sub.z"]
        assert all(store.get(n) == n.encode() for n in NAMES)
        assert store.sub("p+q #1%25 é").list() == ["ü 100%.txt"]
        assert list(store.get_many(NAMES)) == [n.encode() for n in NAMES]
        info = store.info("a/x")
        assert info in list(store.find("a"))
        store.put("a/x", b"changed")
        assert info is not None
        assert store.info("a/x") != info
    assert found[0] == found[1]


def test_objects_that_mark_folders_are_no_files(s3_bucket: str) -> None:
    store = Storage(s3_bucket)
    store.put("a/x", b"1")
    store.put("a/", b"")
    store.put("b/", b"")
    assert [f.name for f in store.find()] == ["a/x"]
    assert store.list() == []
    assert store.list("a") == ["x"]


def test_long_listings_come_in_pages(
    s3_bucket: str, s3_server: server.Server, faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, names = Storage(s3_bucket), [f"f/{i:05d}" for i in range(2500)]
    s3_server.fill(f"{s3_bucket.rsplit('/', 1)[-1]}/{name}" for name in names)
    assert [f.name for f in store.find()] == names
    assert faulty_s3.count("GET", "list-type=2") == 3
    assert store.list("f") == [n[2:] for n in names]
    assert faulty_s3.count("GET", "list-type=2") == 6
    monkeypatch.setattr(s3_read, "SORTED_SERVERS", ("Seaweed",))
    faulty_s3.reset()
    first = next(store.find())
    assert first.name == names[0]
    assert faulty_s3.count("GET", "list-type=2") == 1  # a server that sorts is read page by page


def test_a_server_said_to_sort_that_does_not_is_noticed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(s3_bucket)
    for name in ("a/x", "a-b/x"):
        store.put(name, b"")
    assert [f.name for f in store.find()] == ["a-b/x", "a/x"]
    monkeypatch.setattr(s3_read, "SORTED_SERVERS", ("Seaweed",))
    with pytest.raises(ResourceError, match="out of order"):
        list(store.find())


def test_put_new_has_one_winner(s3_bucket: str) -> None:
    start = threading.Barrier(16)

    def race(i: int) -> bool:
        start.wait()
        return Storage(s3_bucket).put_new("m.json", b"%d" % i)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert won.count(True) == 1
    assert Storage(s3_bucket).get("m.json") == b"%d" % won.index(True)


def test_an_open_file_seeks_reads_ahead_and_stays_one_version(s3_bucket: str, faulty_s3: Proxy) -> None:
    store, data = Storage(s3_bucket), big((8 << 20) + 77)
    store.put("x", data)
    faulty_s3.reset()
    with store.open("x") as f:
        lines = [f.read(1000) for _ in range(3000)]
        assert b"".join(lines) == data[: 3 * 10**6]
        assert faulty_s3.count("GET") == 1
        f.seek(-50, io.SEEK_END)
        assert f.read() == data[-50:]
        assert f.tell() == len(data)
        assert f.read(5) == b""
        f.seek(10)
        assert f.read(5) == data[10:15]
        store.put("x", data[::-1])
        f.seek(7 << 20)
        with pytest.raises(StoreError, match="changed while it was being read"):
            f.read(1 << 20)


def test_forked_fresh_and_pickled(s3_bucket: str) -> None:
    store = Storage(s3_bucket)
    store.put("x", b"1")  # the parent's connection is open
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get("x") == b"1"
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(store.get, ["x", "x"]) == [b"1", b"1"]
    assert store.get("x") == b"1"


def test_another_environment_is_another_connection(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = s3_client.connection()
    assert s3_client.connection() is one
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert s3_client.connection() is not one


WRONG = [
    ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "SignatureDoesNotMatch.*AWS_ACCESS_KEY_ID"),
    ({"AWS_ACCESS_KEY_ID": "AKIDUNKNOWN"}, "InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no usable credentials.*AWS_NO_SIGN_REQUEST"),
    (
        {"AWS_ACCESS_KEY_ID": server.READER_ACCESS, "AWS_SECRET_ACCESS_KEY": server.READER_SECRET},
        "AccessDenied.*lack a permission",
    ),
    ({"AWS_NO_SIGN_REQUEST": "true"}, "AccessDenied.*lack a permission"),
    (
        {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
        "5 attempts.*no connection to http://127.0.0.1:9.*AWS_ENDPOINT_URL_S3",
    ),
    ({"AWS_ENDPOINT_URL_S3": "http://nowhere.invalid"}, "no connection to http://nowhere.invalid"),
    (
        {"AWS_ENDPOINT_URL_S3": "http://user:pass-word@127.0.0.1:9"},
        "connection to http://127.0.0.1:9 broke.*AWS_ENDPOINT_URL_S3",
    ),
    ({"AWS_ENDPOINT_URL_S3": "127.0.0.1:9"}, "not the address of a server.*http://host:port"),
    ({"AWS_PROFILE": "nobody"}, "no usable credentials"),
]


@pytest.mark.parametrize(("environment", "said"), WRONG)
def test_a_wrong_environment_is_told_soon_and_without_secrets(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(s3_client, "BACKOFF_S", 0.01)
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    store = Storage(s3_bucket)
    with pytest.raises(AccessError, match=f"(?s){s3_bucket}/x: .*{said}") as caught:
        store.put("x", b"1")
    shown = "".join(
        (str(caught.value), repr(caught.value), repr(store), repr(store._backend), repr(caught.value.__cause__))
    )
    for secret in (os.environ.get("AWS_SECRET_ACCESS_KEY"), os.environ.get("AWS_ACCESS_KEY_ID"), "pass-word"):
        assert not secret or secret not in shown
    assert caught.value.__suppress_context__
    assert b"SECRET" not in pickle.dumps(store)


def test_a_missing_bucket_is_no_missing_file(s3_bucket: str) -> None:
    store = Storage("s3://no-such-bucket/run")
    for use in (
        lambda: store.get_or_none("x"),
        lambda: store.exists("x"),
        lambda: store.put("x", b"1"),
        lambda: store.put_new("x", b"1"),
        lambda: store.list(),
        lambda: list(store.find()),
        lambda: store.sweep(),
    ):
        with pytest.raises(ResourceError, match=r"s3://no-such-bucket.*no such bucket"):
            use()
    with pytest.raises(StoreError, match="no bucket is named"):
        Storage("s3://")
