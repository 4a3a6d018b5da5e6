from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.processes import MARK, end_marked, free_ports, is_free, marked, read_record, write_record

GOOD = {"mark": "0123456789abcdef", "address": "http://127.0.0.1:4200"}


def test_marked_processes_and_their_children_end() -> None:
    mark = "f" * 16
    child = "import time; time.sleep(99)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); {child}"
    env = {**os.environ, MARK: mark}
    started = subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True)
    while len(marked(mark)) < 2:
        assert started.poll() is None
    assert end_marked("e" * 16) == 0
    assert end_marked(mark) == 2
    assert started.poll() is not None
    assert marked(mark) == []


def test_records(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.json") is None
    write_record(tmp_path / "runs" / "ray.json", GOOD)
    assert read_record(tmp_path / "runs" / "ray.json") == GOOD


@pytest.mark.parametrize(
    "bad",
    [
        "torn {",
        "[1]",
        '{"mark": "../../etc", "address": "http://127.0.0.1:1"}',
        '{"mark": "0123456789abcdef", "address": "http://example.org:1"}',
        '{"mark": "0123456789abcdef"}',
    ],
)
def test_a_record_that_is_not_ours_is_forgotten(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "ray.json"
    path.write_text(bad)
    assert read_record(path) is None
    assert not path.exists()


def test_ports() -> None:
    ports = free_ports(3)
    assert len(set(ports)) == 3
    assert all(is_free(p) for p in ports)
