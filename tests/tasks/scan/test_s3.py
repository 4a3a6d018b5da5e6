"""Scan and select with everything but the source on a real S3 server: store, weights, benchmark, removal list."""

from __future__ import annotations

from infra.storage import Storage
from tasks.context import StepContext
from tasks.documents.config import RemovalConfig
from tasks.documents.removal import Removal
from tests.tasks.file_sources import Jsonl, MakeContext, Pictures
from tests.tasks.scan.test_run import PAIRS, all_selected, finished, run_both


def test_everything_lies_on_s3(make_context: MakeContext, jsonl: Jsonl, pictures: Pictures, s3_bucket: str) -> None:
    names, store = pictures(5), Storage(s3_bucket)
    store.put("beside/w.txt", b"1")
    store.put("beside/exam.txt", b"the train leaves at noon and arrives where two rivers meet\n")
    captions = ["one", "two", "three", "the train leaves at noon and arrives where two rivers meet", "five"]
    rows = [{"file": n, "caption": c} for n, c in zip(names, captions, strict=True)]
    jsonl("list.jsonl", [*rows, {"file": names[0], "caption": "again"}])
    options = {
        "item_samples": 2,
        "benchmarks": [{"name": "exam", "path": f"{s3_bucket}/beside/exam.txt"}],
        "scorers": [
            {
                "name": "bright",
                "type": "tests.tasks.scan.test_scorers:Brightness",
                "weights": f"{s3_bucket}/beside/w.txt",
            }
        ],
    }
    local = make_context("scan", [PAIRS], scan=options)
    context = StepContext(local.recipe, f"{s3_bucket}/work", "scan")
    for each in (local, context):
        run_both(each)
    for step in ("scan", "select"):
        here, there = (finished(StepContext(c.recipe, c.root, step)) for c in (local, context))
        assert here == there
    assert finished(context).rows["photos"].filtered == {"benchmark-exam": 1}
    assert len(all_selected(context)["photos"]) == 4
    assert all_selected(context) == all_selected(local)


def test_a_removal_list_on_s3(s3_bucket: str) -> None:
    Storage(s3_bucket).put("gone.txt", f"{'ab' * 16}\nhttp://example.org/x\n".encode() * 1000)
    found = Removal.load(RemovalConfig(list=f"{s3_bucket}/gone.txt"))
    assert len(found) == 2000
    assert found.covers(b"\xab" * 16)
    assert found.covers(bytes(16), [(bytes(32), "http://example.org/x")])
