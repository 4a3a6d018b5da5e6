"""Storage on a real S3 server behind a proxy that breaks things: what passes is survived, the rest is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.backends import s3, s3_client
from infra.errors import ResourceError
from infra.storage import Storage
from tests.s3.proxy import Proxy

DATA = bytes(range(256)) * 4096  # 1 MiB
FAULTS: list[tuple[str, dict[str, float]]] = [
    ("slow_down", {}),
    ("error", {}),
    ("refuse", {}),
    ("lose", {}),
    ("cut", {}),
    ("silence", {"seconds": 1.5}),
]


@pytest.fixture
def impatient(faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A connection that bears a second of silence, where silence is the fault; the others keep their half minute."""
    if "silence" in request.node.name:
        monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 1.0)
        monkeypatch.setenv("AWS_SDK_UA_APP_ID", "impatient")  # another environment is another connection


WORK: dict[str, tuple[str, Callable[[Storage], object], object]] = {
    "get": ("GET", lambda s: s.get("x"), DATA),
    "get_many": ("GET", lambda s: list(s.get_many(["x", "y", "x"])), [DATA, b"12", DATA]),
    "range": ("GET", lambda s: s.range("x", 1000, 300_000), DATA[1000:300_000]),
    "size": ("HEAD", lambda s: s.size("x"), len(DATA)),
    "list": ("GET", lambda s: s.list(), ["x", "y"]),
    "find": ("GET", lambda s: [f.name for f in s.find()], ["x", "y"]),
    "put": ("PUT", lambda s: s.put("y", DATA), None),
    "put_new": ("PUT", lambda s: s.put_new("new", DATA), True),
    "put_new of another": ("PUT", lambda s: s.put_new("y", b"13"), False),
    "delete": ("DELETE", lambda s: s.delete("y"), None),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("fault", "how"), FAULTS, ids=[f for f, _ in FAULTS])
def test_a_fault_that_passes_is_survived(s3_bucket: str, faulty_s3: Proxy, fault: str, how: dict[str, float]) -> None:
    for what, (method, work, result) in WORK.items():
        if fault == "silence" and what not in ("get", "find", "put", "put_new"):
            continue  # each takes as long as the time-out
        store = Storage(s3_bucket).sub(what.replace(" ", "-"))
        store.put("x", DATA)
        store.put("y", b"12")
        faulty_s3.reset()
        times = 1 if fault == "silence" else 3
        faulty_s3.add(fault, method=method, times=times, **how)
        assert work(store) == result, what
        if fault == "cut" and method in ("HEAD", "DELETE", "PUT"):
            continue  # their answers have no body to break in
        assert faulty_s3.done[fault] == times, what
        assert faulty_s3.count(method) > times, what  # it was asked again, not waited for
        faulty_s3.reset()
        stored = {"put": ("y", DATA), "put_new": ("new", DATA), "put_new of another": ("y", b"12")}
        if what in stored:
            assert store.get(stored[what][0]) == stored[what][1]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("fault", "how"), FAULTS, ids=[f for f, _ in FAULTS])
@pytest.mark.parametrize("way", ["put", "put_new", "put_file"])
def test_a_large_upload_survives_a_fault_in_each_of_its_requests(
    s3_bucket: str,
    faulty_s3: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    how: dict[str, float],
    way: str,
) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    store, data = Storage(s3_bucket), DATA * 11
    (tmp_path / "big").write_bytes(data)
    requests = [("POST", r"\?uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId="), ("HEAD", "big")]
    for method, path in requests:
        if fault != "cut" or method == "POST":
            faulty_s3.add(fault, method=method, path=path, **how)
    assert getattr(store, way)("big", tmp_path / "big" if way == "put_file" else data) in (None, True)
    assert faulty_s3.done[fault] == (2 if fault == "cut" else 4)
    assert faulty_s3.count("PUT", "partNumber=2") == (1 if fault == "cut" else 2)
    faulty_s3.reset()
    assert store.get("big") == data
    assert [f.name for f in store.find()] == ["big"]


def test_a_body_that_breaks_goes_on_where_it_broke(s3_bucket: str, faulty_s3: Proxy) -> None:
    store = Storage(s3_bucket)
    store.put("x", DATA * 8)
    faulty_s3.add("cut", method="GET", times=5)
    began = time.monotonic()
    assert store.get("x") == DATA * 8
    assert faulty_s3.count("GET") == 6
    assert time.monotonic() - began < 5
    with store.open("x") as f:
        faulty_s3.add("cut", method="GET", times=2)
        assert f.read() == DATA * 8


