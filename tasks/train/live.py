"""A training's curves while it trains: the worker keeps their points in a small file, which the flow draws.

Drawing takes a second or two, which training would miss; keeping the points takes milliseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from infra.storage import Storage
from model.training.monitors import METRICS
from tasks.train.history import History

INTERVAL_S = 15.0


def curves_file(job: str) -> str:
    """Name, in the work folder, of the file with the points."""
    return f"runs/jobs/{job}/curves.json"


class LiveCurves:
    """Hears every line that the first worker writes, and keeps the course so far, at most every few seconds."""

    def __init__(self, workdir: Storage, job: str, store: Storage, sources: Sequence[str]) -> None:
        self._workdir, self._name, self._store, self._sources = workdir, curves_file(job), store, list(sources)
        self._history: History | None = None
        self._kept = float("-inf")

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Adds a line; before the first one, those of earlier attempts."""
        if self._history is None:
            earlier = (json.loads(text) for text in (self._store.get_or_none(METRICS) or b"").splitlines())
            self._history = History(found for found in earlier if found["step"] < line["step"])
        self._history.add(line)
        now = time.monotonic()
        if now - self._kept >= INTERVAL_S:
            self._kept = now
            content = {"sources": self._sources, "history": self._history.state_dict()}
            self._workdir.put(self._name, json.dumps(content).encode())


def draw_live(data: bytes) -> bytes:
    """The picture of a file that :class:`LiveCurves` left, as PNG."""
    from tasks.train.curves import training_png

    content = json.loads(data)
    return training_png(History.of(content["history"]), content["sources"])
