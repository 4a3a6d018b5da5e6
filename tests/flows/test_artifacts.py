"""What the Prefect UI is given, with its API stood in for."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from flows import artifacts
from infra.storage import Storage


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def image(data: str, key: str, description: str) -> None:
        found.append(("image", {"data": data, "key": key, "description": description}))

    def begin(percent: float, key: str, description: str) -> str:
        found.append(("bar", {"percent": percent, "key": key}))
        return "id"

    def go_on(identity: str, progress: float, description: str) -> None:
        found.append(("bar", {"percent": progress, "key": identity}))

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
