"""Children forked by a process in which a flow has run end as their own work says.

Prefect's services (its logs' and events' senders) ask Python to drain them when the process ends. A forked child has
that wish from its parent, but Prefect (3.8) has emptied the services there, and draining an emptied one raises: every
such child ends with code 1, whatever it did. In a notebook that ran a flow, the workers of a torch ``DataLoader`` and
of ``multiprocessing`` are such children. Nothing is lost by not draining: the parent sends what was waiting.
"""

from __future__ import annotations

import os
import threading
from functools import cache


def _forget_services() -> None:
    # Python's own list, which has no public way to take something from it; without it nothing is to be mended.
    calls = getattr(threading, "_threading_atexits", None)
    if isinstance(calls, list):
        calls[:] = [call for call in calls if not _of_prefect(call)]


def _of_prefect(call: object) -> bool:
    owner = getattr(getattr(call, "func", call), "__self__", None)
    return type(owner).__module__.partition(".")[0] == "prefect"


@cache
def let_children_end() -> None:
    """From now on children forked by this process do not drain the services of Prefect that it had; once is enough."""
    os.register_at_fork(after_in_child=_forget_services)
