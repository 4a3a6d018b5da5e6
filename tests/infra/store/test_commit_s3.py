"""Commit on a real S3 server: killed between data and manifest, and with many writers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.backends import s3
from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import commit_part, commit_step, done_parts, load_part, load_step
from infra.store.manifest import PartManifest, Rows, StepManifest
from tests.s3.proxy import Proxy

BIG = bytes(range(256)) * (80 << 10)  # 20 MiB: a multipart upload


def part(number: int = 0) -> PartManifest:
    name = f"a-{number:05d}"
    return PartManifest(step="scan", fingerprint="f", part=name, source="a", rows=Rows(entered=1, out=1))


def files(number: int = 0, big: bytes = BIG) -> dict[str, bytes]:
    return {f"a-{number:05d}.parquet": big, f"a-{number:05d}.quarantine.parquet": b"few"}


_KILLED = """
import os, sys
from infra.storage import Storage
from infra.store.commit import commit_part
from tests.infra.store.test_commit_s3 import part, files
Storage.put_new = lambda self, name, data: os.kill(os.getpid(), 9)
commit_part(Storage(sys.argv[1]), part(), files())
"""


def test_a_kill_between_data_and_manifest(s3_bucket: str) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, s3_bucket], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    store = Storage(s3_bucket)
    assert [f.name for f in store.find()] == [f"parts/{n}" for n in files()]
    before = list(store.find())
    assert done_parts(store) == set()
    with pytest.raises(StoreError, match="no such file"):
        load_part(store, "a-00000")
    commit_part(store, part(), files())
    assert done_parts(store) == {"a-00000"}
    assert list(store.find("parts"))[1:] == before  # size and ETag: the same bytes in the same chunks
    undisturbed = Storage(f"{s3_bucket}-undisturbed")
    commit_part(undisturbed, part(), files())
    assert list(undisturbed.find()) == list(store.find())


def test_parts_and_step_through_faults(s3_bucket: str, faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    store = Storage(s3_bucket)
    for fault in ("slow_down", "error", "refuse", "lose"):
        faulty_s3.add(fault, method="PUT", path="parquet", times=2, after=1)
        faulty_s3.add(fault, method="PUT", path="json", times=1)
    for number in range(3):
        commit_part(store, part(number), files(number, BIG[: 6 << 20]))
    faulty_s3.add("cut", method="GET", path="json", times=3)
    step = commit_step(store, StepManifest(step="scan", fingerprint="f"), sorted(done_parts(store)))
    assert step.parts == ["a-00000", "a-00001", "a-00002"]
    assert step.rows["a"].entered == 3
    assert load_step(store) == step
    assert faulty_s3.done == {"slow_down": 3, "error": 3, "refuse": 3, "lose": 3, "cut": 3}
    for number in range(3):
        for name, data in files(number, BIG[: 6 << 20]).items():
            assert store.get(f"parts/{name}") == data


def test_many_writers_of_one_part_agree(s3_bucket: str) -> None:
    def write(writer: int) -> PartManifest:
        manifest = part().model_copy(update={"rows": Rows(entered=writer, out=writer)})
        return commit_part(Storage(s3_bucket), manifest, {"a-00000.parquet": b"the same"})

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert all(w == won[0] == load_part(Storage(s3_bucket), "a-00000") for w in won)
