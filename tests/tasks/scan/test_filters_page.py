"""The examples of docs/filters.md do what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from tasks.context import StepContext
from tasks.scan import run as scan
from tasks.scan.config import ScanConfig
from tests.tasks.file_sources import Jsonl, MakeContext, Pictures
from tests.tasks.scan.test_run import PAIRS, finished, run_both

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "filters.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def plugged_in(
    make_context: MakeContext, jsonl: Jsonl, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StepContext:
    (tmp_path / "house_rules.py").write_text(blocks("python")[0])
    (tmp_path / "brightness.txt").write_text("0.00392")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "house_rules", raising=False)
    captions = ["A quiet one", "THIS IS LOUD", "Another"]
    jsonl("list.jsonl", [{"file": n, "caption": c} for n, c in zip(pictures(3), captions, strict=True)])
    (sections,) = (found for found in map(yaml.safe_load, blocks("yaml")) if "filters" in found["scan"])
    return make_context("scan", [PAIRS], scan=sections["scan"])


def test_the_example_filter_and_scorer_work(plugged_in: StepContext) -> None:
    run_both(plugged_in)
    rows = finished(plugged_in).rows["photos"]
    assert (rows.out, rows.filtered) == (2, {"shouting": 1})


def test_the_example_scorers_bound_filters(plugged_in: StepContext, tmp_path: Path) -> None:
    (tmp_path / "brightness.txt").write_text("0.000001")
    from infra.errors import SourceError

    with pytest.raises(SourceError, match="2 score-bright, 1 shouting"):
        scan.run(plugged_in, workers=0)


def test_every_example_is_a_valid_section_and_every_key_is_on_the_page() -> None:
    for found in map(yaml.safe_load, blocks("yaml")):
        ScanConfig.model_validate(found["scan"])
    unknown = {"item_samples", "held_out", "max_pixels"}  # not filters
    for name in set(ScanConfig.model_fields) - unknown:
        assert name in PAGE, name
