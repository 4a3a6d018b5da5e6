"""A local Ray that one run starts, owns and ends, beside any other Ray on the machine.

``ray stop`` would end every Ray on the host, so it is never used: the cluster's processes carry a mark
(``infra/processes.py``). A run that was killed leaves its record behind; the next run ends what it finds there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from infra.errors import ResourceError
from infra.processes import MARK, end_marked, free_ports, is_free, marked, read_record, write_record

RECORD = "runs/ray.json"
START_DEADLINE_S = 90


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running local cluster."""

    mark: str
    address: str
    """Jobs API and dashboard, ``http://127.0.0.1:PORT``."""

    @property
    def folder(self) -> Path:
        """Ray's own session folder, removed when the cluster ends."""
        # Ray's sockets live below it and a socket's path may have at most 107 characters.
        return Path(tempfile.gettempdir()) / f"calumma-ray-{self.mark}"

    def alive(self) -> bool:
        """Whether the dashboard answers and the node's raylet runs."""
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/api/version", timeout=5):
            return any(_name(p) == "raylet" for p in marked(self.mark))
        return False


def start_ray(workdir: Path, cpus: int, environment: dict[str, str] | None = None) -> LocalRay:
    """Ends what an earlier run left in ``workdir`` and starts a cluster of ``cpus`` logical CPUs; about 5 s.

    ``environment`` is inherited by every job. ResourceError if the cluster does not come up, with Ray's own words.
    """
    end_ray(workdir)
    mark = secrets.token_hex(8)
    gcs, dashboard, agent, client = free_ports(4)
    # Two clusters on one host must not share worker ports; a block well above the system's usual services.
    workers = _free_block(200)
    cluster = LocalRay(mark, f"http://127.0.0.1:{dashboard}")
    write_record(workdir / RECORD, asdict(cluster))
    env = {
        **os.environ,
        **(environment or {}),
        MARK: mark,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # bound to the loopback interface; set on purpose, see docs/operations.md
        "RAY_DISABLE_IMPORT_WARNING": "1",
        # Ray reserves this share of the host's memory for objects; parts are small and laptops are too.
        "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.1",
        "RAY_raylet_start_wait_time_s": "60",
    }
    env.pop("RAY_ADDRESS", None)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={cluster.folder}", f"--num-cpus={cpus}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--min-worker-port={workers}", f"--max-worker-port={workers + 199}"),
        *("--object-store-memory", str(256 << 20), "--disable-usage-stats"),
    ]
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, check=False
    )
    deadline = time.monotonic() + START_DEADLINE_S
    while done.returncode == 0 and time.monotonic() < deadline:
        if cluster.alive():
            return cluster
        time.sleep(0.2)
    words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
    end_ray(workdir)
    raise ResourceError(
        f"the local Ray did not start (exit code {done.returncode}) on ports {gcs} and {dashboard}. Ray said:\n"
        f"{words}\nRun again, or give an existing cluster with --set resources.ray_address=http://HOST:8265."
    )


def end_ray(workdir: Path) -> int:
    """Ends the cluster recorded in ``workdir``, if any; how many processes that were."""
    known = _recorded(workdir)
    if known is None:
        return 0
    count = end_marked(known.mark)
    shutil.rmtree(known.folder, ignore_errors=True)
    (workdir / RECORD).unlink(missing_ok=True)
    return count


def recorded_ray(workdir: Path) -> LocalRay | None:
    """The cluster that a run of ``workdir`` has up now, if it answers."""
    known = _recorded(workdir)
    return known if known is not None and known.alive() else None


def _recorded(workdir: Path) -> LocalRay | None:
    record = read_record(workdir / RECORD)
    return None if record is None else LocalRay(**record)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def _free_block(size: int) -> int:
    """The first port of a block whose every port is free now."""
    for _ in range(50):
        first = 20_000 + secrets.randbelow(40) * size
        if all(is_free(p) for p in range(first, first + size)):
            return first
    raise ResourceError(f"no block of {size} free ports between 20000 and {20_000 + 40 * size}; close other programs")
