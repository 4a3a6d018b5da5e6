"""What the benchmarks share."""

from __future__ import annotations

import json
import socket

import pytest

from benchmarks.common import emit, machine, machine_line, median, speed_ratio, timed


def test_the_machine_is_described_without_names() -> None:
    facts, line = machine("pillow"), machine_line()
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0
    assert {"python", "torch", "pillow"} <= facts.keys()
    assert facts["pillow"] in line
    assert socket.gethostname() not in (set(map(str, facts.values())) | set(line.split()))


def test_contenders_take_turns_and_each_goes_first() -> None:
    turns: list[str] = []
    seconds = timed({name: (lambda name=name: turns.append(name)) for name in "abc"}, 3)
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_of_medians_over_rounds() -> None:
    assert median([3, 1, 2]) == 2
    assert speed_ratio([2.0, 9.0, 4.0], [1.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        speed_ratio([1.0], [1.0, 2.0])


def test_figures_end_as_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"ratio": 1.25, "pictures": 3}, as_json=True)
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (figures["ratio"], figures["pictures"]) == (1.25, 3)
    assert figures["machine"]["cores"] >= 1
    emit({"ratio": 1.25}, as_json=False)
    assert "{" not in capsys.readouterr().out