def test_an_object_replaced_while_it_is_read_is_read_anew(s3_bucket: str, faulty_s3: Proxy) -> None:
    store = Storage(s3_bucket)
    store.put("x", DATA)
    backend = store._backend
    assert isinstance(backend, s3.S3)
    faulty_s3.add("cut", method="GET")
    faulty_s3.add("silence", method="GET", seconds=0.5)

    async def replace_in_between() -> bytes:
        import asyncio

        reading = asyncio.ensure_future(backend._fetch("x"))
        while not faulty_s3.done["cut"]:
            await asyncio.sleep(0.005)
        await backend._put("x", DATA[::-1])
        return await reading

    assert backend._s3.run(replace_in_between()) in (DATA[::-1], DATA)


def test_a_lost_answer_to_put_new_is_ours_only_with_our_bytes(s3_bucket: str, faulty_s3: Proxy) -> None:
    store = Storage(s3_bucket)
    store.put_new("first", b"")  # whether the server honours conditions is asked once
    faulty_s3.reset()
    faulty_s3.add("lose", method="PUT")
    assert store.put_new("m", b"mine")
    assert faulty_s3.count("PUT") == 2
    faulty_s3.add("refuse", method="PUT")
    assert not store.put_new("m", b"another's")
    assert not store.put_new("m", b"mine")  # no attempt of this call was lost
    assert store.get("m") == b"mine"


def test_a_hard_fault_ends_with_a_full_account(
    s3_bucket: str, faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 4)
    store = Storage(s3_bucket)
    store.put("x", b"1")
    cases = [
        ("slow_down", r"GetObject failed after 4 attempts in \d+ s: SlowDown \(503\) Please reduce.*data_workers"),
        ("error", r"GetObject failed after 4 attempts in \d+ s: InternalError \(500\)"),
        ("refuse", r"GetObject failed after 4 attempts in \d+ s: the connection to http://127.0.0.1:\d+ broke"),
    ]
    for fault, said in cases:
        faulty_s3.reset()
        faulty_s3.add(fault, method="GET", times=99)
        with pytest.raises(ResourceError, match=f"{s3_bucket}/x: {said}"):
            store.get("x")
        assert faulty_s3.done[fault] == 4


def test_an_upload_that_fails_leaves_nothing(s3_bucket: str, faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    store = Storage(s3_bucket)
    faulty_s3.add("slow_down", method="PUT", path="partNumber=2", times=99)
    with pytest.raises(ResourceError, match="UploadPart failed after 2 attempts"):
        store.put("big", DATA * 11)
    assert list(store.find()) == []
    monkeypatch.setattr(s3, "STALE_S", 0.0)
    assert store.sweep() == 0  # it was aborted


def test_pauses_grow_and_are_drawn_by_chance(monkeypatch: pytest.MonkeyPatch, s3_bucket: str, faulty_s3: Proxy) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr(s3_client.random, "uniform", draw)
    monkeypatch.setattr(s3_client, "BACKOFF_S", 0.2)
    faulty_s3.add("slow_down", method="PUT", times=9)
    Storage(s3_bucket).put("x", b"1")
    assert drawn == [(0, min(20.0, 0.2 * 2**n)) for n in range(9)]


def test_a_server_that_ignores_conditions_is_found_out(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_NEW", {})
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "another-connection")
    store = Storage(s3_bucket)
    with pytest.raises(ResourceError, match=f"{s3_bucket}/m: the server ignores If-None-Match"):
        store.put_new("m", b"1")


def test_an_upload_that_another_aborted_begins_anew(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    monkeypatch.setattr(s3, "STALE_S", 0.0)
    call, aborted = s3.S3._call, []

    async def abort_first(self: s3.S3, operation: str, *args: object, **how: object) -> object:
        if operation == "CompleteMultipartUpload" and len(aborted) < 2:
            aborted.append(await self._sweep(""))
        return await call(self, operation, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(s3.S3, "_call", abort_first)
    store = Storage(s3_bucket)
    store.put("big", DATA * 11)
    assert aborted == [1, 1]
    assert store.get("big") == DATA * 11
    aborted.clear()
    monkeypatch.setattr(s3, "STARTS", 2)
    with pytest.raises(ResourceError, match=r"other: the upload of 11,534,336 bytes was aborted 2 times"):
        store.put("other", DATA * 11)
    assert [f.name for f in store.find()] == ["big"]
