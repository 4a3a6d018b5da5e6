from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.processes import marked
from infra.ray_local import RECORD, end_ray, recorded_ray, start_ray

pytestmark = pytest.mark.integration


def test_a_killed_runs_ray_is_ended_by_the_next_and_others_are_left_alone(tmp_path: Path) -> None:
    other = start_ray(tmp_path / "other", 1)
    try:
        first = start_ray(tmp_path / "run", 1)
        assert first.alive()
        # The run is killed here: nobody calls end_ray, and the record stays.
        second = start_ray(tmp_path / "run", 1)
        assert marked(first.mark) == []
        assert not Path(first.folder).exists()
        assert recorded_ray(tmp_path / "run") == second
        assert end_ray(tmp_path / "run") > 3
        assert marked(second.mark) == []
        assert recorded_ray(tmp_path / "run") is None
        assert other.alive()
    finally:
        end_ray(tmp_path / "other")


def test_a_damaged_record_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / RECORD).write_text(json.dumps({"mark": 1}))
    assert end_ray(tmp_path) == 0
    assert not (tmp_path / RECORD).exists()
