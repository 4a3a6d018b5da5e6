"""A storage that fails while a source is read: what passes is not noticed, what stays costs a sample or stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.backends import s3_client
from infra.errors import AccessError, CalummaError, ResourceError, SourceError
from infra.storage import Storage
from tasks.sources import open_source
from tasks.sources.base import RawSample
from tasks.sources.config import SourceConfig
from tests.s3.proxy import Proxy
from tests.tasks.sources.reading import json_lines, jsonl, rows, samples, source


@pytest.fixture
def pairs(s3_bucket: str) -> str:
    storage = Storage(s3_bucket)
    for name in ("a.png", "b.png"):
        storage.put(name, name.encode())
    content = [{"file": name, "caption": str(n)} for n in range(8) for name in ("a.png", "b.png")]
    storage.put("list.jsonl", json_lines(content))
    return f"{s3_bucket}/list.jsonl"


def test_faults_that_pass_are_not_noticed(pairs: str, faulty_s3: Proxy) -> None:
    want = samples(source(Path(), "pairs", pairs), 9)
    for fault in ("slow_down", "error", "refuse", "cut"):
        faulty_s3.add(fault, method="GET", times=1)
        assert samples(source(Path(), "pairs", pairs), 9) == want
        assert faulty_s3.done[fault] == 1
    assert len(want) == 16


def test_a_picture_that_the_storage_does_not_give_costs_its_sample(pairs: str, faulty_s3: Proxy) -> None:
    faulty_s3.add("error", path=r"b\.png", times=10_000)
    found = [r for r in rows(source(Path(), "pairs", pairs)) if isinstance(r, RawSample)]
    assert len(found) == 16
    pictures = {(r.images[0].name, r.images[0].data, r.images[0].error) for r in found}
    assert pictures == {("a.png", b"a.png", "missing-image"), ("b.png", None, "read-error")}


WRONG = {
    "denied": {"AWS_NO_SIGN_REQUEST": "true"},
    "wrong secret": {"AWS_SECRET_ACCESS_KEY": "not-the-secret"},
    "unknown key": {"AWS_ACCESS_KEY_ID": "AKIDUNKNOWN"},
    "no profile": {"AWS_PROFILE": "nobody"},
    "wrong address": {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
    "no address": {"AWS_ENDPOINT_URL_S3": "127.0.0.1:9"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_denied_access_stops_the_step_and_costs_no_sample(
    pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """The lists lie on a disk, so that pictures are the first thing that is asked of the server."""
    bucket = pairs.rpartition("/")[0]
    monkeypatch.setattr(s3_client, "BACKOFF_S", 0.01)
    jsonl(tmp_path / "pairs.jsonl", [{"file": "a.png", "caption": "a"}])
    picture = {"type": "image", "image": "a.png"}
    jsonl(tmp_path / "docs.jsonl", [{"segments": ["a", picture]}])
    found = [
        source(tmp_path, kind, name, images=bucket)
        for kind, name in (("pairs", "pairs.jsonl"), ("interleaved", "docs.jsonl"))
    ]
    assert all(s.images[0].data == b"a.png" for each in found for s in samples(each))
    for name, value in WRONG[wrong].items():
        monkeypatch.setenv(name, value)
    for each in found:
        with pytest.raises(AccessError, match=r"a\.png"):
            rows(each)


@pytest.mark.parametrize("kind", ["text", "html", "pairs", "img2dataset"])
def test_access_that_ends_while_files_are_read_stops_the_step(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The listing of the folder's slice is the last thing that is answered."""
    storage = Storage(s3_bucket).sub(kind)
    for name, data in {"a.txt": b"text", "a.html": b"<p>a", "a.png": b"a"}.items():
        storage.put(f"folder/{name}", data)
    options = {"format": "files"} if kind == "img2dataset" else {}
    of = {"html": "interleaved", "text": "text"}.get(kind, "pairs")
    found = open_source(
        SourceConfig.model_validate({"name": "s", "type": kind, "kind": of, "path": storage.root, "options": options})
    )
    (item,) = found.work_items(100)
    assert len(list(found.read(item))) == 1
    vars(found)["_root"].storage._backend._held = None  # a connection keeps the credentials that it began with
    names = Storage.list(storage, "folder")
    monkeypatch.setattr(Storage, "list", lambda *_: names)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDUNKNOWN")
    with pytest.raises(AccessError, match="InvalidAccessKeyId|403"):
        list(found.read(item))


def test_a_bucket_of_pictures_that_is_not_there_stops_the_step(pairs: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "pairs.jsonl", [{"file": "a.png", "caption": "a"}])
    with pytest.raises(AccessError, match="no-such-bucket-here: no such bucket"):
        rows(source(tmp_path, "pairs", "pairs.jsonl", images="s3://no-such-bucket-here"))


def test_a_list_that_the_storage_does_not_give_stops_the_step(pairs: str, faulty_s3: Proxy) -> None:
    found = source(Path(), "pairs", pairs)
    items = list(found.work_items(100))
    faulty_s3.add("error", path=r"list\.jsonl", times=10_000)
    with pytest.raises(ResourceError, match=r"list\.jsonl"):
        list(found.read(items[0]))


def test_a_bucket_that_is_not_there_is_named(s3_bucket: str) -> None:
    with pytest.raises(CalummaError, match="no-such-bucket-here"):
        source(Path(), "text", "s3://no-such-bucket-here/texts").digest()
    with pytest.raises(SourceError, match=f"nothing at {s3_bucket}/no"):
        source(Path(), "text", f"{s3_bucket}/no").digest()
