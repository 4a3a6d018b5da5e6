"""What the Prefect UI is given, with its API stood in for."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows import artifacts
from infra.storage import Storage
from tasks.train.live import LiveCurves, curves_file


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def image(data: str, key: str, description: str) -> str:
        found.append(("image", {"data": data, "key": key, "description": description}))
        return "image-id"

    def begin(percent: float, key: str, description: str) -> str:
        found.append(("bar", {"percent": percent, "key": key}))
        return "id"

    def go_on(identity: str, progress: float, description: str) -> None:
        found.append(("bar", {"percent": progress, "key": identity}))

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *error: object) -> None: ...

        def update_artifact(self, identity: str, update: Any) -> None:
            found.append(("updated", {"id": identity, "data": update.data, "description": update.description}))

    monkeypatch.setattr(artifacts, "get_client", lambda sync_client: Client())
    monkeypatch.setattr(artifacts, "create_image_artifact", image)
    monkeypatch.setattr(artifacts, "create_progress_artifact", begin)
    monkeypatch.setattr(artifacts, "update_progress_artifact", go_on)
    monkeypatch.setattr(artifacts, "INTERVAL_S", 0.0)
    return found


def state(done: int, picture: str = "") -> dict[str, Any]:
    found = {"done": done, "total": 10, "unit": "steps", "rate": 0.0, "quarantined": 0, "note": "PSNR 20 dB"}
    return found | ({"picture": picture} if picture else {})


def test_the_newest_picture_is_shown_once(made: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("a/1.png", b"one")
    store.put("a/2.png", b"two")
    bar = artifacts.ProgressArtifact("image-tokenizer", store)
    for found in (state(1), state(2, "a/1.png"), state(3, "a/1.png"), state(4, "a/2.png"), state(5, "a/gone.png")):
        bar.update(found)
    assert [f["percent"] for kind, f in made if kind == "bar"] == [10, 20, 30, 40, 50]
    pictures = [f for kind, f in made if kind == "image"]
    assert [base64.b64decode(f["data"].partition(",")[2]) for f in pictures] == [b"one", b"two"]
    assert {f["key"] for f in pictures} == {"image-tokenizer-so-far"}
    assert "PSNR 20 dB" in pictures[0]["description"]


def test_a_trainings_curves_are_drawn_now_and_then_into_one_artifact(
    made: list[tuple[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = Storage(tmp_path), [1000.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    live = LiveCurves(store, "job-1", store.sub("pretrain"), ["web"])
    bar = artifacts.ProgressArtifact("pretrain", store)
    bar.update(state(1) | {"curves": curves_file("job-1")})  # nothing is there yet
    for step in range(1, 5):
        now[0] += artifacts.CURVES_S / 2 + 1
        live({"step": step, "stage": "one", "loss_text": 3.0 - step / 10, "held_out": {"web": {"text": 2.0}}})
        bar.update(state(step) | {"curves": curves_file("job-1")})
    first, second = (f for kind, f in made if kind in ("image", "updated"))
    assert first["key"] == "pretrain-curves"
    assert second["id"] == "image-id"
    for shown in (first, second):
        png = base64.b64decode(shown["data"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(png)).width == 1260
        assert len(png) < artifacts.PICTURE_LIMIT
    assert "steps" in second["description"]
