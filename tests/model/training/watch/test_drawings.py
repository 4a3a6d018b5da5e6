"""Pictures drawn while training, on real ranks: the same after a restart, and nothing that is trained notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Storage
from model.training.monitors import read_metrics
from model.training.watch.sinks import TENSORBOARD
from tests.model.training.conftest import VOCABULARY

STEPS = ["drawn-002.json", "drawn-004.json", "drawn-006.json", "drawn-008.json"]
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drawn": {"drawings": (2, 3)},
    "stopped": {"drawings": (2, 3), "stop_at": 4},
    "resumed": {"drawings": (2, 3), "store": "stopped"},
    "one": {"drawings": (100, 1), "resources": {"zero_stage": 2}},
    "zero-0": {"drawings": (2, 3), "resources": {"zero_stage": 0}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def ended(ranks_of: Any, folder: Path) -> dict[str, Any]:
    """Outcomes of short trainings with dropout on two ranks, which share three prompts, or one."""
    options = [more | {"store": str(folder / more.get("store", name))} for name, more in RUNS.items()]
    found = ranks_of(folder)(runs=options)[0]
    for outcome in found:
        assert not isinstance(outcome, Exception), outcome
    return dict(zip(RUNS, found, strict=True))


def drawn(folder: Path, name: str) -> dict[str, list[list[int]]]:
    return {file: json.loads(Storage(folder / name).get(file)) for file in Storage(folder / name).list("", ".json")}


def bits(outcome: Any) -> dict[str, bytes]:
    return {name: weight.tobytes() for name, weight in outcome.weights.items()}


def test_drawing_leaves_every_bit_as_it_was(ended: dict[str, Any], folder: Path) -> None:
    assert bits(ended["plain"]) == bits(ended["drawn"])
    lines, plain = (read_metrics(Storage(folder / name)) for name in ("drawn", "plain"))
    for line, want in zip(lines, plain, strict=True):
        assert [line[k] for k in ("loss", "grad_norm", "residual_norms")] == [
            want[k] for k in ("loss", "grad_norm", "residual_norms")
        ]


def test_every_picture_is_whole_and_of_codes(ended: dict[str, Any], folder: Path) -> None:
    found = drawn(folder, "drawn")
    assert list(found) == STEPS
    for pictures in found.values():
        assert [len(codes) for codes in pictures] == [4, 4, 4]
        assert all(0 <= code < VOCABULARY.image_codes for codes in pictures for code in codes)
    assert len({json.dumps(pictures) for pictures in found.values()}) > 1
    assert list(drawn(folder, "one")) == ["drawn-008.json"]  # one rank has nothing to draw; always after the last step


def test_a_training_that_goes_on_draws_the_same_and_shows_it_once(ended: dict[str, Any], folder: Path) -> None:
    assert not ended["stopped"].finished
    assert bits(ended["resumed"]) == bits(ended["drawn"])
    assert drawn(folder, "stopped") == drawn(folder, "drawn")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "stopped" / TENSORBOARD))
    board.Reload()
    assert [picture.step for picture in board.Images("drawings")] == [2, 4, 6, 8]


def test_zero_0_draws_what_zero_1_draws(ended: dict[str, Any], folder: Path) -> None:
    assert drawn(folder, "zero-0")["drawn-002.json"] == drawn(folder, "drawn")["drawn-002.json"]
