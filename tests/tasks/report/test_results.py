from __future__ import annotations

import math

import pytest

from tasks.context import StepContext
from tasks.report.read import Run
from tasks.report.results import cards, choices, drawings, losses, softmax


def test_softmax_of_very_small_probabilities() -> None:
    assert softmax([-900.0, -900.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


def test_answers_in_full_come_likeliest_first(toy_context: StepContext) -> None:
    found = choices(Run(toy_context))
    assert found is not None
    assert len(found["panels"]) == 4
    for example in found["examples"]:
        p = [a["p"] for a in example["answers"]]
        assert p == sorted(p, reverse=True)
        assert sum(p) == pytest.approx(1)
        assert [a["right"] for a in example["answers"]].count(True) == 1
    assert {e["to_name"] for e in found["examples"]} == {True, False}


def test_drawings_losses_and_cards(toy_context: StepContext) -> None:
    run = Run(toy_context)
    assert [d["held_out"] for d in drawings(run)] == [False, True]
    assert {row["source"] for row in losses(run)} == {"shapes", "words", "stories", "talks"}
    assert [c["label"] for c in cards(run)] == [
        "right name for a picture",
        "right picture for a name",
        "drawings",
        "named exactly",
    ]
