"""Fixtures for all tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.s3 import proxy, server

# No test asserts a time: machines that run tests are busy ones.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

WHOLE_RUNS = ("tests/integration/test_pipeline.py", "tests/integration/test_s3.py")
"""Files that compare with one whole pipeline's run, which takes minutes and is made once a process."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests, those of a file stay together, and all that need a whole run do."""
    from xdist.scheduler import LoadScopeScheduling

    def scope(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return WHOLE_RUNS[0] if file in WHOLE_RUNS else file

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope
    return scheduler


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent: this test needs its real files")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A real S3 server, started when a test first asks for it; signatures are enforced."""
    with server.s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3_bucket(s3_server: server.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty folder on the S3 server, for this test alone; the environment points to the server."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def _s3_proxy(s3_server: server.Server) -> Iterator[proxy.Proxy]:
    with proxy.proxy(s3_server.port) as running:
        yield running


@pytest.fixture
def faulty_s3(s3_bucket: str, _s3_proxy: proxy.Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[proxy.Proxy]:
    """A proxy before the S3 server, which the environment now points to; it has no rules yet. Pauses are short."""
    from infra.backends import s3_client

    monkeypatch.setattr(s3_client, "BACKOFF_S", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{_s3_proxy.port}")
    _s3_proxy.reset()
    yield _s3_proxy
    _s3_proxy.reset()


ALLOWED_SKIPS = ("this test needs its real files", "no chromium on this machine")
"""Reasons that may skip a test where CI runs; any other skip fails the run there."""
_unexpected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _unexpected:
        print("\nskips that are not on the list in tests/conftest.py:", *_unexpected, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
