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
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from flows.display import describe_progress, summary
from infra.storage import Storage
from infra.store.manifest import StepManifest

INTERVAL_S = 5.0
"""Every update of an artifact emits an event that the server stores."""

PICTURE_LIMIT = 2 << 20

CURVES_S = 30.0
"""Between two drawings of a training's curves, which take a second or two of the flow's process."""


class ProgressArtifact:
    """A step's progress bar in the Prefect UI, and the newest picture that its job has to show."""

    def __init__(self, step: str, workdir: Storage) -> None:
        self._step, self._workdir = step, workdir
        self._shown = ""
        self._id: UUID | None = None
        self._last = 0.0
        self._curves: UUID | None = None
        self._drawn = float("-inf")

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
        if state.get("curves") and now - self._drawn >= CURVES_S:
            self._drawn = now
            self._draw(state["curves"], f"{self._step}: {words}")

    def _draw(self, name: str, description: str) -> None:
        """A training's curves so far. One artifact is updated: a version a drawing would fill the server's database."""
        from tasks.train.live import draw_live

        data = self._workdir.get_or_none(name)
        if data is None:
            return
        png = draw_live(data)
        if self._curves is None:
            self._curves = _show(f"{self._step}-curves", png, description)
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._curves, ArtifactUpdate(data=_data_uri(png), description=description))


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


def _show(key: str, png: bytes, description: str) -> UUID:
    found: Any = create_image_artifact(_data_uri(png), key=key, description=description)
    identity: UUID = found
    return identity


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
