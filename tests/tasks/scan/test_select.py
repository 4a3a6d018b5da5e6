"""Where ``select`` keeps what does not fit into memory, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.backends import aside
from infra.backends.aside import aside_name
from infra.errors import ResourceError
from infra.home import local_side
from infra.storage import Storage
from tasks.context import StepContext
from tasks.scan import run as scan
from tasks.scan import select
from tasks.scan.config import SelectConfig
from tasks.scan.duplicates import Duplicates, duplicates
from tests.tasks.file_sources import Jsonl, MakeContext
from tests.tasks.scan.test_run import TEXTS, all_selected, as_step


@pytest.fixture
def scanned(make_context: MakeContext, jsonl: Jsonl) -> StepContext:
    jsonl("prose.jsonl", [{"text": f"this is text {n % 7}"} for n in range(10)])
    context = make_context("scan", [TEXTS])
    scan.run(context, workers=0)
    return as_step(context, "select")


def folder_of_a_dead_process(folder: Path) -> Path:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = folder / aside_name().replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    (left / "spilled").mkdir(parents=True)
    (left / "spilled" / "block").write_bytes(b"1")
    return left


@contextmanager
def noting(seen: list[Path], config: SelectConfig, folder: Path) -> Iterator[Duplicates]:
    with duplicates(config, folder) as found:
        seen.append(folder)
        yield found


def test_the_search_lies_below_the_work_folder_and_goes(scanned: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(select, "duplicates", lambda config, folder: noting(seen, config, folder))
    select.run(scanned)
    assert seen == [Path(scanned.root) / "scratch"]
    assert not seen[0].exists()
    assert len(all_selected(scanned)["prose"]) == 7


def test_with_the_work_folder_on_s3_it_lies_on_this_machine_where_room_is_checked(
    scanned: StepContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    remote = StepContext(scanned.recipe, "s3://bucket/run", "select", prints=scanned.fingerprints)
    assert select.scratch(remote) == local_side("s3://bucket/run") / "scratch"
    assert select.scratch(remote).is_relative_to(tmp_path / "state")
    asked: list[str] = []

    def full(self: Storage, size: int, what: str) -> None:
        asked.append(self.root)
        raise ResourceError(f"{self.root}: {what} needs {size}")

    manifest = scanned.manifest("scan")
    monkeypatch.setattr(Storage, "need", full)
    monkeypatch.setattr(StepContext, "manifest", lambda *_: manifest)
    with pytest.raises(ResourceError, match=r"10 samples of prose .*XDG_STATE_HOME"):
        select.SelectWorker(remote, [])._need_disk("prose")
    assert asked == [str(select.scratch(remote))]


def test_what_killed_searches_left_goes_and_what_others_use_stays(
    scanned: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = select.scratch(scanned)
    dead, living = folder_of_a_dead_process(folder), folder / aside_name()
    living.mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(aside, "_host", lambda: "0123456789ab")
        other, forgotten = folder / aside_name(), folder / aside_name()
    other.mkdir()
    forgotten.mkdir()
    os.utime(forgotten, (time.time() - 90_000,) * 2)
    select.run(scanned)
    assert not dead.exists()
    assert sorted(folder.iterdir()) == sorted([living, other])
