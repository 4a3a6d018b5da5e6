"""Progress of a job, as a small file that the flow and the terminal read: done, total, rate, quarantined."""

from __future__ import annotations

import json
import time
from typing import Any

from infra.storage import Storage

INTERVAL_S = 0.5


class Progress:
    """Writes ``runs/jobs/<job>/progress.json``, at most twice a second unless forced.

    The rate is what was done since the first report: what an earlier attempt left done is no speed.
    """

    def __init__(self, store: Storage, job: str) -> None:
        self._store, self._name = store, f"runs/jobs/{job}/progress.json"
        self._first: tuple[float, float] | None = None
        self._last = 0.0
        self.picture = ""
        """The newest picture worth looking at, a PNG's name in the work folder; empty: none."""
        self.curves = ""
        """Points of curves for the flow to draw, a file's name in the work folder; empty: none."""

    def update(
        self,
        done: float,
        total: float,
        unit: str = "items",
        *,
        quarantined: int = 0,
        note: str = "",
        force: bool = False,
    ) -> None:
        """Reports ``done`` of ``total``; ``note`` is a short line such as a loss."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if not force and now - self._last < INTERVAL_S and done < total:
            return
        self._last = now
        started, before = self._first
        seconds = now - started
        state = {
            "done": done,
            "total": total,
            "unit": unit,
            "rate": (done - before) / seconds if seconds > 1 else 0.0,  # before that it would say nothing
            "quarantined": quarantined,
            "note": note,
            **({"picture": self.picture} if self.picture else {}),
            **({"curves": self.curves} if self.curves else {}),
        }
        self._store.put(self._name, json.dumps(state).encode())


def read_progress(store: Storage, job: str) -> dict[str, Any] | None:
    """The job's last report, or None before the first."""
    data = store.get_or_none(f"runs/jobs/{job}/progress.json")
    if data is None:
        return None
    state: dict[str, Any] = json.loads(data)
    return state
