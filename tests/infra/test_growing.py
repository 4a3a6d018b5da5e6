from __future__ import annotations

from pathlib import Path

from infra.growing import GrowingFiles
from infra.storage import Storage
from tests.s3.proxy import Proxy


def test_on_a_disk_the_folder_itself_is_appended_to(tmp_path: Path) -> None:
    files = GrowingFiles(Storage(tmp_path / "step"), ["log"])
    assert files.path == tmp_path / "step"
    (files.path / "log").write_bytes(b"1")
    files.close()
    assert [p.name for p in files.path.iterdir()] == ["log"]


def test_on_s3_what_changed_is_stored_and_another_machine_goes_on_with_it(s3_bucket: str, faulty_s3: Proxy) -> None:
    store = Storage(s3_bucket)
    store.put("log", b"one\n")
    store.put("other", b"not asked for")
    files = GrowingFiles(store, ["log", "not there yet"])
    assert [p.name for p in files.path.iterdir()] == ["log"]
    with (files.path / "log").open("ab") as log:
        log.write(b"two\n")
    (files.path / "events").mkdir()
    (files.path / "events" / "1").write_bytes(b"x")
    assert store.get("log") == b"one\n"
    files.keep()
    assert store.get("log") == b"one\ntwo\n"
    assert store.get("events/1") == b"x"
    faulty_s3.reset()
    files.keep()
    assert faulty_s3.count("PUT") == 0, "what did not change is not sent again"
    (files.path / "events" / "2").write_bytes(b"y")
    files.close()
    assert not files.path.exists()
    assert [f.name for f in store.find()] == ["events/1", "events/2", "log", "other"]
