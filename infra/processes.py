"""Processes that a run starts on this machine, and how exactly those are ended, whatever became of the run.

A run's helpers (the local Ray, the Prefect server) inherit a random mark in their environment; so does everything they
start. The mark is recorded in the work folder before the first process, and ending the helper is ending the processes
that carry it. They have a session of their own: Ctrl-C in the terminal reaches the run alone, which ends them in order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

MARK = "CALUMMA_MARK"


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that carry a mark, this one left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == mark
            ):
                found.append(process)
    return found


def end_marked(mark: str) -> int:
    """Kills the processes that carry a mark; how many that were."""
    count = 0
    for _ in range(5):  # one of them may start another while we end the rest
        found = _with_descendants(marked(mark))
        if not found:
            break
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
                count += 1
        psutil.wait_procs(found, timeout=5)
    return count


def _with_descendants(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Some helpers overwrite their environment with a title for ``ps``; they are found as somebody's children."""
    found = set(processes)
    for process in processes:
        with suppress(psutil.Error):
            found |= set(process.children(recursive=True))
    return sorted(found, key=lambda p: p.pid)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Records a helper in the work folder; before its first process is started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record) + "\n")


def read_record(path: Path) -> dict[str, str] | None:
    """A helper's record: a mark and a local address; None where there is none. Anything else is not ours, and goes."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if (
        isinstance(record, dict)
        and set(record) == {"mark", "address"}
        and re.fullmatch("[0-9a-f]{16}", str(record.get("mark")))
        and re.fullmatch(r"http://127\.0\.0\.1:\d+", str(record.get("address")))
    ):
        return record
    path.unlink(missing_ok=True)
    return None


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def is_free(port: int) -> bool:
    """Whether a port of the loopback interface can be listened on."""
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
