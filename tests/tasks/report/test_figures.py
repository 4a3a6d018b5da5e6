from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report import figures
from tasks.report.figures import Bands, Bar, Line, Panel, running_mean
from tasks.train.curves import training_png
from tasks.train.history import History

MAKERS: dict[str, Callable[[], Panel]] = {
    "curves": lambda: figures.curves(
        "Loss <of> & all",
        [
            Line("a & <b>", range(50), [1 / (i + 1) for i in range(50)], noisy=True),
            Line("b", [0, 9], [2, 1], dots=True),
        ],
        y_label="nats",
        log=True,
        bands=Bands({"stage-1": (0, 40), "stage-2": (40, 50)}),
    ),
    "one point": lambda: figures.curves("t", [Line("", [1], [2.0], noisy=True)]),
    "no point": lambda: figures.curves("t", [Line("", [], [])]),
    "flat on a log scale": lambda: figures.curves("t", [Line("", [1, 2], [3.0, 3.0])], log=True),
    "shares": lambda: figures.shares(
        "t", [Bar("row", [(0.5, 0.4, 0.6), (1, 0.9, 1)]), Bar("other", [])], [("a", "red"), ("b", "blue")], 0.1, "w"
    ),
    "codebook": lambda: figures.codebook([0, 0, 5, 1, 100]),
    "codebook of one": lambda: figures.codebook([7]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_figures_are_whole_deterministic_and_alone(name: str) -> None:
    panel = MAKERS[name]()
    assert panel.figure == MAKERS[name]().figure
    root = ET.fromstring(panel.figure)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    # Nothing that the page would have to fetch, and nothing that would style the rest of the page.
    assert not [e for e in root.iter() if e.tag.split("}")[1] in ("image", "style", "script", "metadata")]
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not (key.endswith("href") and not value.startswith("#"))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_running_mean_stays_within_the_values(values: list[float]) -> None:
    mean = running_mean(values)
    assert len(mean) == len(values)
    assert all(min(values) - 1e-3 <= m <= max(values) + 1e-3 for m in mean)


def test_a_running_mean_of_a_constant_is_the_constant() -> None:
    assert running_mean([2.0] * 100) == pytest.approx([2.0] * 100)


def test_a_curve_with_one_point_in_the_last_stage_leaves_room_for_all(recwarn: pytest.WarningsRecorder) -> None:
    """The first stage's name lies beside where that point is; it took the whole of the picture's room."""
    line = {"loss": 5.0, "loss_text": 5.0, "loss_image": 5.0, "grad_norm": 1.0}
    lines: list[dict[str, Any]] = [{"step": n, "stage": "stage-1" if n < 5 else "stage-2", **line} for n in range(1, 6)]
    lines[-1]["held_out"] = {"photos": {"text": 3.0, "image": 4.0}}
    assert training_png(History(lines)).startswith(b"\x89PNG")
    assert not [str(warning.message) for warning in recwarn]
