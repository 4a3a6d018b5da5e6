"""Deployments against a real Prefect server: the form's schema, its enforcement, and that schedules make runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


class Server:
    def __init__(self, home: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.env = {
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        env = {k: v for k, v in self.env.items() if k != "PREFECT_API_URL"}
        self.log = open(home / "server.log", "w")  # noqa: SIM115 - the server writes to it as long as it lives
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, start_new_session=True)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.api}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.3)
        pytest.fail((home / "server.log").read_text())

    def call(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.api}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def prefect(self, *words: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            env=self.env,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    yield server
    server.stop()


def test_the_deployment_is_a_form_that_refuses_bad_values_and_its_schedule_makes_runs(
    server: Server, tmp_path: Path
) -> None:
    server.prefect("work-pool", "create", "calumma", "--type", "process")
    # The same file with its schedule switched on.
    file = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    file["deployments"][0]["schedules"][0]["active"] = True
    active = tmp_path / "active.yaml"
    active.write_text(yaml.safe_dump(file))
    server.prefect("deploy", "--all", "--prefect-file", str(active))

    [deployment] = server.call("/deployments/filter", {})
    schema = deployment["parameter_openapi_schema"]
    assert deployment["name"] == "emoji"
    assert {"recipe", "workdir", "first", "only", "settings"} <= set(schema["properties"])
    assert "Recipe" in schema["definitions"], "the UI shows the recipe as a form"
    assert "TransformerConfig" in schema["definitions"]

    with pytest.raises(urllib.error.HTTPError) as refused:
        server.call(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": {"recipe": {"name": "x", "pretrain": {"batch": "many"}}, "workdir": "w"}},
        )
    assert refused.value.code == 409

    deadline = time.monotonic() + 90
    runs: list[Any] = []
    while not runs and time.monotonic() < deadline:
        runs = server.call("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        time.sleep(1)
    assert runs, "an active schedule makes scheduled runs (SQLAlchemy 2.1 breaks this silently)"
