"""What is written down about a training: a line of ``metrics.jsonl`` a step, and the same to other places.

What the keys of a line mean is in ``docs/watching.md``; the image tokenizer's are in ``docs/image-tokenizer.md``. Where
else the figures go is in ``watch/sinks.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.growing import GrowingFiles
from infra.storage import Storage
from model.training.watch.config import WatchConfig
from model.training.watch.sinks import open_sinks

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to other sinks; on resuming, lines past the checkpoint are dropped.

    On S3, which cannot append, all files lie in scratch and are uploaded by :meth:`keep` at every checkpoint.
    """

    def __init__(self, store: Storage, first_step: int, watch: WatchConfig | None = None) -> None:
        self._files = GrowingFiles(store, [METRICS])
        self._path = self._files.path / METRICS
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= first_step]
        aside = self._path.with_suffix(".aside")  # a kill here must not cost the lines so far
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks = open_sinks(watch or WatchConfig(), store, self._files.path, first_step)

    def write(self, line: dict[str, Any]) -> None:
        """Writes one step's line; it is on the file system when this returns."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        figures = dict(flat(line))
        for sink in self._sinks:
            sink.figures(line["step"], figures)

    def show(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """A picture, (height, width, 3), for the sinks; the log's file holds figures alone."""
        for sink in self._sinks:
            sink.picture(step, name, picture)

    def keep(self) -> None:
        """Makes everything so far lasting."""
        for sink in self._sinks:
            sink.keep()
        self._files.keep()

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()
        self._files.close()


def read_metrics(store: Storage) -> list[dict[str, Any]]:
    """The lines of a step's ``metrics.jsonl``, in step order."""
    return [json.loads(line) for line in store.get(METRICS).decode().splitlines()]


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that ends in the middle of one if its writer was killed."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A line's figures by slash-separated names: ``train/loss``, ``train/residual_norms/00``, ``held_out/web/text``."""
    for key, value in line.items():
        if key != "step":
            yield from _leaves(key if key == "held_out" else f"train/{key}", value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}/{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(f"{name}/{place:02d}", inner)
    elif isinstance(value, int | float):
        yield name, float(value)
