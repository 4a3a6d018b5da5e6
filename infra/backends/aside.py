"""Names of what is written aside, and whose it is: a killed writer's leavings go, a living writer's stay.

A name is ``.aside-HOST-PID-UUID``. HOST stands for the machine since it was started, and for the container there: only
in the same one does a process number say anything.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from infra.backends.base import ASIDE

_NAME = re.compile(rf"{re.escape(ASIDE)}([0-9a-f]{{12}})-([0-9]+)-[0-9a-f]{{32}}")


def aside_name() -> str:
    """A new name of this process."""
    return f"{ASIDE}{_host()}-{os.getpid()}-{uuid.uuid4().hex}"


def maker_lives(name: str) -> bool | None:
    """Whether the process that made this name is there; None if it is, or was, on another machine.

    A name in any other form is nobody's: no writer makes such.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return False
    if found[1] != _host():
        return None
    try:
        return bool(psutil.Process(int(found[2])).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, OverflowError):
        return False
    except psutil.AccessDenied:
        return True


@cache
def _host() -> str:
    parts = [platform.node()]
    with suppress(OSError):  # not Linux: the name alone
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()
