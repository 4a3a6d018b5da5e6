"""A Prefect server over a work folder's own database, which one run starts, owns and ends.

It differs from Prefect's embedded server in two ways: it survives the terminal's Ctrl-C for as long as the run needs to
report its end, and its UI can be looked at while the run is on.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ResourceError
from infra.processes import MARK, end_marked, free_ports, read_record, write_record

RECORD = "runs/prefect.json"
START_DEADLINE_S = 90


def prefect_environment(workdir: Path) -> dict[str, str]:
    """Prefect's settings for a server or client over the folder's database."""
    return {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(workdir / "runs" / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }


def server_command(port: int) -> list[str]:
    """The command that serves the folder of the environment it is started with."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


@dataclass(frozen=True, slots=True)
class LocalPrefect:
    """A server that was started; :func:`wait_for_prefect` waits until it answers."""

    address: str
    process: subprocess.Popen[bytes]


def start_prefect(workdir: Path) -> LocalPrefect:
    """Ends what an earlier run left and starts a server; returns at once."""
    end_prefect(workdir)
    [port] = free_ports(1)
    mark = secrets.token_hex(8)
    address = f"http://127.0.0.1:{port}"
    write_record(workdir / RECORD, {"mark": mark, "address": address})
    env = {**os.environ, **prefect_environment(workdir), MARK: mark}
    env.pop("PREFECT_API_URL", None)
    home = Path(env["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            server_command(port), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return LocalPrefect(address, process)


def wait_for_prefect(workdir: Path, server: LocalPrefect) -> None:
    """Returns once the server answers; ResourceError with its own words if it does not."""
    deadline = time.monotonic() + START_DEADLINE_S
    while server.process.poll() is None and time.monotonic() < deadline:
        if _answers(server.address):
            return
        time.sleep(0.2)
    log = workdir / "runs" / "prefect" / "server.log"
    words = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
    end_prefect(workdir)
    raise ResourceError(f"the Prefect server did not start on {server.address}. It said:\n{words}\nIts log: {log}")


def end_prefect(workdir: Path) -> int:
    """Ends the server recorded in ``workdir``, if any; how many processes that were."""
    record = read_record(workdir / RECORD)
    if record is None:
        return 0
    count = end_marked(record["mark"])
    (workdir / RECORD).unlink(missing_ok=True)
    return count


def recorded_prefect(workdir: Path) -> str | None:
    """The address of the server that a run of ``workdir`` has up now, if it answers."""
    record = read_record(workdir / RECORD)
    return record["address"] if record is not None and _answers(record["address"]) else None


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{address}/api/health", timeout=2):
        return True
    return False
