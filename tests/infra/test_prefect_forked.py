"""A child forked after a flow ran ends with its own code; in a process of its own, whose end has Prefect's hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys
from prefect import flow
from prefect.testing.utilities import prefect_test_harness
import flows.pipeline

@flow
def nothing() -> None:
    pass

def child(code: int) -> None:
    sys.exit(code)

with prefect_test_harness(server_startup_timeout=120):
    nothing()
    for code in (0, 7):
        process = multiprocessing.get_context("fork").Process(target=child, args=(code,))
        process.start()
        process.join()
        print("ended with", process.exitcode)
"""


@pytest.mark.integration
def test_children_forked_after_a_flow_end_with_their_own_code(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    ended = [line for line in run.stdout.splitlines() if line.startswith("ended with")]
    assert ended == ["ended with 0", "ended with 7"], run.stderr[-2000:]
