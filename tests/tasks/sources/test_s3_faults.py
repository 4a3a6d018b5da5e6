"""A storage that fails while a source is read: what passes is not noticed, what stays costs a sample or stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import CalummaError, ResourceError, SourceError
from infra.storage import Storage
from tasks.sources.base import RawSample
from tests.s3.proxy import Proxy
from tests.tasks.sources.reading import json_lines, rows, samples, source


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
