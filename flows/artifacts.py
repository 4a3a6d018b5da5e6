"""What the Prefect UI shows of a step: progress while it runs, then its ledger, its figures and its pictures."""

from __future__ import annotations

import base64
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.display import describe_progress, summary
from infra.storage import Storage
from infra.store.manifest import StepManifest

INTERVAL_S = 5.0
"""Every update of an artifact emits an event that the server stores."""

PICTURE_LIMIT = 2 << 20


class ProgressArtifact:
    """A step's progress bar in the Prefect UI, and the newest picture that its job has to show."""

    def __init__(self, step: str, workdir: Storage) -> None:
        self._step, self._workdir = step, workdir
        self._shown = ""
        self._id: UUID | None = None
        self._last = 0.0

    def update(self, state: dict[str, Any]) -> None:
        """Shows a job's report, at most every few seconds."""
        now = time.monotonic()
        if not state.get("total") or now - self._last < INTERVAL_S:
            return
        self._last = now
        percent, words = 100 * state["done"] / state["total"], describe_progress(state)
        if self._id is None:
            created: Any = create_progress_artifact(percent, key=f"{self._step}-progress", description=words)
            self._id = created
        else:
            update_progress_artifact(self._id, progress=percent, description=words)
        picture = state.get("picture", "")
        if picture != self._shown:
            self._shown = picture
            data = self._workdir.get_or_none(picture)
            if data is not None and len(data) <= PICTURE_LIMIT:
                _show(f"{self._step}-so-far", data, f"{self._step}: {words}")


def publish(step: str, manifest: StepManifest, store: Storage) -> None:
    """A finished step's ledger, figures and pictures."""
    if manifest.rows:
        table = [
            {
                "source": source,
                "in": rows.entered,
                "out": rows.out,
                **{
                    word: ", ".join(f"{reason}: {n}" for reason, n in sorted(found.items())) or 0
                    for word, found in (
                        ("filtered", rows.filtered),
                        ("duplicate", rows.duplicate),
                        ("quarantined", rows.quarantined),
                        ("removed", rows.removed),
                    )
                },
            }
            for source, rows in manifest.rows.items()
        ]
        create_table_artifact(table, key=f"{step}-ledger", description=f"{step}: in = out + what went away, and why")
    lines = [f"**{step}** {summary(manifest)}", "", f"In `{store.root}`", "", "| figure | value |", "|---|---|"]
    lines += [f"| {k} | {v} |" for k, v in sorted(manifest.facts.items()) if isinstance(v, int | float | str)]
    create_markdown_artifact("\n".join(lines), key=f"{step}-figures", description=f"{step}: figures")
    for file in manifest.files:
        if file.name.endswith(".png") and file.bytes <= PICTURE_LIMIT:
            key = f"{step}-{file.name.rsplit('/', 1)[-1].removesuffix('.png').replace('_', '-').lower()}"
            _show(key, store.get(file.name), f"{step}: {file.name}")


def _show(key: str, png: bytes, description: str) -> None:
    data = base64.b64encode(png).decode()
    create_image_artifact(f"data:image/png;base64,{data}", key=key, description=description)
