"""What is written down about a training: a line of ``metrics.jsonl`` a step, and the same for TensorBoard.

A line's keys: ``step`` (1-based, the step just finished), ``stage``, ``loss`` (nats a counted token), ``loss_text`` and
``loss_image`` (absent where a batch has none), ``z2`` and ``log_z`` (means of log²Z and log Z), ``grad_norm`` (before
clipping), ``spike`` (only on a spike: multiple of the rolling median), ``learning_rate``, ``output_norm`` (mean L2 norm
of the last layer's output, which the paper watches as the first sign of divergence), ``image_share`` (of the counted
labels), ``tokens`` (not padding, this step), ``total_tokens``, ``tokens_per_s``; and every ``evaluate_every`` steps
``held_out``: ``{source: {"text": loss, "image": loss}}``. The image tokenizer's lines have keys of their own
(``docs/image-tokenizer.md``) and the same ways.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.storage import Storage

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsLog:
    """Appends to ``metrics.jsonl`` and TensorBoard's event files; on resuming, lines past the checkpoint are dropped.

    On S3, which cannot append, the file is kept beside and uploaded by :meth:`keep` at every checkpoint.
    """

    def __init__(self, store: Storage, first_step: int) -> None:
        self._store = store
        self._temporary: Path | None = None
        if store.local:
            self._path = store.path(METRICS)
        else:
            self._temporary = Path(tempfile.mkdtemp(prefix="calumma-"))
            self._path = self._temporary / METRICS
            self._path.write_bytes(store.get_or_none(METRICS) or b"")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= first_step]
        self.total_tokens = int(json.loads(kept[-1]).get("total_tokens", 0)) if kept else 0
        aside = self._path.with_suffix(".aside")  # a kill here must not cost the lines so far
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _event_writer(store, first_step)

    def write(self, line: dict[str, Any]) -> None:
        """Writes one step's line; it is on the file system when this returns."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _flat(line):
                self._board.add_scalar(name, value, line["step"])

    def show(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """A picture, (height, width, 3), for TensorBoard; the log's file holds figures alone."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def keep(self) -> None:
        """Makes everything so far lasting."""
        if self._board is not None:
            self._board.flush()
        if self._temporary is not None:
            self._store.put(METRICS, self._path.read_bytes())

    def close(self) -> None:
        self.keep()
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def read_metrics(store: Storage) -> list[dict[str, Any]]:
    """The lines of a step's ``metrics.jsonl``, in step order."""
    return [json.loads(line) for line in store.get(METRICS).decode().splitlines()]


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that ends in the middle of one if its writer was killed."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _event_writer(store: Storage, first_step: int) -> Any:
    if not store.local:
        return None  # event files are appended to; TensorBoard can read metrics.jsonl's figures after the run
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(store.path(TENSORBOARD)), purge_step=first_step + 1)


def _flat(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if key == "held_out":
            for name, found in value.items():
                if isinstance(found, dict):  # a source's losses, by modality
                    yield from ((f"held_out/{name}/{modality}", loss) for modality, loss in found.items())
                else:
                    yield f"held_out/{name}", found
        elif key != "step" and isinstance(value, int | float):
            yield f"train/{key}", value
